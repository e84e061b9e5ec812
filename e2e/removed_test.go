package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// removedWithin is how long a worker that is removed, or comes back after it was, may run
// on, and what it runs.
const removedWithin = 10 * time.Second

// endsWithin waits until nothing of a host runs any more, and its agent has said why.
func (c *cluster) endsWithin(began time.Time, host string) {
	c.t.Helper()
	wait.Until(c.t, removedWithin, func() error {
		if left := c.processes(host); len(left) > 0 {
			return fmt.Errorf("processes of %s, which was removed: %v", host, left)
		}
		return nil
	})
	c.t.Logf("RESULT %s: nothing runs %v after it could hear of it", host, time.Since(began).Round(10*time.Millisecond))
	log, err := os.ReadFile(filepath.Join(c.host(host), "agent.log"))
	if err != nil || !strings.Contains(string(log), "host "+host+" was removed from cluster") || !strings.Contains(string(log), "hint: to join again") {
		c.t.Errorf("%s ended without a word: %v\n%s", host, err, log)
	}
}

// removes waits until a host can be removed, and h1 refuses so many keys of
// workers.
func (c *cluster) removes(host string, refused int) {
	c.t.Helper()
	wait.Until(c.t, 30*time.Second, func() error {
		if out, code := c.try("remove", host); code != 0 {
			return fmt.Errorf("remove %s: exit code %d: %s", host, code, out)
		}
		return nil
	})
	wait.Until(c.t, 10*time.Second, func() error {
		raw, err := os.ReadFile(filepath.Join(c.host("h1"), "revoked.log"))
		n := 0
		for line := range strings.Lines(string(raw)) {
			const until = 1
			f := strings.Fields(line)
			if s, err := strconv.ParseInt(f[min(until, len(f)-1)], 10, 64); err == nil && time.Unix(s, 0).UTC().Year() == 9999 { // not that of an instance
				n++
			}
		}
		if err == nil && n != refused {
			err = fmt.Errorf("h1 refuses %d keys, want %d", n, refused)
		}
		return err
	})
}

// programs are the processes of a host that run an artifact.
func (c *cluster) programs(host string) []int {
	var out []int
	for pid, cmd := range c.processes(host) {
		if strings.Contains(cmd, "/artifacts/") {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}

// TestARemovedWorkerHearsOfIt, though no core takes its credential any more: while it
// runs, when its agent was stopped meanwhile, and when it was killed and starts again.
func TestARemovedWorkerHearsOfIt(t *testing.T) {
	needLong(t) // 30 s; node has the parts of it
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "cluster")}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.down)
	c.agent("h1", "--found")
	c.context("h1")
	join := func(host string) {
		c.agent(host, "--role", "worker", "--join", c.address("h1"), "--token-file", filepath.Join(c.host(host), "join.token"))
	}
	for n, host := range []string{"h2", "h3", "h4"} {
		if err := os.MkdirAll(c.host(host), 0o700); err != nil {
			t.Fatal(err)
		}
		c.token(c.host(host), kbroker.RoleWorker)
		join(host)
		c.hosts = n + 2
		wait.Until(t, 20*time.Second, func() error { return allReady(c) })
	}
	// A program that knows nothing of the cluster: what uses the SDK ends by itself when it
	// is placed elsewhere.
	app := t.TempDir()
	writeFile(t, filepath.Join(app, "on.sh"), "#!/bin/sh\nwhile :; do sleep 1; done\n", 0o700)
	writeFile(t, filepath.Join(app, "app.yaml"), "name: on\nservices:\n  on:\n    run: on.sh\n    count: 3\n    spread: host\n    require: [\"role == worker\"]\n    health: {ready: alive}\n", 0o600)
	c.must("deploy", filepath.Join(app, "app.yaml"))
	c.waitReady(30*time.Second, "on", "on", 3, nil)

	// A worker that has lost its credential, and its key, goes on with what it remembers; when
	// it starts again it asks for another one. What it runs runs on, and is looked after.
	lost, err := filepath.Glob(filepath.Join(c.host("h3"), "identity", "*", "host.creds"))
	if err != nil || len(lost) != 1 {
		t.Fatalf("credentials of h3: %v, %v", lost, err)
	}
	if err := errors.Join(os.Remove(lost[0]), os.Remove(filepath.Join(c.host("h3"), "identity", "user.creds"))); err != nil {
		t.Fatal(err)
	}
	before := c.programs("h3")
	for _, host := range []string{"h1", "h3"} {
		c.kill(host, true)
		wait.Until(t, 10*time.Second, func() error { return c.withoutAgent(host) })
		c.agent(host)
		wait.Until(t, 20*time.Second, func() error { return allReady(c) })
	}
	if _, err := os.Stat(lost[0]); err != nil {
		t.Errorf("h3 has no credential: %v", err)
	}
	if after := c.programs("h3"); len(before) == 0 || !slices.Equal(before, after) {
		t.Errorf("h3 has run %v, and runs %v", before, after)
	}
	_ = syscall.Kill(before[0], syscall.SIGKILL)
	wait.Until(t, 20*time.Second, func() error {
		if now := c.programs("h3"); len(now) == 0 || now[0] == before[0] {
			return fmt.Errorf("the instance of h3 is not started again: %v", now)
		}
		return nil
	})
	c.waitReady(30*time.Second, "on", "on", 3, nil)

	// What is not in the cluster's records is ended with the rest.
	stray := exec.Command("sleep", "300")
	stray.Env, stray.SysProcAttr = []string{"KBROKER_HOST_DIR=" + c.host("h2")}, &syscall.SysProcAttr{Setpgid: true}
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = stray.Wait() }()
	t.Cleanup(func() { _ = stray.Process.Kill() })
	c.must("drain", "h2", "--timeout", "30s")
	c.removes("h2", 2)
	c.endsWithin(time.Now(), "h2")

	runs := func(host string) {
		t.Helper()
		if len(c.programs(host)) == 0 {
			t.Fatalf("%s runs no instance: %v", host, c.processes(host))
		}
	}
	runs("h3")
	if n := c.signal("h3", agents, syscall.SIGSTOP); n != 1 {
		t.Fatalf("stopped %d agents", n)
	}
	c.removes("h3", 3)
	runs("h3")
	if n := c.signal("h3", agents, syscall.SIGCONT); n != 1 {
		t.Fatalf("%d agents go on", n)
	}
	c.endsWithin(time.Now(), "h3")

	runs("h4")
	c.kill("h4", true)
	c.removes("h4", 4)
	runs("h4")
	join("h4")
	c.endsWithin(time.Now(), "h4")
	if out, code := c.try("agent", "--dir", c.host("h4")); code != 4 || !strings.Contains(out, "host h4 was removed from cluster") {
		t.Errorf("started once more: exit code %d, want 4 and the reason: %s", code, out)
	}
}
