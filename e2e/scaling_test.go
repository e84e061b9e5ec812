package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

const (
	// A waiter does 400 requests in a second at its bound, and is to do 280: 8 of 20 ms each,
	// of which 0.7 are to be under way.
	waiterRate = 280
	// scaledWithin is how long after the load has doubled the instances that it needs are
	// ready, calmWithin how long till requests take no longer than before.
	scaledWithin, calmWithin = 5 * time.Second, 10 * time.Second
)

// TestTheLoadDoubles: within a second, of requests that wait.
func TestTheLoadDoubles(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.deployWaiters("{min: 2, max: 12}", "")
	c.waiters(20*time.Second, 2)
	const before, after = 15 * time.Second, 25 * time.Second
	r := c.startChild(rateJob, []string{"waiter.wait", rateFor(2, before), rateFor(4, after)})
	began := time.Now()
	<-time.After(time.Until(began.Add(before)))
	c.waiters(scaledWithin+10*time.Second, 4)
	ready := time.Since(began) - before
	<-time.After(time.Until(began.Add(before + after)))
	var seen rated
	r.report(&seen)
	failed, doubled := 0, began.Add(before)
	var quiet, calm time.Duration
	for n, s := range seen.Seconds {
		failed += s.Failed
		switch at := s.At.Sub(doubled); {
		case at < -time.Second && at > -6*time.Second:
			quiet = max(quiet, s.P99)
		case at >= 0 && n < len(seen.Seconds)-1 && s.P99 > 2*max(quiet, 50*time.Millisecond):
			calm = at + time.Second
		}
	}
	t.Logf("RESULT the load doubles: what it needs is ready after %v, requests take no longer than before after %v, %d failed\n%v", ready.Round(10*time.Millisecond), calm, failed, seen)
	if ready > scaledWithin || calm > calmWithin || failed > 0 {
		t.Errorf("ready after %v, want %v; calm after %v, want %v; %d failed: %q", ready, scaledWithin, calm, calmWithin, failed, seen.Errs)
	}
}

// TestABurstIsOver: what two thirds of the instances' places are enough for goes on so when it was
// more for a second, though there are no more instances, and the machine has other work.
func TestABurstIsOver(t *testing.T) {
	needLong(t)
	const (
		before, after = 5 * time.Second, 30 * time.Second
		over          = 25 * time.Second // a thousand wait, for whom there is little room
		asBefore      = time.Second
	)
	c := up(t, 3)
	c.deployWaiters("2", "")
	c.deployObjects(3)
	c.waiters(20*time.Second, 2)
	counters := c.startChild(countJob, []string{(4 * calmPause).String()})
	r := c.startChild(rateJob, []string{"waiter.wait", rateFor(2, before), rateFor(6, time.Second), rateFor(2, after)})
	<-time.After(before + time.Second + after)
	var seen rated
	r.report(&seen)
	var counted counting
	counters.report(&counted)
	failed := 0
	for _, s := range seen.Seconds {
		failed += s.Failed
		if at := s.At.Sub(seen.Seconds[0].At) - before - time.Second; at > over && s.P99 > asBefore {
			t.Errorf("%v behind the burst requests take %v", at.Round(time.Second), s.P99)
		}
	}
	if t.Logf("RESULT a burst: %d failed\n%v", failed, seen); failed > 0 {
		t.Errorf("%d failed: %q", failed, seen.Errs)
	}
}

// TestAllocatorsAreKilledUnderLoad: each app loses both of its allocators 20 times.
// No caller notices, no other number of instances is wanted, and no shard moves.
func TestAllocatorsAreKilledUnderLoad(t *testing.T) {
	needLong(t)
	const kills, every = 20, 4 * time.Second
	c := up(t, 3)
	c.deployWaiters("{min: 2, max: 12}", "")
	c.deployObjects(3)
	c.waiters(20*time.Second, 2)
	waiting := c.startChild(rateJob, []string{"waiter.wait", rateFor(2, time.Hour)})
	counters := c.startChild(countJob, []string{(4 * calmPause).String()})
	<-time.After(10 * time.Second) // what it is scaled by is an average
	began, owned := time.Now(), c.shardsOf("counter")
	for range kills {
		<-time.After(every)
		for pid, cmd := range c.processes("") {
			if strings.Contains(cmd, allocators) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					t.Fatal(err)
				}
			}
		}
		if is := c.shardsOf("counter"); show(is) != show(owned) {
			t.Fatalf("shards are owned as %v, were as %v", show(is), show(owned))
		}
	}
	<-time.After(10 * time.Second)
	var rate rated
	waiting.report(&rate)
	var counted counting
	counters.report(&counted)
	failed := 0
	for _, s := range rate.Seconds {
		failed += s.Failed
	}
	events, err := list[kbroker.Event](c, "events", "--app", "waiter", "--since", time.Since(began).String())
	if err != nil {
		t.Fatal(err)
	}
	other := 0
	for _, e := range events {
		if e.Kind == kbroker.EventDemand {
			other++
			t.Log(e.Message)
		}
	}
	t.Logf("RESULT both allocators of each app killed %d times: %d requests failed, %d calls of counters failed and %d are unknown, other demands: %d", kills, failed, counted.Failed, counted.Unknown, other)
	if failed > 0 || counted.Failed+counted.Unknown > 0 || other > 0 {
		t.Errorf("%q", rate.Errs)
		t.Log(rate)
	}
}

