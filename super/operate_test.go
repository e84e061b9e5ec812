package super

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

// operator does to a cluster what operators do, one thing upon another.
type operator struct {
	*cluster
	r     *rapid.T
	names []kbroker.HostID
}

// decided applies a decision; refusals are fine, other errors are not.
func (o *operator) decided(d decision, err error) {
	if err != nil {
		if !errors.Is(err, kbroker.Refused) && !errors.Is(err, kbroker.NotFound) {
			o.r.Fatal(err)
		}
		return
	}
	o.apply(d.changes)
}

func (o *operator) host() kbroker.HostID { return rapid.SampledFrom(o.names).Draw(o.r, "host") }

// open are the hosts that take instances.
func (o *operator) open() (n int) {
	for _, h := range o.view.Hosts {
		if h.State == kbroker.HostReady && h.Drain == nil && !o.down[h.Name] {
			n++
		}
	}
	return n
}

// do does one thing. Without faults it leaves one host open.
func (o *operator) do(event string, count int) {
	switch event {
	case "drain", "force":
		h := o.host()
		if v := o.view.Hosts[h]; o.open() > 1 || v.Drain != nil {
			o.decided(decideDrain(&o.view, kbroker.DrainRequest{Host: h, Force: event == "force"}, time.Time{}))
		}
	case "undrain":
		o.decided(decideDrain(&o.view, kbroker.DrainRequest{Host: o.host(), Undrain: true}, time.Time{}))
	case "restart":
		o.decided(decideRestart(&o.view, kbroker.RestartRequest{Tenant: tenant, App: webKey.App}, time.Time{}))
	case "restart one":
		if live := o.liveNames(); len(live) > 0 {
			o.decided(decideRestart(&o.view, kbroker.RestartRequest{Tenant: tenant, App: webKey.App, Instance: rapid.SampledFrom(live).Draw(o.r, "instance")}, time.Time{}))
		}
	case "rollback":
		o.decided(decideRollback(&o.view, kbroker.RollbackRequest{Tenant: tenant, App: webKey.App}, time.Time{}))
	case "deploy":
		s := form(rapid.SampledFrom([]string{"one", "two", "three"}).Draw(o.r, "program"), count)
		s.Update.Parallel = rapid.IntRange(1, 3).Draw(o.r, "parallel")
		o.deploy(s)
	case "lead": // another core leads, who knows nothing of what was before
		o.memory = newMemory()
	case "down":
		o.down[o.host()] = true
	case "up":
		o.down[o.host()] = false
	case "fail": // what is on a host is in a crash loop, whatever it is
		h := o.host()
		o.loops = func(p kbroker.Placement) bool { return p.Host == h }
	case "mend":
		o.loops = nil
	case "remove":
		m := Members{Known: true, Writable: true, Replicas: 3, Current: map[kbroker.HostID]bool{}}
		for name, h := range o.view.Hosts {
			if h.Member() {
				m.Current[name] = !o.down[name]
			}
		}
		h := o.host()
		o.decided(decideRemove(&o.view, kbroker.RemoveRequest{Host: h}, o.facts(m), time.Time{}))
	}
}

// TestOperatingLosesNothing: drains, also several and by force, undrains, restarts,
// rollbacks, deploys and changes of the leader, one upon another in any order:
// while a host is open, as many answer as are wanted; at the end all hosts that
// drain are empty, and everything runs as wanted.
func TestOperatingLosesNothing(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		hosts, count := rapid.IntRange(2, 5).Draw(r, "hosts"), rapid.IntRange(1, 6).Draw(r, "count")
		o := newOperator(t, r, hosts, count)
		for range rapid.IntRange(1, 15).Draw(r, "events") {
			event := rapid.SampledFrom([]string{"drain", "force", "undrain", "restart", "restart one", "rollback", "deploy", "lead"}).Draw(r, "event")
			o.do(event, count)
			for range rapid.IntRange(0, 8).Draw(r, "seconds") {
				o.step()
				if n := o.readyCount(); n < count {
					r.Fatalf("after %s %d of %d answer: %v", event, n, count, o.live())
				}
			}
		}
		o.rest()
		o.ended(count)
	})
}

