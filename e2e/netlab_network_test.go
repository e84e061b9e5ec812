//go:build linux

package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/e2e/netlab"
	"github.com/kbroker/kbroker/internal/wait"
)

const (
	lossTime  = 2 * time.Minute
	cutTime   = 20 * time.Second
	pauseTime = 30 * time.Second
	// suspendTime is long enough for the other to leave the connection.
	suspendTime = 30 * time.Second
	// caughtUp bounds how long a core may take to catch up with the writes that
	// it missed: each is a sync of its own, some hundreds in a second.
	caughtUp = 90 * time.Second
)

// TestNetlabLoss: with 20 % of all frames lost no host is declared lost, and
// nothing moves. There is no load: at this loss the network carries none.
func TestNetlabLoss(t *testing.T) {
	needLong(t)
	c := newLab(t, 3, 3, 0)
	c.deployBoth()
	c.allSettled(20*time.Second, both)
	before := placed(c.rows())
	written := c.startWrites(c.servers())
	probed := c.startProbes(c.servers())
	c.lab.Loss(20)
	began := time.Now()
	answered, unanswered := 0, 0
	states := map[kbroker.HostState]int{}
	for time.Since(began) < lossTime {
		rows, err := list[kbroker.HostRow](c.cluster, "hosts")
		if err != nil {
			unanswered++ // a command's two seconds may be too short then
			continue
		}
		answered++
		for _, h := range rows {
			states[h.State]++
			if h.State == kbroker.HostLost {
				t.Errorf("%v after the loss began, %s is lost", time.Since(began).Round(time.Second), h.Name)
			}
		}
		<-time.After(500 * time.Millisecond)
	}
	c.lab.Heal()
	t.Logf("RESULT hosts was asked %d times, answered %d times: %v", answered+unanswered, answered, states)
	if answered < 10 {
		t.Errorf("hosts was answered %d times, want enough to say something", answered)
	}
	c.trace(began)
	c.whole(30 * time.Second)
	if after := placed(c.rows()); after != before {
		t.Errorf("instances were\n%s\nand are\n%s", before, after)
	}
	probed().show(t, began)
	written()
	c.allSettled(20*time.Second, both)
}

// rows are those of all instances that are ready.
func (c *labCluster) rows() []kbroker.InstanceRow {
	c.t.Helper()
	var all []kbroker.InstanceRow
	for app := range both {
		all = append(all, c.waitReady(20*time.Second, app, app, 3, nil)...)
	}
	return all
}

// TestNetlabCuts: two cores do not hear each other, or only one of them hears the
// other, the super's host among them.
func TestNetlabCuts(t *testing.T) {
	needLong(t)
	c := newLab(t, 3, 3, 0)
	c.deployBoth()
	for _, cut := range []struct {
		name string
		cut  func(super, other *netlab.Host)
	}{
		{"the super's host and another do not hear each other", c.lab.CutPair},
		{"another host does not hear the super's", c.lab.CutOneWay},
		{"the super's host does not hear another", func(super, other *netlab.Host) { c.lab.CutOneWay(other, super) }},
	} {
		super := c.super()
		c.disturb(cut.name, cutTime, func() { cut.cut(c.hostOf(super), c.hostOf(other(super))) }, c.lab.Heal)
	}
}

// TestNetlabPause: all of a host stops for a while and goes on: the super's, and
// another one.
func TestNetlabPause(t *testing.T) {
	needLong(t)
	c := newLab(t, 3, 3, 0)
	c.deployBoth()
	for _, role := range []string{"the super's host", "another host"} {
		c.allSettled(30*time.Second, both)
		h := c.victim(role == "the super's host")
		c.disturb(role+" is paused", pauseTime, h.Pause, h.Resume)
	}
}

