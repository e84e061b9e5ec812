package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestUndoRedoAndExplain changes, restarts and rolls back an app under load,
// kills the host that leads and asks why; a follower of the events, started
// before all that, must have seen every event once.
func TestUndoRedoAndExplain(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	spec := c.example("wordcount", func(spec string) string { return strings.Replace(spec, "count: 3", "count: 2", 1) })
	c.must("deploy", spec)
	followed := c.followEvents()
	load := c.load(45 * time.Second)

	if out := c.must("plan", spec); !strings.Contains(out, "a deploy would change nothing") {
		t.Errorf("the plan of what runs is\n%s", out)
	}
	plan := asks[kbroker.PlanReply](c, "plan", c.example("wordcount", nil))
	if plan.Unchanged || plan.Starts != 1 || plan.Leaves != 0 || len(plan.Services) == 0 {
		t.Errorf("the plan to run one more is %+v, want one to start", plan)
	}
	c.must("scale", "wordcount", "3")
	if out, code := c.try("deploy", "--check-index", fmt.Sprint(plan.CheckIndex), spec); code != 4 {
		t.Errorf("deploy of a plan that is old: exit code %d, want 4\n%s", code, out)
	}

	if out, code := c.try("restart", "wordcount/allocator"); code != 4 {
		t.Errorf("restart of the allocator: exit code %d, want 4\n%s", code, out)
	}
	before := c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	c.must("restart", "wordcount")
	after := c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	for _, r := range after {
		if slices.ContainsFunc(before, func(b kbroker.InstanceRow) bool { return *b.Instance == *r.Instance }) {
			t.Errorf("a restart left %s as it was", *r.Instance)
		}
	}
	one := *after[0].Instance
	c.must("restart", "wordcount/wordcount/"+string(one))
	c.waitReady(10*time.Second, "wordcount", "wordcount", 3, func(r kbroker.InstanceRow) bool { return *r.Instance != one })
	c.must("rollback", "wordcount", "1")
	c.waitReady(10*time.Second, "wordcount", "wordcount", 2, nil)
	if out, code := c.try("rollback", "wordcount", "77"); code != 5 || !strings.Contains(out, "it has 1, 2, 3, 4") {
		t.Errorf("rollback to what never was: exit code %d\n%s", code, out)
	}
	rows, err := list[kbroker.HistoryRow](c, "history", "wordcount")
	if err != nil {
		t.Fatal(err)
	}
	var causes []string
	for _, r := range rows {
		causes = append(causes, r.Cause)
	}
	if want := []string{"rollback to 1", "restart", "scale", "deploy"}; !slices.Equal(causes, want) || !rows[0].Wanted || !rows[0].Good {
		t.Errorf("history is %v, want %v, the newest wanted and last well", causes, want)
	}

	c.moved()
	load()
	followed()
	c.must("up", "--hosts", "3", "--dir", c.dir)
	wait.Until(t, 30*time.Second, func() error { return allReady(c) })
	c.explainsWithoutALeader()
}

// asks runs a command that prints one JSON object.
func asks[T any](c *cluster, args ...string) (v T) {
	c.t.Helper()
	cmd := exec.Command(kbrokerBin, append(args, "-o", "json")...)
	cmd.Env = append(os.Environ(), "KBROKER_DIR="+c.dir)
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &v)
	}
	if err != nil {
		c.t.Fatalf("kbroker %v: %v\n%s", args, err, out)
	}
	return v
}

