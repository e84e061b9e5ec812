package super

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// tries follows instances from host to host.
type tries struct {
	*cluster
	r     *rapid.T
	moves int
	// on is when an instance, or what it replaced, was placed on a host last.
	on map[kbroker.InstanceID]map[kbroker.HostID]time.Duration
}

// take notes what a batch moved, and holds that nothing comes to a host again within
// triedAgain.
func (c *tries) take(changes []state.Change) {
	var left, fresh []kbroker.Placement
	for _, change := range changes {
		put, ok := change.(state.PutPlacement)
		switch p := put.Placement; {
		case !ok || p.Service != "web":
		case p.Stop && p.StopReason == failedReason:
			left = append(left, p)
		case !p.Stop && c.on[p.Instance] == nil:
			fresh = append(fresh, p)
		}
	}
	slices.SortFunc(left, byAge)
	slices.SortFunc(fresh, byAge)
	for i, p := range fresh {
		been := map[kbroker.HostID]time.Duration{}
		if len(p.Failed) > 0 {
			c.moves++
			if i >= len(left) || left[i].Host != p.Failed[len(p.Failed)-1] {
				c.r.Fatalf("%s replaces nothing that was stopped with it: %v", p.Instance, changes)
			}
			been = maps.Clone(c.on[left[i].Instance])
			if slices.Contains(p.Failed, p.Host) {
				c.r.Errorf("%s is tried on %s, where it failed: %v", p.Instance, p.Host, p.Failed)
			}
		}
		if at, was := been[p.Host]; was && c.now-at < triedAgain {
			c.r.Errorf("%s is tried on %s again after %v", p.Instance, p.Host, c.now-at)
		}
		been[p.Host] = c.now
		c.on[p.Instance] = been
	}
}

// undecided are the instances that are being tried.
func (c *tries) undecided() (n int) {
	for k, p := range c.view.Placements {
		if s := c.view.Statuses[k]; !p.Stop && len(p.Failed) > 0 && s.State != kbroker.StateReady && !s.Failing {
			n++
		}
	}
	return n
}

// TestWhatFailsOnItsHostIsTriedOnOthers: whatever hosts a program fails on, and
// however often the leader changes: as many instances as are wanted are placed, each
// comes to a host at most once in triedAgain, few are moved at a time; they end where
// they do well, if that is anywhere, and else stay where they are.
func TestWhatFailsOnItsHostIsTriedOnOthers(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		hosts, count := rapid.IntRange(1, 4).Draw(r, "hosts"), rapid.IntRange(1, 6).Draw(r, "count")
		bad := map[kbroker.HostID]bool{}
		for i := range hosts {
			bad[kbroker.HostID(fmt.Sprintf("h%d", i+1))] = rapid.Bool().Draw(r, "bad")
		}
		good := slices.Contains(slices.Collect(maps.Values(bad)), false)
		c := &tries{newCluster(t, hosts), r, 0, map[kbroker.InstanceID]map[kbroker.HostID]time.Duration{}}
		c.together = true
		c.loops = func(p kbroker.Placement) bool { return p.Service == "web" && bad[p.Host] }
		c.deploy(form("one", count))
		leads := rapid.SliceOfN(rapid.IntRange(1, 150), 0, 3).Draw(r, "leads")
		for second := range 200 {
			if slices.Contains(leads, second) {
				c.memory = newMemory()
			}
			c.take(c.step())
			if n := c.count(); n != count {
				r.Fatalf("%d instances are placed, want %d", n, count)
			}
			if n := c.undecided(); n > apartAtOnce {
				r.Fatalf("%d are tried at a time", n)
			}
		}
		if changes := Plan(c.world()); len(changes) > 0 {
			r.Errorf("it does not come to rest: %v", changes)
		}
		if n := c.readyCount(); good && n != count {
			r.Errorf("%d of %d answer; bad are %v: %v", n, count, bad, c.live())
		}
		if !good && c.moves != count*(hosts-1) {
			r.Errorf("%d moves of %d instances over %d hosts", c.moves, count, hosts)
		}
		before := c.moves
		for range triedAgain / time.Second { // and then again
			c.take(c.step())
		}
		if good && c.moves > before {
			r.Errorf("%d moves of what does well", c.moves-before)
		}
	})
}

