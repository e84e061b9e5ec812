package super

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// joined is a cluster of one host that runs apps of two instances each, when a
// second host has just joined.
func joined(t *testing.T, apps int, second kbroker.Host) *cluster {
	c := newCluster(t, 1)
	for i := range apps {
		k := state.AppKey{Tenant: tenant, App: kbroker.AppName(fmt.Sprintf("shop%d", i))}
		c.apply(newVersion(&c.view, k, kbroker.App{Name: k.App, Services: []kbroker.Service{service(2)}}, "deploy", time.Time{}).changes)
	}
	c.settle()
	second.Name, second.Role, second.State = "h2", kbroker.RoleWorker, kbroker.HostReady
	second.Labels = map[string]string{"arch": "amd64"}
	c.view.Hosts["h2"] = second
	return c
}

// TestAHostThatJoinsGetsOneOfEach: not before it has proven itself, not all at
// once, and nobody fails meanwhile.
func TestAHostThatJoinsGetsOneOfEach(t *testing.T) {
	const apps = 7
	c := joined(t, apps, kbroker.Host{Capacity: roomy})
	for range steadyAfter / time.Second {
		if changes := c.step(); len(changes) > 0 {
			t.Fatalf("planned %v for a host that has just joined", changes)
		}
	}
	most := 0
	for range 60 {
		c.step()
		most = max(most, len(c.marked()))
		if n := c.readyCount(); n < 2*apps {
			t.Fatalf("%d of %d instances answer", n, 2*apps)
		}
	}
	if most != apartAtOnce {
		t.Errorf("%d were moved at a time, want %d", most, apartAtOnce)
	}
	c.settle()
	if live := c.live(); len(live["h1"]) != apps || len(live["h2"]) != apps {
		t.Errorf("h1 has %d instances and h2 %d, want %d each", len(live["h1"]), len(live["h2"]), apps)
	}
}

// steady lets a host have been one that takes instances for long enough.
func (c *cluster) steady(host kbroker.HostID) {
	c.world()
	c.memory.steady[host] = seen[bool]{true, c.now - steadyAfter}
}

// marked are the instances that are to be replaced because all were together.
func (c *cluster) marked() (names []kbroker.InstanceID) {
	for k, p := range c.view.Placements {
		if p.Replace == togetherReason && !p.Stop {
			names = append(names, k.Instance)
		}
	}
	return names
}

// atRest holds that what was planned needs no more until something is seen.
func (c *cluster) atRest() {
	c.t.Helper()
	c.round() // tombstones may have made room
	if changes := Plan(c.world()); len(changes) > 0 {
		c.t.Fatalf("a plan that was applied is followed by %v", changes)
	}
}

var roomy = kbroker.Resources{CPU: 2, MemoryBytes: 8 << 30}

// TestNothingMovesApartWithoutGain: a host that cannot take an instance, or may
// be gone in a moment, gets none, and an app that does not answer keeps its own.
func TestNothingMovesApartWithoutGain(t *testing.T) {
	change := func(f func(p *kbroker.AppRecord)) func(c *cluster) {
		return func(c *cluster) {
			for k, rec := range c.view.Apps {
				f(&rec)
				c.view.Apps[k] = rec
			}
		}
	}
	for name, tc := range map[string]struct {
		second kbroker.Host
		change func(c *cluster)
		moves  bool
	}{
		"it could":        {second: kbroker.Host{Capacity: roomy}, moves: true},
		"it is full":      {second: kbroker.Host{Capacity: kbroker.Resources{CPU: 0.01, MemoryBytes: 1 << 20}}},
		"it drains":       {second: kbroker.Host{Capacity: roomy, Drain: &kbroker.Drain{}}},
		"it is suspect":   {second: kbroker.Host{Capacity: roomy}, change: func(c *cluster) { c.silent["h2"] = state.Tuned.Suspect }},
		"it is not fit":   {second: kbroker.Host{Capacity: roomy}, change: func(c *cluster) { c.view.Hosts["h2"].Labels["arch"] = "arm64" }},
		"the app is down": {second: kbroker.Host{Capacity: roomy}, change: func(c *cluster) { c.broken[1] = true }},
		"the app failed": {second: kbroker.Host{Capacity: roomy}, change: change(func(r *kbroker.AppRecord) {
			r.Rollout.State, r.Rollout.Reason = kbroker.RolloutFailed, "no progress"
		})},
		"the app does not care": {second: kbroker.Host{Capacity: roomy}, change: func(c *cluster) {
			for k, versions := range c.view.Versions {
				v := versions[1]
				v.App.Services[0].Spread = "none"
				c.view.Versions[k][1] = v
			}
		}},
		"it did not do well there": {second: kbroker.Host{Capacity: roomy}, change: func(c *cluster) {
			for k, p := range c.view.Placements {
				p.Failed = []kbroker.HostID{"h2"}
				c.view.Placements[k] = p
			}
		}},
		"a record cannot be read": {second: kbroker.Host{Capacity: roomy}, change: func(c *cluster) {
			c.view.Unreadable = map[string]error{subjects.KeyPlacement("h1", tenant, "other-web-1"): errors.New("of a newer build")}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := joined(t, 1, tc.second)
			c.steady("h2")
			if tc.change != nil {
				tc.change(c)
				c.agents()
			}
			moved := false
			for _, change := range Plan(c.world()) {
				put, ok := change.(state.PutPlacement)
				moved = moved || ok && put.Placement.Service != kbroker.AllocatorService
			}
			if moved != tc.moves {
				t.Errorf("moved: %t, want %t", moved, tc.moves)
			}
		})
	}
}