// moved kills the host that leads, with all it runs, and asks why of an instance
// that it ran.
func (c *cluster) moved() {
	c.t.Helper()
	host := ""
	for _, h := range c.hostRows() {
		if h.Super {
			host = string(h.Name)
		}
	}
	rows, err := list[kbroker.InstanceRow](c, "ps", "wordcount")
	if err != nil {
		c.t.Fatal(err)
	}
	there := func(r kbroker.InstanceRow) bool { return r.Host != nil && string(*r.Host) == host }
	i := slices.IndexFunc(rows, func(r kbroker.InstanceRow) bool { return there(r) && r.Service != kbroker.AllocatorService })
	if i < 0 {
		i = slices.IndexFunc(rows, there)
	}
	if i < 0 {
		c.t.Fatalf("the host that leads, %s, runs nothing of wordcount: %s", host, show(rows))
	}
	gone := string(*rows[i].Instance)
	c.kill(host, false)
	wait.Until(c.t, 20*time.Second, func() error {
		out, code := c.try("why", "wordcount/"+gone)
		for _, part := range []string{"host " + host + " is lost", "moved", ", replaced by wordcount-", "(super h"} {
			if code != 0 || !strings.Contains(out, part) {
				return fmt.Errorf("why of %s does not say %q: exit code %d\n%s", gone, part, code, out)
			}
		}
		return nil
	})
	c.t.Logf("why of the moved instance:\n%s", c.must("why", "wordcount/"+gone))
	why := asks[kbroker.WhyReply](c, "why", "wordcount")
	for _, s := range why.App.Services {
		for _, h := range s.Hosts {
			if string(h.Host) == host && (h.Fits || !slices.Contains(h.Why, "lost")) {
				c.t.Errorf("the lost host %s says %+v to one more of %s", host, h, s.Service)
			}
		}
	}
}

// followEvents follows the events in a process of its own; end ends it and holds
// that it has every event once, in order, up to the last that there was.
func (c *cluster) followEvents() (end func()) {
	c.t.Helper()
	cmd := exec.Command(kbrokerBin, "events", "-f", "-n", "1", "-o", "json")
	cmd.Env = append(os.Environ(), "KBROKER_DIR="+c.dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.t.Fatalf("follow the events: %v", err)
	}
	var mu sync.Mutex
	var seen []kbroker.Event
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e kbroker.Event
			if err := json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &e); err != nil {
				c.t.Errorf("events -f printed %q: %v", lines.Text(), err)
			}
			mu.Lock()
			seen = append(seen, e)
			mu.Unlock()
		}
	})
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		reading.Wait()
		_ = cmd.Wait()
	}
	c.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			stop()
		}
	})
	return func() {
		c.t.Helper()
		latest, err := list[kbroker.Event](c, "events", "-n", "1")
		if err != nil || len(latest) != 1 {
			c.t.Fatalf("the latest event: %v, %v", latest, err)
		}
		wait.Until(c.t, 10*time.Second, func() error {
			mu.Lock()
			defer mu.Unlock()
			if n := len(seen); n == 0 || seen[n-1].Sequence < latest[0].Sequence {
				return fmt.Errorf("the follower has %d events and not yet %d", n, latest[0].Sequence)
			}
			return nil
		})
		stop()
		kinds := map[kbroker.EventKind]int{}
		for i, e := range seen {
			kinds[e.Kind]++
			if i > 0 && e.Sequence != seen[i-1].Sequence+1 {
				c.t.Errorf("event %d follows %d", e.Sequence, seen[i-1].Sequence)
			}
		}
		for _, k := range []kbroker.EventKind{
			kbroker.EventVersionStored, kbroker.EventRolloutDone, kbroker.EventPlaced, kbroker.EventStopped, kbroker.EventReplacing,
			kbroker.EventReady, kbroker.EventExited, kbroker.EventLeader, kbroker.EventHostLost, kbroker.EventMoved, kbroker.EventRefused,
		} {
			if kinds[k] == 0 {
				c.t.Errorf("no event %s was followed; there were %v", k, kinds)
			}
		}
		c.t.Logf("followed %d events over the death of a core: %v", len(seen), kinds)
	}
}

// explainsWithoutALeader takes the majority away and asks on.
func (c *cluster) explainsWithoutALeader() {
	c.t.Helper()
	c.kill("h2", true)
	c.kill("h3", true)
	wait.Until(c.t, 20*time.Second, func() error {
		out, code := c.try("why", "wordcount")
		for _, part := range []string{"no super leads", "the control store cannot be written", "latest events", "suspect"} {
			if code != 0 || !strings.Contains(out, part) {
				return fmt.Errorf("why without a majority does not say %q: exit code %d\n%s", part, code, out)
			}
		}
		return nil
	})
}