// TestOperatingWithLosses: hosts go down and come back as well, or are removed:
// what they reported stays; on some all programs crash for a while. When all that are members are up again, everything runs
// as wanted, and nothing on a host that was removed.
func TestOperatingWithLosses(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		hosts, count := rapid.IntRange(2, 7).Draw(r, "hosts"), rapid.IntRange(1, 6).Draw(r, "count")
		o := newOperator(t, r, hosts, count)
		for range rapid.IntRange(1, 15).Draw(r, "events") {
			o.do(rapid.SampledFrom([]string{"drain", "force", "undrain", "restart", "restart one", "rollback", "deploy", "lead", "down", "down", "up", "remove", "fail", "mend"}).Draw(r, "event"), count)
			for range rapid.IntRange(0, 12).Draw(r, "seconds") {
				o.step()
			}
			checkRound(r, o.cluster)
		}
		for name := range o.down { // nobody listens to one that was removed
			o.down[name] = !o.view.Hosts[name].Member()
		}
		o.do("mend", count)
		for range 20 {
			o.step()
		}
		if o.open() == 0 {
			for _, h := range o.names {
				o.decided(decideDrain(&o.view, kbroker.DrainRequest{Host: h, Undrain: true}, time.Time{}))
			}
		}
		o.rest()
		if o.view.Apps[webKey].Rollout.State == kbroker.RolloutFailed { // it had to wait for too long
			o.do("deploy", count)
			o.rest()
		}
		o.now += triedAgain // hosts are left alone for as long where an instance has failed
		o.rest()
		o.ended(count)
	})
}

func newOperator(t *testing.T, r *rapid.T, hosts, count int) *operator {
	c := newCluster(t, hosts)
	c.deploy(form("one", count))
	c.settle()
	c.warmUp = time.Duration(rapid.IntRange(0, 3).Draw(r, "warm up")) * time.Second
	return &operator{c, r, slices.Sorted(maps.Keys(c.view.Hosts))}
}

// rest steps until nothing changes any more.
func (o *operator) rest() {
	for range steadyAfter / time.Second {
		o.step()
	}
	o.settle()
}

// ended holds what must be true when everything has come to rest.
func (o *operator) ended(count int) {
	rec := o.view.Apps[webKey]
	say := func(what string, args ...any) {
		o.r.Errorf("%s; rollout %+v, hosts %v, live %v", fmt.Sprintf(what, args...), rec.Rollout, o.view.Hosts, o.live())
	}
	if o.count() != count || o.readyCount() != count {
		say("%d run and %d answer, want %d", o.count(), o.readyCount(), count)
	}
	if rec.Rollout.State != kbroker.RolloutDone {
		say("the rollout is %s", rec.Rollout.State)
	}
	allocators := 0
	for k, p := range o.view.Placements {
		h := o.view.Hosts[k.Host]
		switch {
		case p.Stop:
			say("the tombstone of %s on %s stays", k.Instance, k.Host)
		case p.Replace != "":
			say("%s is still to be replaced", k.Instance)
		case p.Version != rec.Version && p.Service != kbroker.AllocatorService:
			say("%s is of version %d, want %d", k.Instance, p.Version, rec.Version)
		case h.Drain != nil || !h.Member():
			say("%s is on %s", k.Instance, k.Host)
		}
		if p.Service == kbroker.AllocatorService {
			allocators++
		}
	}
	if allocators != AllocatorSpec(kbroker.App{}).Count.Min {
		say("%d allocators", allocators)
	}
	if hosts := len(o.live()); hosts < 2 && count > 1 && o.open() > 1 {
		say("all %d run on %d of %d hosts", count, hosts, o.open())
	}
	if changes := Plan(o.world()); len(changes) > 0 {
		say("a plan changes %v", changes)
	}
}
