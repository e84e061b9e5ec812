package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
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
		files, err := filepath.Glob(filepath.Join(h.Dir, "data", "instances", "default", "wordcount-wordcount-*", "instance.creds"))
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