// TestTheRoomOfWhatMovesIsTaken: a host with room for one instance gets one.
func TestTheRoomOfWhatMovesIsTaken(t *testing.T) {
	c := joined(t, 3, kbroker.Host{Capacity: kbroker.Resources{CPU: 0.15, MemoryBytes: 8 << 30}})
	c.steady("h2")
	c.settle()
	if live := c.live(); len(live["h2"]) != 1 || c.count() != 6 {
		t.Errorf("h2 has %v of %d instances, want one of 6", live["h2"], c.count())
	}
}

// TestAMoveApartIsCalledOff: the host that it is for drains, or is gone, before the
// new instance has settled. Nothing is restarted for nothing.
func TestAMoveApartIsCalledOff(t *testing.T) {
	for name, change := range map[string]func(c *cluster, h *kbroker.Host){
		"drain": func(_ *cluster, h *kbroker.Host) { h.Drain = &kbroker.Drain{} },
		"down":  func(c *cluster, h *kbroker.Host) { c.down[h.Name] = true },
		"unfit": func(_ *cluster, h *kbroker.Host) { h.Labels = map[string]string{"arch": "arm64"} },
	} {
		t.Run(name, func(t *testing.T) {
			c := joined(t, 1, kbroker.Host{Capacity: roomy})
			before := c.names("h1")
			c.steady("h2")
			c.round()
			if len(c.marked()) != 2 { // the allocator's, too
				t.Fatalf("%v are moved apart, want one of each service", c.marked())
			}
			h2 := c.view.Hosts["h2"]
			change(c, &h2)
			c.view.Hosts["h2"] = h2
			c.settle()
			if after := c.names("h1"); after != before {
				t.Errorf("h1 runs %s, want what it ran: %s", after, before)
			}
			if left := c.marked(); len(left) > 0 {
				t.Errorf("%v are still to be replaced", left)
			}
		})
	}
}

// TestAProgramThatDoesNotRunOnTheOtherHost: a move apart that comes to nothing
// costs nothing, whatever is done with the app meanwhile, and keeps its turn for no
// longer than a rollout may take; other apps are moved then.
func TestAProgramThatDoesNotRunOnTheOtherHost(t *testing.T) {
	const apps = 2 * apartAtOnce
	c := joined(t, apps, kbroker.Host{Capacity: roomy})
	c.brokenOn = func(p kbroker.Placement) bool {
		return p.Host == "h2" && p.Service != kbroker.AllocatorService && p.App < "shop4"
	}
	c.steady("h2")
	deadline := int(service(2).Update.Deadline / time.Second)
	moves := map[kbroker.AppName]int{}
	for second := range 2 * (deadline + int(steadyAfter/time.Second)) {
		for _, change := range c.step() {
			if put, ok := change.(state.PutPlacement); ok && put.Placement.Replace == togetherReason && put.Placement.Service == "web" && !put.Placement.Stop {
				moves[put.Placement.App]++
			}
		}
		if n := c.readyCount(); n < 2*apps {
			t.Fatalf("after %d s %d of %d instances answer", second, n, 2*apps)
		}
	}
	for i := range apps {
		app := kbroker.AppName(fmt.Sprintf("shop%d", i))
		on := map[kbroker.HostID]int{}
		for _, ps := range c.live() {
			for _, p := range ps {
				if p.App == app {
					on[p.Host]++
				}
			}
		}
		want := 1
		if i < apartAtOnce {
			want = 0 // and left alone
		}
		if moves[app] != 1 || on["h2"] != want || on["h1"] != 2-want {
			t.Errorf("%s was moved %d times and is on %v, want once, and %d on h2", app, moves[app], on, want)
		}
	}
}

