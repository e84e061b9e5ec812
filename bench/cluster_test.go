package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// script is a program that takes the place of kbroker: it notes each call, with
// the folder that is its cluster's, and does what body says.
func script(t *testing.T, body string) (bin string, calls func() []string) {
	t.Helper()
	dir := t.TempDir()
	bin, notes := filepath.Join(dir, "kbroker"), filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho \"$* in $KBROKER_DIR\" >>" + notes + "\n" + body + "\n"
	if err := os.WriteFile(bin, []byte(text), 0o700); err != nil {
		t.Fatalf("write script: %v", err)
	}
	return bin, func() []string {
		b, err := os.ReadFile(notes)
		if err != nil {
			t.Fatalf("read calls: %v", err)
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

func TestClusterComesAndGoes(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv(envCA, "") // it is set
	bin, calls := script(t, `[ "$1" = up ] && echo '{"servers":["nats://127.0.0.1:1"],"ca":"roots"}' >"$KBROKER_DIR/context.json"
		[ "$1" = hosts ] && echo '[
		{"name":"h1","state":"ready","client":"127.0.0.1:1"},
		{"name":"h2","state":"ready","client":"127.0.0.1:2"},
		{"name":"h3","state":"ready","client":"127.0.0.1:3"}]'
		exit 0`)
	c, err := startCluster(t.Context(), bin)
	if err != nil {
		t.Fatalf("start cluster: %v", err)
	}
	if want := []string{"nats://127.0.0.1:1", "nats://127.0.0.1:2", "nats://127.0.0.1:3"}; !slices.Equal(c.servers, want) {
		t.Errorf("servers %v, want %v", c.servers, want)
	}
	if roots, err := os.ReadFile(os.Getenv(envCA)); err != nil || string(roots) != "roots" {
		t.Errorf("the peers are given the roots %q, %v", roots, err)
	}
	if err := c.close(); err != nil {
		t.Errorf("close: %v", err)
	}
	want := []string{
		"up --hosts 3 --dir " + c.dir + " in " + c.dir,
		"hosts -o json in " + c.dir,
		"down --dir " + c.dir + " in " + c.dir,
	}
	if got := calls(); !slices.Equal(got, want) {
		t.Errorf("calls\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, err := os.Stat(c.dir); !os.IsNotExist(err) {
		t.Errorf("the cluster's folder %s is still there (%v)", c.dir, err)
	}
}

// A cluster that came half up is taken down; if that fails too, its folder
// stays, because what runs on is found by it.
func TestAClusterThatFailsToStartIsTakenDown(t *testing.T) {
	for _, c := range []struct {
		name, body string
		left       int
		want       []string
	}{
		{"up fails", `[ "$1" != up ] || { echo no port left >&2; exit 1; }`, 0, []string{"no port left"}},
		{"a host is missing", `echo '[]'`, 0, []string{"0 hosts, want 3"}},
		{"down fails too", `echo "cannot $1" >&2; exit 1`, 1, []string{"cannot up", "cannot down", "what is left is in"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			bin, calls := script(t, c.body)
			_, err := startCluster(t.Context(), bin)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			all := calls()
			if last := all[len(all)-1]; !strings.HasPrefix(last, "down ") {
				t.Errorf("the last call is %q, want down", last)
			}
			left, err := os.ReadDir(tmp)
			if err != nil || len(left) != c.left {
				t.Errorf("%d folders are left (%v), want %d", len(left), err, c.left)
			}
		})
	}
}
