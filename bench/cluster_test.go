package main

import (
	"io"
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

const threeReady = `[
	{"name":"h1","state":"ready","client":"127.0.0.1:1"},
	{"name":"h2","state":"ready","client":"127.0.0.1:2"},
	{"name":"h3","state":"ready","client":"127.0.0.1:3"}]`

func TestClusterComesAndGoes(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	// Of an earlier commit: there is no credential of anybody.
	bin, calls := script(t, `[ "$1" = up ] && echo '{"servers":["nats://127.0.0.1:1"],"ca":"roots"}' >"$KBROKER_DIR/context.json"
		[ "$1" = hosts ] && echo '`+threeReady+`'
		exit 0`)
	c, err := startCluster(t.Context(), bin)
	if err != nil {
		t.Fatalf("start cluster: %v", err)
	}
	if want := []string{"nats://127.0.0.1:1", "nats://127.0.0.1:2", "nats://127.0.0.1:3"}; !slices.Equal(c.Servers, want) {
		t.Errorf("servers %v, want %v", c.Servers, want)
	}
	roots := filepath.Join(c.dir, "ca.pem")
	if want := []string{envCA + "=" + roots}; !slices.Equal(c.Environ, want) {
		t.Errorf("the peers are given %v, want %v", c.Environ, want)
	}
	if got, err := os.ReadFile(roots); err != nil || string(got) != "roots" {
		t.Errorf("the peers are given the roots %q, %v", got, err)
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

// Before there was TLS a cluster had nothing to give.
func TestAClusterWithoutIdentityGivesNone(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	bin, _ := script(t, `[ "$1" = up ] && echo '{"servers":["nats://127.0.0.1:1"]}' >"$KBROKER_DIR/context.json"
		[ "$1" = hosts ] && echo '`+threeReady+`'
		exit 0`)
	c, err := startCluster(t.Context(), bin)
	if err != nil {
		t.Fatalf("start cluster: %v", err)
	}
	if len(c.Environ) > 0 {
		t.Errorf("the peers are given %v, want nothing", c.Environ)
	}
	if err := c.close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestServersOf(t *testing.T) {
	const ready = `[{"name":"h1","state":"ready","client":"127.0.0.1:1"},{"name":"h2","state":"ready","client":"127.0.0.1:2"},{"name":"h3","state":"ready","client":"127.0.0.1:3"}]`
	got, err := serversOf([]byte(ready))
	if want := []string{"nats://127.0.0.1:1", "nats://127.0.0.1:2", "nats://127.0.0.1:3"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("servers %v, error %v, want %v", got, err, want)
	}
	for name, hosts := range map[string]string{
		"a host that is lost":         strings.Replace(ready, `"ready"`, `"lost"`, 1),
		"a host without an address":   strings.Replace(ready, "127.0.0.1:2", "", 1),
		"fewer hosts than were asked": `[{"name":"h1","state":"ready","client":"127.0.0.1:1"}]`,
		"something else":              `{"code":"unavailable"}`,
	} {
		if got, err := serversOf([]byte(hosts)); err == nil {
			t.Errorf("%s: servers %v, want an error", name, got)
		}
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

func TestUpTakesTurnsAndLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	order := filepath.Join(t.TempDir(), "order")
	answers := func(name string) string {
		bin, _ := script(t, "echo "+name+" $1 >>"+order+`
			[ "$1" = up ] && echo '{"answer":{"text":"Hello"}}'
			exit 0`)
		return bin
	}
	ups, err := measureUp(t.Context(), []build{{"kbroker", answers("now")}, {"before", answers("then")}}, 2, io.Discard)
	if err != nil {
		t.Fatalf("measure up: %v", err)
	}
	for i, name := range []string{"kbroker", "before"} {
		if u := ups[i]; u.Name != name || len(u.Took) != 2 || slices.Min(u.Took) <= 0 {
			t.Errorf("measured %+v, want two rounds of %s", u, name)
		}
	}
	want := strings.Repeat("now up\nnow down\nthen up\nthen down\n", 2)
	if got, err := os.ReadFile(order); err != nil || string(got) != want {
		t.Errorf("called, %v,\n%swant\n%s", err, got, want)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("%d folders are left (%v), want none", len(left), err)
	}
}

func TestUpWithoutAnAnswerIsNone(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for name, body := range map[string]string{
		"no answer":  `[ "$1" = up ] && echo '{}'; exit 0`,
		"no JSON":    `echo up; exit 0`,
		"up failed":  `[ "$1" != up ]`,
		"down fails": `[ "$1" = up ] && echo '{"answer":{}}'`,
	} {
		bin, calls := script(t, body)
		took, err := upOnce(t.Context(), bin)
		if err == nil {
			t.Errorf("%s: %v, want an error", name, took)
		}
		if all := calls(); len(all) != 2 || !strings.HasPrefix(all[1], "down ") {
			t.Errorf("%s: called %v, want up and down", name, all)
		}
	}
}