// TestNetlabTheFounderOfTwoSleeps: the founder judges alone, and what it did not
// hear while its machine was suspended says nothing. Awake, it calls nobody lost
// and moves nothing.
func TestNetlabTheFounderOfTwoSleeps(t *testing.T) {
	needLong(t)
	c := newLab(t, 2, 2, 0)
	c.deployBoth()
	c.allSettled(20*time.Second, both)
	for app := range both {
		wait.Until(t, time.Minute, func() error { return apart(c.cluster, app, 3) })
	}
	before, founder := c.incarnations(), c.lab.Host(1)
	end := c.load(suspendTime + 20*time.Second)
	wait.Until(t, 10*time.Second, func() error { return answering(c.cluster) })
	founder.Pause()
	founder.Cut() // a machine that is suspended receives nothing
	<-time.After(suspendTime)
	founder.Heal()
	founder.Resume()
	healed := time.Now()
	c.whole(20 * time.Second)
	t.Logf("RESULT whole %v after the founder of two was suspended for %v", time.Since(healed).Round(10*time.Millisecond), suspendTime)
	end()
	c.allSettled(20*time.Second, both)
	if after := c.incarnations(); !maps.Equal(before, after) {
		t.Errorf("before %s, after %s; want the same", show(before), show(after))
	}
	events, err := list[kbroker.Event](c.cluster, "events", "-n", "200")
	if err != nil || len(events) == 0 {
		t.Errorf("events: %d of them, %v", len(events), err)
	}
	for _, e := range events {
		if e.Kind == kbroker.EventHostLost {
			t.Errorf("a host was called lost: %s", show(e))
		}
	}
}

// disturb lets a fault last for a while under load, writes and probes, and holds
// that the cluster is whole again after it, that no acknowledged write is lost,
// and that no super wrote after a later one had begun.
func (c *labCluster) disturb(what string, lasts time.Duration, fault, heal func()) {
	c.t.Helper()
	c.allSettled(30*time.Second, both)
	c.answers()
	load := c.startLoad(5 * time.Minute)
	probed := c.startProbes(c.servers())
	written := c.startWrites(c.servers())
	<-time.After(2 * time.Second) // of load, probes and writes
	began := time.Now()
	fault()
	<-time.After(lasts)
	heal()
	healed := time.Now()
	c.whole(caughtUp)
	c.allSettled(60*time.Second, both)
	c.t.Logf("RESULT %s for %v: whole %v after its end", what, lasts, time.Since(healed).Round(10*time.Millisecond))
	c.trace(began)
	r := load.stop()
	c.t.Logf("RESULT %s: of %d requests %d failed, %d of them may have run, %d were repeated; p99 %v", what,
		r.Requests, r.Failed, r.Unknown, r.Retried, (time.Duration(r.P99) * time.Microsecond).Round(time.Millisecond))
	p := probed()
	p.show(c.t, began)
	supers := p.supers()
	c.t.Logf("RESULT %s: %d writes of the super's lease were seen, by %v", what, len(p.Leases), supers)
	if err := inOrder(p.Leases); err != nil {
		c.t.Errorf("%s: two supers wrote: %v", what, err)
	}
	if len(p.Leases) < int(lasts.Seconds())/3 {
		c.t.Errorf("%s: only %d writes of the super's lease were seen: too few to say something", what, len(p.Leases))
	}
	written()
}

// supers are those who wrote, in order.
func (p probes) supers() []string {
	slices.SortFunc(p.Leases, bySequence)
	var out []string
	for _, l := range p.Leases {
		if n := len(out); n == 0 || out[n-1] != l.Holder {
			out = append(out, l.Holder)
		}
	}
	return out
}

func bySequence(a, b leaseWrite) int { return cmp.Compare(a.Sequence, b.Sequence) }

// inOrder is an error when leases went back: somebody wrote under an epoch after
// a later one had been taken.
func inOrder(leases []leaseWrite) error {
	slices.SortFunc(leases, bySequence)
	var all error
	for i := 1; i < len(leases); i++ {
		a, b := leases[i-1], leases[i]
		if b.Epoch < a.Epoch || b.Epoch == a.Epoch && b.Holder != a.Holder {
			all = errors.Join(all, fmt.Errorf("%s wrote as super under epoch %d at %d, after %s under epoch %d at %d",
				b.Holder, b.Epoch, b.Sequence, a.Holder, a.Epoch, a.Sequence))
		}
	}
	return all
}

func TestAWriteOfADeposedSuperIsOutOfOrder(t *testing.T) {
	first, second := leaseWrite{1, "h1", 1}, leaseWrite{2, "h2", 2}
	for name, tc := range map[string]struct {
		leases []leaseWrite
		fine   bool
	}{
		"one after the other":    {[]leaseWrite{second, first, {3, "h2", 2}, {4, "h1", 3}}, true},
		"the first writes again": {[]leaseWrite{first, second, {3, "h1", 1}}, false},
		"two under one epoch":    {[]leaseWrite{first, second, {3, "h3", 2}}, false},
	} {
		if err := inOrder(tc.leases); (err == nil) != tc.fine {
			t.Errorf("%s: %v", name, err)
		}
	}
}