// TestWhatIsNotTriedElsewhere: what does well now, what is not known to fail, and what
// no other host takes.
func TestWhatIsNotTriedElsewhere(t *testing.T) {
	for name, prepare := range map[string]func(*cluster){
		"it runs at the moment": func(c *cluster) {
			c.change(func(s *kbroker.Status) { s.State, s.Failing = kbroker.StateReady, true })
		},
		"it has crashed, and is in no loop": func(c *cluster) { c.change(func(s *kbroker.Status) { s.State = kbroker.StateBackoff }) },
		"what was said is old":              func(c *cluster) { c.change(loop); c.change(func(s *kbroker.Status) { s.Epoch = 0 }) },
		"its host is not heard": func(c *cluster) {
			c.change(loop)
			for name := range c.live() {
				c.down[name], c.silent[name] = true, state.Tuned.Suspect
			}
		},
		"the other host drains": func(c *cluster) {
			c.change(loop)
			h := c.view.Hosts[c.other()]
			h.Drain = &kbroker.Drain{}
			c.view.Hosts[h.Name] = h
		},
		"the other host has no room": func(c *cluster) {
			c.change(loop)
			h := c.view.Hosts[c.other()]
			h.Capacity = kbroker.Resources{}
			c.view.Hosts[h.Name] = h
		},
		"it failed there just now": func(c *cluster) {
			c.change(loop)
			for _, ps := range c.live() {
				p := ps[0]
				p.Failed = []kbroker.HostID{c.other()}
				c.view.Placements[keyOf(p)] = p
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2)
			c.deploy(form("one", 1))
			c.settle()
			prepare(c)
			for _, change := range Plan(c.world()) {
				if put, ok := change.(state.PutPlacement); ok && put.Placement.Service == "web" {
					t.Errorf("planned %s", change)
				}
			}
		})
	}
}

// loop is an instance in a crash loop.
func loop(s *kbroker.Status) { s.State, s.Failing, s.Crashes = kbroker.StateBackoff, true, 5 }

// change changes what was reported of the app's instances.
func (c *cluster) change(do func(*kbroker.Status)) {
	for k, s := range c.view.Statuses {
		if s.Service == "web" {
			do(&s)
			c.view.Statuses[k] = s
		}
	}
}

// other is the host, of two, on which none of the app's instances is.
func (c *cluster) other() kbroker.HostID {
	for name := range c.view.Hosts {
		if len(c.live()[name]) == 0 {
			return name
		}
	}
	c.t.Fatal("there is an instance on every host")
	return ""
}

// TestACrashLoopIsAnAlarm, an app's instances together; not of what is stopped, nor of
// what was said of another epoch.
func TestACrashLoopIsAnAlarm(t *testing.T) {
	c := newCluster(t, 2)
	c.deploy(form("one", 4))
	c.settle()
	three := 3
	n := 0
	for k, s := range c.view.Statuses {
		if s.Service != "web" {
			continue
		}
		s.State, s.Failing, s.Message = kbroker.StateBackoff, true, kbroker.CrashLoopText+"exit code 3: boom\nand more"
		p := c.view.Placements[k]
		switch k.Instance {
		case "shop-web-1":
			s.Exit = &kbroker.Exit{Code: &three}
		case "shop-web-2":
			s.Epoch = 0
		case "shop-web-3":
			p.Stop = true
		}
		n++
		c.view.Statuses[k], c.view.Placements[k] = s, p
	}
	want := []string{fmt.Sprintf("app shop: shop-web-1 on %s and 1 more in a crash loop: exit code 3", c.where("shop-web-1"))}
	if got := failingAlarms(&c.view); n != 4 || !slices.Equal(got, want) {
		t.Errorf("%q of %d instances, want %q", got, n, want)
	}
	for s, want := range map[string]string{"crash loop: no such artifact\nx": "no such artifact", "": "it cannot be started"} {
		if got := failingText(kbroker.Status{Message: s}); got != want {
			t.Errorf("%q of a message %q, want %q", got, s, want)
		}
	}
}