// TestANewInstanceHasItsShare: a new, empty instance joins an app under load, whose policy is
// that all have about the same.
func TestANewInstanceHasItsShare(t *testing.T) {
	needLong(t)
	const (
		rate     = 1000 // calls in a second, of objects
		joins    = 15 * time.Second
		unevenly = 0.2 // of the even load
	)
	c := up(t, 3)
	dir := t.TempDir()
	buildInto(t, dir, "counter", "./testdata/counter")
	path := filepath.Join(dir, "app.yaml")
	writeFile(t, path, "name: counter\nallocator: {policy: balanced}\nservices:\n  counter:\n    run: counter\n    objects: [counter]\n    count: 3\n", 0o600)
	c.must("deploy", path)
	c.waitReady(30*time.Second, "counter", "counter", 3, nil)
	job := c.startChild(rateJob, []string{"counter/counter:.get", fmt.Sprintf("%d/1h", rate)})
	off := func(instances int) (float64, string) {
		var r kbroker.AllocatorReply
		out, code := c.try("allocator", "counter", "-o", "json")
		if code != 0 {
			return 1, out
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return 1, out
		}
		all, most, known := 0.0, 0.0, 0
		for _, i := range r.Instances {
			if i.TurnsPerS != nil {
				all, known = all+*i.TurnsPerS, known+1
			}
		}
		text := ""
		for _, i := range r.Instances {
			if i.TurnsPerS != nil {
				most = max(most, math.Abs(*i.TurnsPerS*float64(known)/all-1))
				text += fmt.Sprintf("%s %.0f (%d shards) ", i.Instance, *i.TurnsPerS, i.Shards)
			}
		}
		if known < instances {
			return 1, text
		}
		return most, text
	}
	even := func(within time.Duration, instances int) time.Duration {
		t.Helper()
		began := time.Now()
		wait.Until(t, within, func() error {
			if by, text := off(instances); by > unevenly {
				return fmt.Errorf("uneven by %.2f: %s", by, text)
			}
			return nil
		})
		return time.Since(began)
	}
	even(time.Minute, 3)
	<-time.After(20 * time.Second) // the averages of its loads
	c.must("scale", "counter", "4")
	c.waitReady(30*time.Second, "counter", "counter", 4, nil)
	took := even(time.Minute, 4)
	<-time.After(10 * time.Second)
	by, text := off(4)
	var r rated
	job.report(&r)
	failed, sent := 0, 0
	for _, s := range r.Seconds {
		failed, sent = failed+s.Failed, sent+s.Sent
	}
	t.Logf("RESULT a new instance has its share after %v, 10 s later they are off by %.2f: %s; %d of %d calls failed", took.Round(10*time.Millisecond), by, text, failed, sent)
	if failed > 0 || took > joins {
		t.Errorf("want within %v, and none failed: %q", joins, r.Errs)
	}
}

// rateFor is the load that so many waiters are needed for.
func rateFor(n int, lasts time.Duration) string {
	return fmt.Sprintf("%d/%v", n*waiterRate*19/20, lasts)
}

// deployWaiters deploys the waiter with such a count; settings are lines of its service.
func (c *cluster) deployWaiters(count, settings string) {
	c.t.Helper()
	dir := c.t.TempDir()
	buildInto(c.t, dir, "waiter", "./testdata/waiter")
	path := filepath.Join(dir, "app.yaml")
	writeFile(c.t, path, "name: waiter\nservices:\n  waiter:\n    run: waiter\n    count: "+count+"\n"+settings, 0o600)
	c.must("deploy", path)
}

// waiters waits until so many are ready, and not fewer are wanted.
func (c *cluster) waiters(timeout time.Duration, n int) {
	c.t.Helper()
	wait.Until(c.t, timeout, func() error {
		rows, err := list[kbroker.InstanceRow](c, "ps", "waiter")
		if err != nil {
			return err
		}
		ready := 0
		for _, r := range rows {
			if r.Service == "waiter" && r.State == kbroker.StateReady {
				ready++
			}
		}
		if ready < n {
			why, _ := c.try("why", "waiter")
			return fmt.Errorf("%d waiters are ready, want %d: %s", ready, n, why)
		}
		return nil
	})
}

// shardsOf is how many shards of an app's objects each instance owns; none is on its way.
func (c *cluster) shardsOf(app string) map[kbroker.InstanceID]int {
	c.t.Helper()
	of := map[kbroker.InstanceID]int{}
	wait.Until(c.t, 20*time.Second, func() error {
		var r kbroker.ObjectOwnersReply
		out, code := c.try("objects", app, "-o", "json")
		if code != 0 {
			return fmt.Errorf("kbroker objects: exit code %d: %s", code, out)
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return fmt.Errorf("kbroker objects printed %q: %w", out, err)
		}
		if r.Unowned > 0 || len(r.Moving) > 0 {
			return fmt.Errorf("%d shards have no owner, %d are on their way", r.Unowned, len(r.Moving))
		}
		clear(of)
		for _, o := range r.Owners {
			of[o.Instance] = o.Shards
		}
		return nil
	})
	return of
}
