package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/wait"
)

// TestNetlabCredentialsAreRenewed while agents, super, allocators and two of three
// cores are away for longer than a credential holds: no call fails between the
// instances.
func TestNetlabCredentialsAreRenewed(t *testing.T) {
	needLong(t)
	const life = 20 * time.Second
	c := newLab(t, 3, 3, 0, "--credential-life", life.String())
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	kept := other(c.super())
	end := c.load(4 * life)
	<-time.After(3 * time.Second) // of load
	for _, h := range c.lab.Hosts() {
		if h.Name != kept {
			c.kill(h.Name, true)
			c.signal(h.Name, allocators, syscall.SIGKILL)
		}
	}
	gone := time.Now()
	c.signal(kept, allocators, syscall.SIGSTOP) // killed, it would be started again
	r := end()
	away := time.Since(gone)
	t.Logf("RESULT without agents, super, allocators and two of three cores for %v, credentials of %v: %d of %d requests failed",
		away.Round(time.Second), life, r.Failed, r.Requests)
	if away < 3*life {
		t.Errorf("they were away for %v only", away)
	}
	for _, h := range c.lab.Hosts() {
		files, err := filepath.Glob(filepath.Join(h.Dir, "data", "instances", "default", "wordcount-wordcount-*", "run", "*.creds"))
		if err != nil || len(files) == 0 {
			t.Fatalf("credentials on %s: %v, %v", h.Name, files, err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err != nil || time.Since(info.ModTime()) > life || info.Mode() != 0o600 {
				t.Errorf("%s: %v, %v; want it renewed within %v, 0600", file, info.ModTime(), err, life)
			}
		}
	}
	c.signal(kept, allocators, syscall.SIGCONT)
	for _, h := range c.lab.Hosts() {
		if h.Name != kept {
			c.start(h)
		}
	}
	c.whole(30 * time.Second)
	c.settled(20*time.Second, "wordcount", 3)
}

// TestNetlabAProgramRunsForLongerThanItsCredential beside the cluster,
// without an SDK: it is cut off when that ends, and comes back with the next.
func TestNetlabAProgramRunsForLongerThanItsCredential(t *testing.T) {
	needLong(t)
	const life, lives = 20 * time.Second, 3
	c := newLab(t, 1, 1, 0, "--credential-life", life.String())
	temp := t.TempDir()
	cmd := c.client(context.Background(), kbrokerBin, "run", "echo/echo", "--", os.Args[0])
	cmd.Env = append(cmd.Env, childEnv+"="+echoJob, "TMPDIR="+temp)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began, ended := time.Now(), false
	end := func() error { ended = true; _ = cmd.Process.Signal(syscall.SIGTERM); return cmd.Wait() }
	t.Cleanup(func() {
		if !ended {
			_ = end()
		}
	})
	asked, failed := 0, 0
	var answer echoed
	wait.Until(t, (lives+1)*life, func() error {
		out, code := c.try("call", "echo/echo", "say", "word=tea", "-o", "json", "--timeout", "1s")
		asked++
		if code != 0 {
			failed++
			return fmt.Errorf("call: exit code %d, %q", code, out)
		}
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			return fmt.Errorf("answer %q: %w", out, err)
		}
		if time.Since(began) < lives*life {
			return fmt.Errorf("it has run for %v", time.Since(began))
		}
		return nil
	})
	t.Logf("RESULT with a credential of %v, %v after the start: %d of %d calls failed, the program was cut off %d times", life, time.Since(began).Round(time.Second), failed, asked, answer.Reconnects)
	if answer.Reconnects < lives-1 {
		t.Errorf("the program was cut off %d times, want %d at least: the test shows nothing", answer.Reconnects, lives-1)
	}
	if err := end(); err != nil {
		t.Errorf("run ended with %v, want 0:\n%s", err, said.String())
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left of the program's files: %v, %v", left, err)
	}
}