// TestAMoveThatHasSettledIsDone, however late the leader sees it.
func TestAMoveThatHasSettledIsDone(t *testing.T) {
	c := joined(t, 1, kbroker.Host{Capacity: roomy})
	c.steady("h2")
	c.round()
	marked := c.marked()
	c.agents()
	c.world()
	c.now += time.Hour // no round came
	c.round()
	for k, p := range c.view.Placements {
		if slices.Contains(marked, k.Instance) && (!p.Stop || p.StopReason != togetherReason) {
			t.Errorf("%s is stopped: %t, %q; want it replaced", k.Instance, p.Stop, p.StopReason)
		}
	}
}

// TestAnAppIsScaledWhileItIsMovedApart: up, and down, as if it were not.
func TestAnAppIsScaledWhileItIsMovedApart(t *testing.T) {
	for _, n := range []int{1, 2, 3, 6} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := joined(t, 1, kbroker.Host{Capacity: roomy})
			c.brokenOn = func(p kbroker.Placement) bool { return p.Host == "h2" }
			c.steady("h2")
			c.step()
			c.step()
			app := state.AppKey{Tenant: tenant, App: "shop0"}
			version := c.view.Versions[app][1]
			version.App.Services[0].Count = kbroker.Count{Min: 1, Max: 10}
			c.view.Versions[app][1] = version
			c.view.Demands[app] = kbroker.Demand{Tenant: tenant, App: "shop0", Wanted: map[kbroker.ServiceName]int{"web": n}}
			for range 3 {
				c.step()
				c.atRest()
			}
			for _, name := range c.marked() {
				if n != 2 && strings.Contains(string(name), "web") {
					t.Errorf("%s is still to be replaced", name)
				}
			}
			if got := c.count(); got < n || got > n+1 {
				t.Errorf("%d instances are there, want %d: %v", got, n, c.live())
			}
			if got := c.readyCount(); got < min(n, 2) {
				t.Errorf("%d instances answer", got)
			}
		})
	}
}

// TestARestartOfWhatMovesIsARestart: somebody wants it, whatever becomes of the
// move.
func TestARestartOfWhatMovesIsARestart(t *testing.T) {
	c := joined(t, 1, kbroker.Host{Capacity: roomy})
	c.steady("h2")
	c.round()
	for _, name := range c.marked() {
		d, err := decideRestart(&c.view, kbroker.RestartRequest{Tenant: tenant, App: "shop0", Instance: name}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		c.apply(d.changes)
	}
	h2 := c.view.Hosts["h2"]
	h2.Drain = &kbroker.Drain{}
	c.view.Hosts["h2"] = h2
	before := c.names("h1")
	c.settle()
	if after := c.names("h1"); after == before || c.count() != 2 {
		t.Errorf("h1 runs %s, as before the restart", after)
	}
}

// TestWhenAHostIsSteady: one that is not heard now and then, or that drained a
// moment ago, is not.
func TestWhenAHostIsSteady(t *testing.T) {
	for name, change := range map[string]func(c *cluster, second int){
		"it comes and goes": func(c *cluster, second int) {
			if second%10 < 4 {
				c.silent["h2"] = state.Tuned.Suspect
			}
		},
		"it drained": func(c *cluster, second int) {
			h2 := c.view.Hosts["h2"]
			if h2.Drain = nil; second%20 == 0 {
				h2.Drain = &kbroker.Drain{}
			}
			c.view.Hosts["h2"] = h2
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := joined(t, 1, kbroker.Host{Capacity: roomy})
			for second := range 100 {
				c.agents()
				c.now += time.Second
				c.silent["h2"] = 0
				change(c, second)
				if c.round(); len(c.live()["h2"]) > 0 {
					t.Fatalf("after %d s h2 was given %s", second, c.names("h2"))
				}
			}
		})
	}
}
