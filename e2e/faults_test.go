package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestSmoke is the README's demonstration: up, deploy, call, a killed instance,
// a killed host, down.
func TestSmoke(t *testing.T) {
	began := time.Now()
	c := up(t, 3)
	c.must("deploy", "../examples/hello/app.yaml")
	if out := c.must("call", "hello", "greet", "name=Ann"); !strings.Contains(out, "Hello, Ann") {
		t.Fatalf("hello answered %q", out)
	}
	t.Logf("up --hosts 3, hello deployed and answering: %v", time.Since(began).Round(10*time.Millisecond))

	rows := c.waitReady(10*time.Second, "hello", "hello", 3, nil)
	on := map[kbroker.HostID]bool{}
	for _, r := range rows {
		on[*r.Host] = true
	}
	if len(on) != 3 {
		t.Errorf("three instances run on %d hosts, want 3", len(on))
	}
	supers := 0
	for _, h := range c.hostRows() {
		if h.Super {
			supers++
		}
	}
	if supers != 1 {
		t.Errorf("%d hosts are the super, want 1", supers)
	}
	useContexts(c)
	killInstance(c, rows[0])
}

// killInstance kills one process and measures how long until the restarted one
// answers.
func killInstance(c *cluster, row kbroker.InstanceRow) {
	c.t.Helper()
	began := time.Now()
	if err := syscall.Kill(*row.PID, syscall.SIGKILL); err != nil {
		c.t.Fatalf("kill %s: %v", *row.Instance, err)
	}
	fresh := c.waitReady(5*time.Second, string(row.App), string(row.Service), 1, func(r kbroker.InstanceRow) bool {
		return *r.Instance == *row.Instance && *r.PID != *row.PID
	})
	took := time.Since(began)
	c.t.Logf("kill -9 of %s to its new process being ready: %v (ps included)", *row.Instance, took.Round(time.Millisecond))
	if took > time.Second {
		c.t.Errorf("%s was ready again after %v, want 1 s", *row.Instance, took)
	}
	if fresh[0].Restarts != row.Restarts+1 {
		c.t.Errorf("%s shows %d restarts, want %d", *row.Instance, fresh[0].Restarts, row.Restarts+1)
	}
}

// TestKillEachHost kills every process of one host at once, for each of the
// three hosts, under load: the super and the stream leaders included.
func TestKillEachHost(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	for _, host := range []string{"h1", "h2", "h3"} {
		role := ""
		for _, h := range c.hostRows() {
			if h.Super && string(h.Name) == host {
				role = " (the super)"
			}
		}
		end := c.load(25 * time.Second)
		wait.Until(t, 10*time.Second, func() error { return answering(c) })
		began := time.Now()
		c.kill(host, false)
		t.Logf("kill -9 of host %s%s: its instances ready elsewhere after %v", host, role, c.elsewhere(began, "wordcount", 3, host))
		end()
		c.up()
		wait.Until(t, 30*time.Second, func() error { return allReady(c) })
	}
}

// answering asks the cluster for anything.
func answering(c *cluster) error {
	if out, code := c.try("status"); code != 0 {
		return fmt.Errorf("status: exit code %d: %s", code, out)
	}
	return nil
}

// allReady is nil when as many hosts as there should be are there and ready.
func allReady(c *cluster) error {
	rows, err := list[kbroker.HostRow](c, "hosts")
	if err != nil {
		return err
	}
	if len(rows) != c.hosts {
		return fmt.Errorf("%d hosts, want %d: %s", len(rows), c.hosts, show(rows))
	}
	for _, h := range rows {
		if h.State != kbroker.HostReady {
			return fmt.Errorf("host %s is %s", h.Name, h.State)
		}
	}
	return nil
}

// TestUnmanaged: while its agent is away, an instance runs on and shows so.
func TestUnmanaged(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/hello/app.yaml")
	rows := c.waitReady(10*time.Second, "hello", "hello", 3, nil)
	victim := rows[0]
	c.kill(string(*victim.Host), true)
	wait.Until(t, 10*time.Second, func() error {
		now, err := list[kbroker.InstanceRow](c, "ps")
		if err != nil {
			return err
		}
		for _, r := range now {
			if r.Instance != nil && *r.Instance == *victim.Instance && r.State == kbroker.StateUnmanaged {
				return nil
			}
		}
		return fmt.Errorf("%s is not unmanaged: %s", *victim.Instance, show(now))
	})
	if err := syscall.Kill(*victim.PID, 0); err != nil {
		t.Errorf("the process of %s did not outlive its agent: %v", *victim.Instance, err)
	}
}

