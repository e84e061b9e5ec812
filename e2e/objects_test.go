package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

const (
	// pauseWithin is how long after a fault calls are looked at for how long they took.
	pauseWithin = 12 * time.Second
	// Callers of the bank's load: many, and few.
	manyCallers, fewCallers = 100, 16
	// calmPause is that of callers who leave the processors some time, so that what calls take
	// is told by what is done to the objects.
	calmPause    = 100 * time.Millisecond
	bankAccounts = "1000"
)

// bankLoad builds the load of examples/bank, once.
var bankLoad = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(filepath.Dir(kbrokerBin), "bankload")
	out, err := exec.Command("go", "build", "-o", bin, "../examples/bank/load").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build the bank's load: %w: %s", err, out)
	}
	return bin, err
})

// objectApps are the apps of the tests of objects; each has a service of its name.
var objectApps = []string{"bank", "counter"}

// deployObjects deploys a bank and counters, with so many instances each, one on each host
// where there are as many. settings are lines of both services.
func (c *cluster) deployObjects(count int, settings ...string) {
	c.t.Helper()
	dir := c.t.TempDir()
	buildInto(c.t, dir, "bank", "../examples/bank")
	buildInto(c.t, dir, "counter", "./testdata/counter")
	for app, kind := range map[string]string{"bank": "account", "counter": "counter"} {
		spec := fmt.Sprintf("name: %s\nservices:\n  %s:\n    run: %s\n    objects: [%s]\n    count: %d\n    spread: host\n", app, app, app, kind, count)
		for _, s := range settings {
			spec += "    " + s + "\n"
		}
		path := filepath.Join(dir, app+".yaml")
		writeFile(c.t, path, spec, 0o600)
		c.must("deploy", path)
	}
	c.objectsReady(count)
}

func (c *cluster) objectsReady(count int) {
	c.t.Helper()
	for _, app := range objectApps {
		c.waitReady(30*time.Second, app, app, count, nil)
	}
}

// objectsSettled is allSettled for the apps of the tests of objects.
func (c *cluster) objectsSettled(count int) {
	c.t.Helper()
	c.whole(60 * time.Second)
	c.allSettled(60*time.Second, map[string]int{"bank": count, "counter": count})
}

// banked is the line that the bank's load prints.
type banked struct {
	OK        int     `json:"ok"`
	Failed    int     `json:"failed"`
	Unknown   int     `json:"unknown"`
	Refused   int     `json:"refused"`
	Lost      *int    `json:"lost"`
	Doubled   *int    `json:"doubled"`
	Conserved bool    `json:"conserved"`
	PerSecond float64 `json:"ok_per_s"`
	P99       int64   `json:"p99_us"`
	Longest   int64   `json:"max_us"`
}

// objectLoad is a bank and counters under load.
type objectLoad struct {
	c              *cluster
	began          time.Time
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	ended          bool
	counters       *childRun
	counts         counting
}

// startObjects puts the bank under load, and counters under calls whose history is checked.
// counters is the pause between two calls of one of their callers. It returns when both are
// answered. more are flags of the bank's load.
func (c *cluster) startObjects(callers int, counters time.Duration, more ...string) *objectLoad {
	c.t.Helper()
	bin, err := bankLoad()
	if err != nil {
		c.t.Fatal(err)
	}
	l := &objectLoad{c: c, began: time.Now()}
	journal := filepath.Join(c.t.TempDir(), "journal")
	args := append([]string{"-duration", "1h", "-callers", strconv.Itoa(callers), "-accounts", bankAccounts, "-journal", journal}, more...)
	l.cmd = c.client(context.Background(), bin, args...)
	l.cmd.Stdout, l.cmd.Stderr = &l.stdout, &l.stderr
	if err := l.cmd.Start(); err != nil {
		c.t.Fatalf("start the bank's load: %v", err)
	}
	c.t.Cleanup(func() {
		if !l.ended {
			_ = l.cmd.Process.Kill()
			_ = l.cmd.Wait()
		}
	})
	l.counters = c.startChild(countJob, []string{counters.String()})
	wait.Until(c.t, time.Minute, func() error {
		raw, err := os.ReadFile(journal)
		if err == nil && bytes.Count(raw, []byte(`"outcome":"ok"`)) < 2000 {
			err = fmt.Errorf("the bank is not under load yet, its journal has %d bytes: %s", len(raw), l.stderr.String())
		}
		return err
	})
	return l
}

// startCalm is startObjects with a load that leaves the processors some time.
func (c *cluster) startCalm() *objectLoad {
	c.t.Helper()
	return c.startObjects(fewCallers, 4*calmPause, "-pause", calmPause.String())
}

