package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestDrainEachHost empties each host in turn under load, then lets it take
// instances again: no request fails.
func TestDrainEachHost(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	end := c.load(30 * time.Second)
	wait.Until(t, 10*time.Second, func() error { return answering(c) })
	for _, host := range []string{"h1", "h2", "h3"} {
		began := time.Now()
		c.must("drain", host, "--timeout", "30s")
		t.Logf("%s is empty after %v", host, time.Since(began).Round(10*time.Millisecond))
		c.waitReady(10*time.Second, "wordcount", "wordcount", 3, func(r kbroker.InstanceRow) bool {
			if string(*r.Host) == host {
				t.Errorf("%s runs on the drained %s", *r.Instance, host)
			}
			return true
		})
		c.must("undrain", host)
	}
	end()
	c.settled(20*time.Second, "wordcount", 3)
}

// TestReplaceALostCore: a core is lost for good, removed and replaced, under
// load; should it come back, it ends everything and does not run again.
func TestReplaceALostCore(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	end := c.load(30 * time.Second)
	wait.Until(t, 10*time.Second, func() error { return answering(c) })
	c.kill("h2", false)
	wait.Until(t, 20*time.Second, func() error {
		if out, code := c.try("remove", "h2"); code != 0 {
			return fmt.Errorf("remove: exit code %d: %s", code, out)
		}
		return nil
	})
	// Its directory is as it was: it is told when it starts.
	out, code := c.try("up", "--dir", c.dir)
	if code != 1 || !strings.Contains(out, "host h2 was removed from cluster") {
		t.Errorf("up with a removed host: exit code %d, want 1 and the reason:\n%s", code, out)
	}
	wait.Until(t, 15*time.Second, func() error {
		if left := c.processes("h2"); len(left) > 0 {
			return fmt.Errorf("processes of a removed host: %v", left)
		}
		return nil
	})
	c.up()
	end()
	c.whole(20 * time.Second)
	c.settled(20*time.Second, "wordcount", 3)
	rows := c.hostRows()
	if len(rows) != 3 || string(rows[2].Name) != "h4" || rows[2].Role != kbroker.RoleCore {
		t.Errorf("hosts are %s, want h1, h3 and the core h4", show(rows))
	}
}

// TestWorkers runs many workers as processes, loses one and drains one, and
// prints what they cost.
func TestWorkers(t *testing.T) {
	needLong(t)
	const workers = 50
	c := up(t, 3)
	core := func() (rss int64, cpu time.Duration) {
		for pid, cmd := range c.processes("") {
			if strings.Contains(cmd, agents) && !strings.Contains(cmd, "--role worker") {
				r, u := usage(t, pid)
				rss, cpu = rss+r, cpu+u
			}
		}
		return rss / 3, cpu / 3
	}
	measure := func(what string) {
		const window = 10 * time.Second
		_, before := core()
		<-time.After(window)
		rss, after := core()
		t.Logf("%s: a core has %d MiB and takes %.1f %% of a processor", what, rss>>20, 100*(after-before).Seconds()/window.Seconds())
	}
	measure("no workers")
	c.hosts = 3 + workers
	began := time.Now()
	c.up()
	t.Logf("%d workers have joined after %v", workers, time.Since(began).Round(10*time.Millisecond))
	measure(fmt.Sprintf("%d workers", workers))
	var sum, most int64
	for pid, cmd := range c.processes("") {
		if strings.Contains(cmd, "--role worker") {
			rss, _ := usage(t, pid)
			sum, most = sum+rss, max(most, rss)
		}
	}
	t.Logf("a worker agent has %d MiB on average, %d MiB at most", sum/workers>>20, most>>20)
	if most >= 30<<20 {
		t.Errorf("a worker agent has %d MiB, want less than 30", most>>20)
	}
	path := c.example("hello", func(s string) string {
		return strings.Replace(s, "    count: 3", "    count: 60\n    require: [\"role == worker\"]\n    resources: {cpu: 0.01, memory: 16MiB}", 1)
	})
	c.must("deploy", path)
	used := map[string]bool{}
	c.waitReady(30*time.Second, "hello", "hello", 60, func(r kbroker.InstanceRow) bool {
		used[string(*r.Host)] = true
		return true
	})
	if len(used) != workers || used["h1"] {
		t.Errorf("60 instances use %d hosts, want the %d workers", len(used), workers)
	}
	on := c.workersOn()
	t.Logf("workers on each core: %v", on)
	for _, host := range []string{"h1", "h2", "h3"} {
		// 50 by chance on three: fewer than 5 on one in 1 of 12,000 runs.
		if on[host] < 5 {
			t.Errorf("%d of %d workers are connected to %s", on[host], workers, host)
		}
	}
	c.must("drain", "h10", "--timeout", "30s")
	began = time.Now()
	c.kill("h20", false)
	c.waitReady(20*time.Second, "hello", "hello", 60, func(r kbroker.InstanceRow) bool {
		return string(*r.Host) != "h20" && string(*r.Host) != "h10"
	})
	t.Logf("what a killed worker ran is ready elsewhere after %v", time.Since(began).Round(10*time.Millisecond))

	began = time.Now()
	lost := other(c.super())
	c.kill(lost, false)
	wait.Until(t, 20*time.Second, func() error {
		sum, on := 0, c.workersOn()
		for _, n := range on {
			sum += n
		}
		if sum != workers-1 || on[lost] > 0 {
			return fmt.Errorf("with %s dead the workers are on %v", lost, on)
		}
		return nil
	})
	t.Logf("the workers of a killed core are on the others after %v: %v", time.Since(began).Round(10*time.Millisecond), c.workersOn())
	c.waitReady(10*time.Second, "hello", "hello", 60, nil)
}