// TestKillEverything: all agents and processes die at once; `up` brings back
// specs, versions and instances.
func TestKillEverything(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/hello/app.yaml")
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.must("scale", "hello", "4")
	apps := c.must("apps", "-o", "json")
	for pid := range c.processes("") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	began := time.Now()
	c.up()
	c.waitReady(30*time.Second, "hello", "hello", 4, nil)
	c.waitReady(30*time.Second, "wordcount", "wordcount", 3, nil)
	t.Logf("everything killed, everything back after %v", time.Since(began).Round(10*time.Millisecond))
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("back after %v, want 30 s", took)
	}
	if out := c.must("call", "hello", "greet", "name=Bob"); !strings.Contains(out, "Hello, Bob") {
		t.Errorf("hello answered %q", out)
	}
	wait.Until(t, 10*time.Second, func() error {
		if now := c.must("apps", "-o", "json"); now != apps {
			return fmt.Errorf("apps before:\n%s\nafter:\n%s", apps, now)
		}
		return nil
	})
}

// TestRollingDeploy changes the program's environment under load.
func TestRollingDeploy(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	end := c.load(30 * time.Second)
	wait.Until(t, 10*time.Second, func() error { return answering(c) })
	for i := range 2 {
		edited := c.example("wordcount", func(s string) string {
			return strings.Replace(s, "    run:", fmt.Sprintf("    env: {ROUND: %q}\n    run:", fmt.Sprint(i)), 1)
		})
		began := time.Now()
		c.must("deploy", edited)
		t.Logf("rolling deploy of version %d: %v", i+2, time.Since(began).Round(10*time.Millisecond))
	}
	c.waitReady(5*time.Second, "wordcount", "wordcount", 3, func(r kbroker.InstanceRow) bool { return r.Version == 3 })
	end()
}

// TestOneHost: a cluster of one works, and comes back.
func TestOneHost(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	c.must("deploy", "../examples/hello/app.yaml")
	for pid := range c.processes("") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	c.up()
	c.waitReady(20*time.Second, "hello", "hello", 3, nil)
	c.must("call", "hello", "greet", "name=Ann")
}

// TestSecondAgentIsRefused: one data directory, one agent.
func TestSecondAgentIsRefused(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	out, code := c.try("agent", "--dir", c.dir+"/h1")
	if code != 4 || !strings.Contains(out, "hint") {
		t.Errorf("a second agent on one directory: exit code %d, want 4 and a hint:\n%s", code, out)
	}
}

// TestDownFromDeadAgents: down ends applications whose agents are dead.
func TestDownFromDeadAgents(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/hello/app.yaml")
	for _, host := range []string{"h1", "h2", "h3"} {
		c.kill(host, true)
	}
	if len(c.processes("")) == 0 {
		t.Fatal("no application outlived its agent: nothing to test")
	}
	c.must("down", "--dir", c.dir)
	if left := c.processes(""); len(left) > 0 {
		t.Errorf("left after down: %v", left)
	}
	if _, err := os.Stat(c.dir); err != nil {
		t.Errorf("down removed the directory: %v", err)
	}
}

// TestDeployWhileAHostIsDead: a new app needs streams of its own, which cannot
// have three replicas then.
func TestDeployWhileAHostIsDead(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.kill("h2", false)
	wait.Until(t, 30*time.Second, func() error {
		for _, h := range c.hostRows() {
			if h.Name == "h2" && h.State == kbroker.HostLost {
				return nil
			}
		}
		return errors.New("h2 is not lost yet")
	})
	c.must("deploy", "../examples/hello/app.yaml")
	c.must("call", "hello", "greet", "name=Ann")
	c.up() // waits until all streams have three replicas
	if out := c.must("status"); !strings.Contains(out, "3 replicas") {
		t.Errorf("status after the host came back:\n%s", out)
	}
}

// TestUpStartsWhatDiesWhileItWaits: an agent that was killed a moment before still looks
// alive, as a process does that the kernel takes down.
func TestUpStartsWhatDiesWhileItWaits(t *testing.T) {
	c := up(t, 1)
	if n := c.signal("h1", agents, syscall.SIGSTOP); n != 1 {
		t.Fatalf("%d agents are stopped", n)
	}
	kill := time.AfterFunc(2*time.Second, func() { c.signal("h1", agents, syscall.SIGKILL) })
	defer kill.Stop()
	c.up()
}
