package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
)

// restartedWithin is how long a process that was killed may take to run again.
const restartedWithin = time.Second

// crashApp writes an app of one service whose program is a script. env STARTS names a
// file to which it may append, also as another user.
func crashApp(t *testing.T, count int, script string) (spec, starts string) {
	t.Helper()
	dir := shared(t)
	starts = filepath.Join(dir, "starts")
	writeFile(t, starts, "", 0o600)
	if err := os.Chmod(starts, 0o666); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "web.sh"), "#!/bin/sh\n"+script, 0o755)
	spec = filepath.Join(dir, "app.yaml")
	writeFile(t, spec, fmt.Sprintf("name: shop\nservices:\n  web:\n    run: web.sh\n    count: %d\n    env: {STARTS: %q}\n    health: {ready: alive}\n", count, starts), 0o600)
	return spec, starts
}

// ended waits until an instance that had the given pid runs again, and returns its row
// and how long after began that was.
func (c *cluster) ended(began time.Time, pid int) (row kbroker.InstanceRow, took time.Duration) {
	c.t.Helper()
	wait.Until(c.t, 10*time.Second, func() error {
		rows, err := c.ready("shop", "web", 1, nil)
		if err != nil {
			return err
		}
		if row = rows[0]; *row.PID == pid {
			return fmt.Errorf("process %d is said to run", pid)
		}
		return nil
	})
	return row, row.StartedAt.Sub(began)
}

// TestACrashedProcessRunsAgainAndSaysHowItEnded: killed, and by a bug of its own; and
// when its agent was killed, and the next one is not its parent.
func TestACrashedProcessRunsAgainAndSaysHowItEnded(t *testing.T) {
	c := up(t, 1)
	spec, _ := crashApp(t, 1, `head -c 6000 /dev/zero | tr '\0' x
echo; echo last words
trap 'exit 7' USR1
while :; do sleep 0.05; done
`)
	c.must("deploy", spec)
	row := c.waitReady(5*time.Second, "shop", "web", 1, nil)[0]
	for _, by := range []struct {
		signal  syscall.Signal
		adopted bool
		want    string
	}{
		{syscall.SIGKILL, false, "ended by SIGKILL"},
		{syscall.SIGSEGV, false, "ended by SIGSEGV"},
		{syscall.SIGUSR1, true, "exit code 7"},
	} {
		if by.adopted {
			c.kill("h1", true)
			c.up()
			if again := c.waitReady(5*time.Second, "shop", "web", 1, nil)[0]; *again.PID != *row.PID {
				t.Fatalf("the end of an agent ended process %d: %s", *row.PID, show(again))
			}
		}
		c.saysLastWords(row)
		began, pid := time.Now(), *row.PID
		if err := syscall.Kill(pid, by.signal); err != nil {
			t.Fatal(err)
		}
		var took time.Duration
		row, took = c.ended(began, pid)
		t.Logf("%s: it runs again after %v", by.want, took.Round(time.Millisecond))
		if took > restartedWithin {
			t.Errorf("%s: it runs again after %v, want %v", by.want, took, restartedWithin)
		}
		if row.Exit == nil || row.Exit.Unknown || !strings.HasPrefix(row.Message, by.want+": xxx") || !strings.HasSuffix(row.Message, "last words") {
			t.Errorf("%s: ps says %s", by.want, show(row))
		}
		if code := row.Exit.Code; by.adopted && (code == nil || *code != 7) || !by.adopted && row.Exit.Signal != by.want[len("ended by "):] {
			t.Errorf("%s: ps says it ended so: %s", by.want, show(row.Exit))
		}
		if n := len(row.Message); n < 4000 || n > 4700 {
			t.Errorf("%s: a message of %d bytes, want the last 4 KiB of the output", by.want, n)
		}
	}
}

// saysLastWords waits until an instance's program has come to its loop.
func (c *cluster) saysLastWords(row kbroker.InstanceRow) {
	c.t.Helper()
	wait.Until(c.t, 5*time.Second, func() error {
		if n := strings.Count(c.must("logs", "shop"), "last words"); n != row.Restarts+1 {
			return fmt.Errorf("it has said its last words %d times, want %d", n, row.Restarts+1)
		}
		return nil
	})
}

// kinds are the events of an app, of one kind.
func (c *cluster) kinds(app string, kind kbroker.EventKind) (out []kbroker.Event, err error) {
	all, err := list[kbroker.Event](c, "events", "--app", app)
	for _, e := range all {
		if e.Kind == kind {
			out = append(out, e)
		}
	}
	return out, err
}