// usage is what a process holds in memory, and has had of the processors.
func usage(t *testing.T, pid int) (rss int64, cpu time.Duration) {
	t.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, 0 // it has just ended
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	if err != nil {
		t.Fatalf("statm of %d: %v", pid, err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const user, system, ticks = 11, 12, 100 // after the name; proc(5), USER_HZ
	var sum int64
	for _, f := range fields[user : system+1] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			t.Fatalf("stat of %d: %v", pid, err)
		}
		sum += n
	}
	return pages * int64(os.Getpagesize()), time.Duration(sum) * time.Second / ticks
}

// TestHalfOfFourHosts: half of the hosts vanish at once, a core and the worker.
// Nothing is placed elsewhere, and the status says why.
func TestHalfOfFourHosts(t *testing.T) {
	needLong(t)
	c := up(t, 4)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.must("scale", "wordcount", "8")
	before := placed(c.waitReady(10*time.Second, "wordcount", "wordcount", 8, nil))
	victim := other(c.super())
	for _, host := range []string{victim, "h4"} {
		if c.signal(host, "", syscall.SIGKILL) == 0 {
			t.Fatalf("host %s has no process", host)
		}
	}
	var s kbroker.StatusReply
	wait.Until(t, 15*time.Second, func() (err error) {
		if s, err = c.status(); err == nil && !strings.Contains(strings.Join(s.Alarms, "; "), "2 of 4 hosts are lost or suspect, at most 1") {
			err = fmt.Errorf("alarms are %q", s.Alarms)
		}
		return err
	})
	t.Logf("alarms: %q", s.Alarms)
	<-time.After(15 * time.Second) // three times the bound after which one alone is lost
	rows, err := list[kbroker.InstanceRow](c, "ps")
	if err != nil {
		t.Fatal(err)
	}
	if after := placed(rows); after != before {
		t.Errorf("instances were\n%s\nand are\n%s", before, after)
	}
	c.up()
	c.whole(20 * time.Second)
	c.settled(20*time.Second, "wordcount", 8)
}

// TestHalfOfFourHostsForGood: half of the hosts are gone for good. What they ran
// is placed elsewhere once the operator has removed them.
func TestHalfOfFourHostsForGood(t *testing.T) {
	needLong(t)
	c := up(t, 4)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.must("scale", "wordcount", "8")
	c.waitReady(10*time.Second, "wordcount", "wordcount", 8, nil)
	victim := other(c.super())
	for _, host := range []string{victim, "h4"} {
		if c.signal(host, "", syscall.SIGKILL) == 0 {
			t.Fatalf("host %s has no process", host)
		}
	}
	for _, host := range []string{victim, "h4"} {
		wait.Until(t, 15*time.Second, func() error {
			out, code := c.try("remove", host)
			if code != 0 {
				return fmt.Errorf("remove of %s: exit code %d: %s", host, code, out)
			}
			return nil
		})
	}
	for _, r := range c.waitReady(20*time.Second, "wordcount", "wordcount", 8, nil) {
		if host := string(*r.Host); host == victim || host == "h4" {
			t.Errorf("%s is on %s, which is removed", *r.Instance, host)
		}
	}
	if rows := c.hostRows(); len(rows) != 2 {
		t.Errorf("hosts are %s, want two", show(rows))
	}
}

// placed says which instance is where.
func placed(rows []kbroker.InstanceRow) string {
	where := map[string]string{}
	for _, r := range rows {
		if r.Instance != nil && r.Service != kbroker.AllocatorService {
			where[string(*r.Instance)] = string(*r.Host)
		}
	}
	raw, err := json.MarshalIndent(where, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(raw)
}
