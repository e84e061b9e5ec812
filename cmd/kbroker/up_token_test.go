package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestALocalHostsTokenIsItsOwn: nobody else reads it, and the next up takes away what one
// that was killed has left.
func TestALocalHostsTokenIsItsOwn(t *testing.T) {
	l := &localCluster{dir: t.TempDir(), Hosts: []localHost{{Name: "h1"}, {Name: "h2"}, {Name: "h3", Removed: true}}}
	for i, want := range []bool{false, true} {
		if needs, err := l.needsToken(l.Hosts[i]); err != nil || needs != want {
			t.Errorf("host %s, which is new, needs a token: %t, %v; want %t", l.Hosts[i].Name, needs, err, want)
		}
	}
	if err := l.saveToken(l.Hosts[1], "kbt1.x"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(l.hostDir("h2"), tokenFile)
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("the token is %v, %v; want it there with mode 0600", info, err)
	}
	for range 2 {
		if err := l.forgetTokens(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the token is still there: %v", err)
	}
	membership := []byte(`{"cluster_id":"kb-1","host":"h2","role":"core"}`)
	if err := os.WriteFile(filepath.Join(l.hostDir("h2"), "membership.json"), membership, 0o600); err != nil {
		t.Fatal(err)
	}
	if needs, err := l.needsToken(l.Hosts[1]); err != nil || needs {
		t.Errorf("a host that has joined needs a token: %t, %v", needs, err)
	}
}
