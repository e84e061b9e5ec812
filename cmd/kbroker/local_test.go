package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

func grown(t *testing.T, dir string, n int) *localCluster {
	t.Helper()
	l, err := loadLocal(dir)
	if err == nil {
		err = l.grow(n, defaultCores)
	}
	if err != nil {
		t.Fatalf("grow to %d: %v", n, err)
	}
	return l
}

func TestPortsArePickedOnceAndTheContextNamesAllHosts(t *testing.T) {
	dir := t.TempDir()
	one := grown(t, dir, 1)
	three := grown(t, dir, 3)
	if len(three.Hosts) != 3 || three.Hosts[0] != one.Hosts[0] || three.Hosts[2].Name != "h3" {
		t.Fatalf("hosts are %+v, want h1 as it was %+v, h2 and h3", three.Hosts, one.Hosts)
	}
	ports := map[int]bool{}
	for _, h := range three.Hosts {
		ports[h.ClientPort], ports[h.RoutePort] = true, true
	}
	if len(ports) != 6 || ports[0] {
		t.Fatalf("ports are %v, want six different ones", ports)
	}
	if again := grown(t, dir, 3); !slices.Equal(again.Hosts, three.Hosts) {
		t.Fatalf("hosts are %+v, were %+v", again.Hosts, three.Hosts)
	}
	five := grown(t, dir, 5)
	if h := five.Hosts[4]; len(five.cores()) != 3 || !h.worker() || h.ClientPort != 0 {
		t.Fatalf("hosts are %+v, want two workers without ports", five.Hosts)
	}
	target, err := client.Find(dir)
	if err != nil || len(target.Servers) != 3 || target.Servers[1] != "nats://"+three.Hosts[1].client() {
		t.Fatalf("the directory leads to %v, %v, want the three hosts", target.Servers, err)
	}
}

func TestADamagedFileIsInvalidAndItsHostsAreFoundByTheirDirectories(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, localFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadLocal(dir); !errors.Is(err, kbroker.Invalid) {
		t.Fatalf("load: %v, want code invalid", err)
	}
	for _, name := range []string{"h1", "h12", "hx", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l := &localCluster{dir: dir, Hosts: []localHost{{Name: "h1"}}}
	if err := l.found(); err != nil {
		t.Fatal(err)
	}
	if len(l.Hosts) != 2 || l.Hosts[1].Name != "h12" {
		t.Fatalf("found %+v, want h12 beside h1", l.Hosts)
	}
}

func TestRemoveLeavesWhatIsNotTheClusters(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	if err := os.MkdirAll(filepath.Join(dir, "h1", "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	l := grown(t, dir, 1)
	mine := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.remove(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "notes.txt" {
		t.Fatalf("left is %v, %v, want notes.txt alone", entries, err)
	}
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	if err := l.remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the directory is still there: %v", err)
	}
}

func TestOneUpOrDownAtATime(t *testing.T) {
	dir := t.TempDir()
	var said bytes.Buffer
	c := &cli{err: &said}
	unlock, err := c.lockLocal(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.lockLocal(short, dir); !errors.Is(err, kbroker.DeadlineExceeded) {
		t.Fatalf("a second lock: %v, want code deadline_exceeded", err)
	}
	if n := strings.Count(said.String(), "waiting for it"); n != 1 {
		t.Fatalf("said %q, want that it waits, once", said.String())
	}
	// The first one was a `down --delete`: its lock file is gone.
	if err := os.Remove(filepath.Join(dir, lockFile)); err != nil {
		t.Fatal(err)
	}
	unlock()
	unlock, err = c.lockLocal(t.Context(), dir)
	if err != nil {
		t.Fatalf("lock after the first: %v", err)
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(dir, lockFile)); err != nil {
		t.Fatalf("what is locked is not the file: %v", err)
	}
}

func TestTheAgentsOfUpTakeNothingFromTheEnvironment(t *testing.T) {
	got := agentEnviron([]string{"PATH=/bin", "KBROKER_AGENT_JOIN=x", "KBROKER_DIR=y", "NATS_URL=z"})
	if want := []string{"PATH=/bin", "NATS_URL=z"}; !slices.Equal(got, want) {
		t.Fatalf("environment is %q, want %q", got, want)
	}
}

func TestTheEndOfAnAgentIsSeen(t *testing.T) {
	if err := needLinux(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	l := grown(t, dir, 1)
	program := filepath.Join(dir, "agent.sh")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho the disk is full: $2 >&2\nexit 7\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	// What an earlier agent wrote explains nothing.
	if err := os.MkdirAll(l.hostDir("h1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.hostDir("h1"), agentLog), []byte("all is well\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := l.spawn(program, l.Hosts[0])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var told bytes.Buffer
	c := &cli{err: &told, server: dir}
	_, err = c.awaitReady(ctx, l, []spawned{s})
	if !errors.Is(err, kbroker.Failed) || !strings.Contains(err.Error(), "host h1 ended with 7") {
		t.Fatalf("await: %v, want that the agent of h1 ended with 7", err)
	}
	c.printError(err)
	if !strings.Contains(told.String(), "the disk is full: --dir") || strings.Contains(told.String(), "all is well") {
		t.Fatalf("told %q, want the last lines of its log", told.String())
	}
}