// TestACrashLoopIsToldOnceAndTriedOnEveryHostOnce: a program that ends everywhere is
// tried on all hosts, is started seldom then, and stays, whoever leads.
func TestACrashLoopIsToldOnceAndTriedOnEveryHostOnce(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	spec, starts := crashApp(t, 1, "date +%s.%N >> \"$STARTS\"\necho boom\nexit 1\n")
	began := time.Now()
	c.must("deploy", "--detach", spec)
	c.loopsOn(3)
	t.Logf("tried on three hosts after %v", time.Since(began).Round(time.Second))
	rows := c.failing()
	if len(rows) != 1 || rows[0].State != kbroker.StateBackoff || !strings.HasPrefix(rows[0].Message, "crash loop: exit code 1: boom") {
		t.Errorf("ps says %s", show(rows))
	}
	last := *rows[0].Instance
	if why := c.must("why", "shop/"+string(last)); !strings.Contains(why, "because    crash loop: exit code 1: boom") || !strings.Contains(why, "failed on  h") {
		t.Errorf("why says\n%s", why)
	}
	alarm := fmt.Sprintf("app shop: %s on %s in a crash loop: exit code 1", last, *rows[0].Host)
	if s := asks[kbroker.StatusReply](c, "status"); !slices.Contains(s.Alarms, alarm) {
		t.Errorf("status says %q, want %q", s.Alarms, alarm)
	}
	if found, err := c.findings(); err != nil || !slices.ContainsFunc(found, func(f client.Finding) bool { return f.Check == "crashes" && f.App == "shop" }) {
		t.Errorf("the doctor finds %s (%v)", show(found), err)
	}
	for _, h := range c.hostRows() {
		if h.Super { // another one leads from here on
			c.kill(string(h.Name), true)
		}
	}
	c.up()
	<-time.After(time.Until(began.Add(time.Minute))) // what is counted is what happens in a minute
	c.loopsOn(3)
	if rows := c.failing(); len(rows) != 1 || *rows[0].Instance != last {
		t.Errorf("%s was not left where it was: %s", last, show(rows))
	}
	if moved, err := c.kinds("shop", kbroker.EventMoved); err != nil || len(moved) != 2 {
		t.Errorf("%d moves, want 2 (%v): %s", len(moved), err, show(moved))
	}
	raw, err := os.ReadFile(starts)
	if err != nil {
		t.Fatal(err)
	}
	n := strings.Count(string(raw), "\n")
	t.Logf("%d starts in a minute: %s", n, strings.Fields(string(raw)))
	// 5 on the first host, 2 on each of the others, then one each 25 s and 30 s.
	if n < 9 || n > 12 {
		t.Errorf("%d starts in a minute, want 9 to 12", n)
	}
}

// failing are the instances of the service that are in a crash loop.
func (c *cluster) failing() []kbroker.InstanceRow {
	c.t.Helper()
	rows, err := list[kbroker.InstanceRow](c, "ps", "shop")
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.DeleteFunc(rows, func(r kbroker.InstanceRow) bool { return !r.Failing || r.Service != "web" })
}

// loopsOn waits until crash loops were told of so many hosts, and holds that each was
// told once, with all that is known of it.
func (c *cluster) loopsOn(hosts int) {
	c.t.Helper()
	wait.Until(c.t, time.Minute, func() error {
		loops, err := c.kinds("shop", kbroker.EventCrashLoop)
		on := map[kbroker.HostID]int{}
		for _, e := range loops {
			on[e.Host]++
			if e.Exit == nil || e.Exit.Code == nil || *e.Exit.Code != 1 || e.Exit.OOM || !strings.HasSuffix(e.Message, "boom") || on[e.Host] > 1 {
				raw, _ := json.Marshal(loops)
				c.t.Fatalf("a crash loop is told more than once, or not as it is: %s", raw)
			}
		}
		if err == nil && len(on) != hosts {
			err = fmt.Errorf("crash loops were told of %v, want %d hosts: %s", on, hosts, show(c.failing()))
		}
		return err
	})
}

// TestWhatFailsOnOneHostDoesWellOnAnother: the deploy succeeds.
func TestWhatFailsOnOneHostDoesWellOnAnother(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	spec, _ := crashApp(t, 3, `if grep -q '"host":"h1"' "$KBROKER_INSTANCE"; then echo boom; exit 1; fi
echo well
exec sleep 1000
`)
	began := time.Now()
	c.must("deploy", spec)
	t.Logf("deployed after %v", time.Since(began).Round(100*time.Millisecond))
	c.loopsOn(1)
	c.waitReady(20*time.Second, "shop", "web", 3, func(r kbroker.InstanceRow) bool { return *r.Host != "h1" })
	if moved, err := c.kinds("shop", kbroker.EventMoved); err != nil || len(moved) != 1 || moved[0].Host != "h1" {
		t.Errorf("moves (%v): %s", err, show(moved))
	}
	if rows := c.failing(); len(rows) != 0 {
		t.Errorf("ps says %s", show(rows))
	}
}