// where is the host of an instance.
func (c *cluster) where(i kbroker.InstanceID) kbroker.HostID {
	for k := range c.view.Placements {
		if k.Instance == i {
			return k.Host
		}
	}
	c.t.Fatalf("%s is not placed", i)
	return ""
}

// TestAMoveForACrashLoopIsOne: what is placed elsewhere carries the crashes and the
// host with it, and the events say that it has moved.
func TestAMoveForACrashLoopIsOne(t *testing.T) {
	c := newCluster(t, 2)
	c.deploy(form("one", 1))
	c.settle()
	c.change(loop)
	from, to := c.where("shop-web-1"), c.other()
	w := c.world()
	changes := Plan(w)
	var words []string
	for _, e := range eventsOf(w.View, changes) {
		words = append(words, fmt.Sprintf("%s %s: %s", e.Kind, e.Instance, e.Message))
	}
	want := []string{
		fmt.Sprintf("moved shop-web-1: stopped: %s, replaced by shop-web-4 on %s", failedReason, to),
		fmt.Sprintf("placed shop-web-4: placed on %s, version 1, for shop-web-1 of host %s", to, from),
	}
	if !slices.Equal(words, want) {
		t.Errorf("events %q, want %q", words, want)
	}
	c.apply(changes)
	p := c.live()[to][0]
	if p.Backoff != 5 || !slices.Equal(p.Failed, []kbroker.HostID{from}) {
		t.Errorf("placed elsewhere as %+v", p)
	}
}

// TestWhatAFailedRolloutLeftIsTriedElsewhere: an instance of the version before, which
// stays, as that version.
func TestWhatAFailedRolloutLeftIsTriedElsewhere(t *testing.T) {
	c := failing(t, 3, 2, nil)
	c.seconds(80)
	if r := c.view.Apps[webKey].Rollout; r.State != kbroker.RolloutFailed {
		t.Fatalf("rollout %+v", r)
	}
	from := c.where("shop-web-1")
	c.loops = func(p kbroker.Placement) bool { return p.Version == 1 && p.Host == from }
	c.seconds(30)
	if got := c.answering(); got[1] != 2 {
		t.Errorf("%v answer, by version: %v", got, c.live())
	}
	for _, p := range c.live()[from] {
		if p.Version == 1 {
			t.Errorf("%s stays on %s", p.Instance, p.Host)
		}
	}
}

// TestARolloutIsNotDisturbed: a version that crashes is not tried on other hosts while
// the one before runs; it fails by its deadline.
func TestARolloutIsNotDisturbed(t *testing.T) {
	for _, back := range []bool{false, true} {
		c := newCluster(t, 3)
		c.deploy(form("one", 2))
		c.settle()
		bad := form("bad", 2)
		bad.Update.AutoRollback = back
		c.loops = func(p kbroker.Placement) bool { return p.Service == "web" && p.Version == 2 }
		c.deploy(bad)
		for range bad.Update.Deadline/time.Second + 20 {
			for _, change := range c.step() {
				if put, ok := change.(state.PutPlacement); ok && put.Placement.StopReason == failedReason {
					t.Errorf("auto_rollback %t: planned %s", back, change)
				}
			}
			if n := c.answering()[1]; n < 2 {
				t.Fatalf("auto_rollback %t: %d instances of version 1 answer", back, n)
			}
		}
		r := c.view.Apps[webKey].Rollout
		if want := map[bool]kbroker.RolloutState{false: kbroker.RolloutFailed, true: kbroker.RolloutDone}[back]; r.State != want {
			t.Errorf("auto_rollback %t: rollout %+v, want %s", back, r, want)
		}
	}
}