// end ends the load and holds what must hold under any fault: nothing that was acknowledged
// is lost, nothing took effect twice, no money was made, and every counter's history is
// linearizable.
func (l *objectLoad) end() (banked, counting) {
	t := l.c.t
	t.Helper()
	l.counters.report(&l.counts)
	l.ended = true
	_ = l.cmd.Process.Signal(syscall.SIGINT)
	err := l.cmd.Wait()
	var b banked
	if jErr := json.Unmarshal(bytes.TrimSpace(l.stdout.Bytes()), &b); jErr != nil || b.Lost == nil || b.Doubled == nil {
		t.Fatalf("the bank's load printed %q (%v, %v): %s", l.stdout.String(), err, jErr, l.stderr.String())
	}
	n := l.counts
	t.Logf("RESULT bank: %s", bytes.TrimSpace(l.stdout.Bytes()))
	t.Logf("RESULT counters: %d calls of %d counters, %d failed, %d unknown, %d late or failed, %d histories not linearizable, %d not checked",
		n.Calls, n.Counters, n.Failed, n.Unknown, len(n.Late), len(n.Broken), n.Skipped)
	if err != nil || *b.Lost != 0 || *b.Doubled != 0 || !b.Conserved || b.PerSecond < 10 {
		t.Errorf("the bank does not hold (%v): %s\n%s", err, l.stdout.String(), last(l.stderr.String(), 4000))
	}
	if len(n.Broken) > 0 || n.Skipped > 0 || n.Calls == 0 {
		t.Errorf("%d histories of counters are not linearizable, %d not checked, of %d calls; the first: %s", len(n.Broken), n.Skipped, n.Calls, append(n.Broken, "")[0])
	}
	return b, n
}

// endWithoutFailure is end, and holds that every call was answered.
func (l *objectLoad) endWithoutFailure() (banked, counting) {
	l.c.t.Helper()
	b, n := l.end()
	if b.Failed+b.Unknown+n.Failed+n.Unknown > 0 {
		l.c.t.Errorf("%d calls of the bank failed, %d are unknown; of counters %d and %d; want 0\n%s\n%s",
			b.Failed, b.Unknown, n.Failed, n.Unknown, last(l.stderr.String(), 4000), show(failedOf(n.Late)))
	}
	return b, n
}

func failedOf(late []slowCall) []slowCall {
	return slices.DeleteFunc(slices.Clone(late), func(p slowCall) bool { return p.Err == "" })
}

// last is the end of a text.
func last(text string, bytes int) string { return text[max(0, len(text)-bytes):] }

// pause is how long a caller of counters was without a prompt answer, at most, from a call on
// that was under way at a fault, or was begun within pauseWithin after it: calls that took
// long, or failed, one after the other. Only after the end of the load.
func (n counting) pause(fault time.Time) time.Duration {
	const prompt = 500 * time.Millisecond
	type row struct{ began, ended time.Time }
	rows, longest := map[int]row{}, time.Duration(0)
	for _, p := range n.Late { // by caller in the order of their times
		ended := p.Sent.Add(p.Took)
		if p.Took < prompt && p.Err == "" || !ended.After(fault) {
			continue
		}
		r, known := rows[p.Caller]
		if !known || p.Sent.Sub(r.ended) > 3*n.Pause {
			r.began = p.Sent
		}
		if r.ended = ended; r.began.Before(fault.Add(pauseWithin)) {
			longest = max(longest, r.ended.Sub(r.began))
		}
		rows[p.Caller] = r
	}
	return longest.Round(time.Millisecond)
}

// p99 is what 99 of 100 calls of counters took at most that were begun between two times;
// under lateCall it is lateCall. Only after the end of the load.
func (n counting) p99(from, to time.Time) time.Duration {
	calls := 0
	for s, of := range n.Begun {
		if s >= from.Unix() && s <= to.Unix() {
			calls += of
		}
	}
	late := []time.Duration{lateCall}
	for _, p := range n.Late {
		if s := p.Sent.Unix(); s >= from.Unix() && s <= to.Unix() {
			late = append(late, p.Took)
		}
	}
	slices.Sort(late)
	return late[max(len(late)-1-calls/100, 0)].Round(time.Millisecond)
}

// pauses logs and holds how long objects paused after faults.
func (n counting) pauses(t *testing.T, what string, faults []time.Time, want time.Duration) {
	t.Helper()
	var all []time.Duration
	for _, f := range faults {
		all = append(all, n.pause(f))
	}
	t.Logf("RESULT %s: objects paused %v after %d faults", what, all, len(faults))
	if most := slices.Max(all); most > want {
		t.Errorf("%s: objects paused %v, want at most %v", what, most, want)
	}
}

// instanceOn is a running instance of an app, on a host (empty: any).
func (c *cluster) instanceOn(app, host string) kbroker.InstanceRow {
	c.t.Helper()
	rows, err := list[kbroker.InstanceRow](c, "ps")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, r := range rows {
		if string(r.App) == app && string(r.Service) == app && r.State == kbroker.StateReady && r.PID != nil && (host == "" || string(*r.Host) == host) {
			return r
		}
	}
	c.t.Fatalf("no instance of %s is ready on %q: %s", app, host, show(rows))
	return kbroker.InstanceRow{}
}

// agentPID is the process of a host's agent.
func (c *cluster) agentPID(host string) int {
	c.t.Helper()
	for pid, cmd := range c.processes(host) {
		if strings.Contains(cmd, agents) {
			return pid
		}
	}
	c.t.Fatalf("host %s has no agent", host)
	return 0
}
