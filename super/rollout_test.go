package super

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// failing is a cluster whose version 1 runs well and whose version 2 never
// becomes ready.
func failing(t *testing.T, hosts, count int, edit func(*kbroker.Service)) *cluster {
	t.Helper()
	c := newCluster(t, hosts)
	c.deploy(service(count))
	c.settle()
	bad := service(count)
	bad.Artifact.SHA256 = "bad"
	if edit != nil {
		edit(&bad)
	}
	c.broken[2] = true
	c.deploy(bad)
	return c
}

func (c *cluster) seconds(n int) {
	for range n {
		c.step()
	}
}

// answering are the instances that answer, per version.
func (c *cluster) answering() map[int]int {
	out := map[int]int{}
	for k, p := range c.view.Placements {
		if p.Service != kbroker.AllocatorService && !p.Stop && !c.down[k.Host] && c.view.Statuses[k].State == kbroker.StateReady {
			out[p.Version]++
		}
	}
	return out
}

func TestALostInstanceComesBackAsItWas(t *testing.T) {
	for name, tc := range map[string]struct {
		hosts, count, before int // seconds of rollout before the host dies
		want                 kbroker.RolloutState
	}{
		"while the rollout runs":             {hosts: 3, count: 3, before: 5, want: kbroker.RolloutRunning},
		"after it failed":                    {hosts: 3, count: 3, before: 80, want: kbroker.RolloutFailed},
		"after it failed, the last old one":  {hosts: 3, count: 1, before: 80, want: kbroker.RolloutFailed},
		"while it runs, the last of the old": {hosts: 3, count: 1, before: 5, want: kbroker.RolloutRunning},
	} {
		t.Run(name, func(t *testing.T) {
			c := failing(t, tc.hosts, tc.count, nil)
			c.seconds(tc.before)
			for _, host := range []kbroker.HostID{"h1", "h2", "h3"} {
				for _, p := range c.live()[host] {
					if p.Version == 1 {
						c.down[host] = true
					}
				}
				if c.down[host] {
					break
				}
			}
			c.seconds(12)
			if got := c.view.Apps[webKey].Rollout.State; got != tc.want {
				t.Fatalf("rollout is %s, want %s", got, tc.want)
			}
			if got := c.answering()[1]; got != tc.count {
				t.Errorf("%d instances of the good version answer 12 s after a host died, want %d", got, tc.count)
			}
		})
	}
}

func TestANewLeaderAddsNothingToAFailedRollout(t *testing.T) {
	c := newCluster(t, 4)
	c.deploy(service(3))
	c.settle()
	next := service(3)
	next.Artifact.SHA256 = "two"
	c.deploy(next)
	c.seconds(6)       // one is replaced
	c.broken[2] = true // the others never are
	for k, p := range c.view.Placements {
		if p.Version == 2 && c.view.Statuses[k].State == kbroker.StateReady && p.Service == "web" {
			c.keep(k)
		}
	}
	c.seconds(80)
	if got := c.view.Apps[webKey].Rollout.State; got != kbroker.RolloutFailed {
		t.Fatalf("rollout is %s, want failed", got)
	}
	before := c.count()
	c.memory = newMemory() // the new leader remembers nothing
	c.seconds(10)
	if c.count() != before {
		t.Errorf("%d instances under a new leader, %d before", c.count(), before)
	}
	c.apply([]state.Change{state.PutDemand{Demand: kbroker.Demand{Tenant: tenant, App: webKey.App, Wanted: map[kbroker.ServiceName]int{"web": 3}}}})
	if changes := c.step(); len(changes) != 0 {
		t.Errorf("the same demand planned %v", changes)
	}
}

func TestAFlappingVersionFails(t *testing.T) {
	c := failing(t, 3, 3, nil)
	for i := range 200 {
		c.broken[2] = i%2 == 0 // ready for a moment, shorter than min_healthy, again and again
		c.step()
		if c.view.Apps[webKey].Rollout.State == kbroker.RolloutFailed {
			return
		}
	}
	t.Errorf("rollout is %+v after 200 s of flapping, want failed", c.view.Apps[webKey].Rollout)
}

func TestARolloutThatFitsNowhereStopsNothing(t *testing.T) {
	for name, edit := range map[string]func(*kbroker.Service){
		"too large for every host":       func(s *kbroker.Service) { s.Resources.CPU = 64 },
		"its only host is not there now": func(s *kbroker.Service) { s.Require = []string{"host == h4"} },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 4)
			first := service(3)
			first.Require = []string{"host != h4"}
			c.deploy(first)
			c.settle()
			c.down["h4"] = true
			c.seconds(10)
			next := service(3)
			next.Artifact.SHA256 = "two"
			edit(&next)
			c.deploy(next)
			for range 90 {
				c.step()
				if got := c.answering()[1]; got != 3 {
					t.Fatalf("%d instances of the version that runs, want 3: stopping them makes no room", got)
				}
			}
			if got := c.view.Apps[webKey].Rollout.State; got != kbroker.RolloutFailed {
				t.Errorf("rollout is %s, want failed", got)
			}
		})
	}
}

func TestRollbackGoesToTheLastGoodVersion(t *testing.T) {
	c := failing(t, 3, 3, nil)
	c.seconds(5)
	worse := service(3)
	worse.Artifact.SHA256, worse.Update.AutoRollback = "worse", true
	c.broken[3] = true
	c.deploy(worse) // in the middle of the rollout of version 2
	c.seconds(90)
	c.settle()
	rec := c.view.Apps[webKey]
	if rec.Version != 1 || rec.Rollout.State != kbroker.RolloutDone || c.answering()[1] != 3 {
		t.Errorf("app is %+v with %v answering, want version 1, done, 3 of it", rec, c.answering())
	}
}

// full hosts take one instance each.
func full(s *kbroker.Service) { s.Resources.CPU = 1.5 }

func TestAFixReplacesABrokenVersionOnAFullHost(t *testing.T) {
	c := newCluster(t, 1)
	s := service(1)
	full(&s)
	c.broken[1] = true
	c.deploy(s)
	c.seconds(70)
	s.Artifact.SHA256 = "fixed"
	c.deploy(s)
	c.settle()
	if got := c.answering()[2]; got != 1 {
		t.Errorf("%d instances of the fix answer, want 1: the broken one makes room", got)
	}
}

func TestTheLastInstanceThatAnswersMakesNoRoom(t *testing.T) {
	c := newCluster(t, 2)
	s := service(2)
	full(&s)
	c.deploy(s)
	c.settle()
	c.broken[2], c.broken[3] = true, true
	for _, sha := range []string{"bad", "worse"} {
		s.Artifact.SHA256 = sha
		c.deploy(s)
		for range 90 {
			c.step()
			if c.answering()[1] < 1 {
				t.Fatal("nothing answers: the last good instance was stopped for a version that never was ready")
			}
		}
	}
}

func TestAFailedRolloutRegainsItsCapacity(t *testing.T) {
	c := failing(t, 3, 3, func(s *kbroker.Service) { s.Count.Max = 8 })
	c.seconds(80)
	for _, n := range []int{6, 3, 6} {
		c.apply([]state.Change{state.PutDemand{Demand: kbroker.Demand{Tenant: tenant, App: webKey.App, Wanted: map[kbroker.ServiceName]int{"web": n}}}})
		c.seconds(10)
		if got := c.answering()[1]; got != n {
			t.Errorf("%d good instances answer, want %d", got, n)
		}
	}
}

func TestARemovedServiceIsKeptUntilTheVersionWithoutItIsDone(t *testing.T) {
	c := newCluster(t, 3)
	web, api := service(1), service(3)
	api.Name = "api"
	full(&api)
	web.Resources.CPU = 0.1
	c.deploy(web, api)
	c.settle()
	bad := web
	bad.Artifact.SHA256 = "bad"
	c.broken[2] = true
	c.deploy(bad)
	c.seconds(80)
	apis := func() (n int) {
		for _, ps := range c.live() {
			for _, p := range ps {
				if p.Service == "api" {
					n++
				}
			}
		}
		return n
	}
	c.down["h1"] = true // no other host has room
	c.seconds(10)
	c.down["h1"] = false
	c.seconds(10)
	if n := apis(); n != 3 {
		t.Errorf("%d instances of a service that the failed version removed, want 3", n)
	}
}

func TestBlindnessIsNoFaultOfARollout(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	c.broken[2] = true
	next := service(3)
	next.Artifact.SHA256 = "two"
	c.deploy(next)
	c.seconds(5)
	for range 70 {
		c.now += time.Second
		c.memory.see(&c.view, c.now)
		c.memory.blind(c.now)
	}
	c.broken[2] = false
	c.seconds(1)
	if got := c.view.Apps[webKey].Rollout.State; got != kbroker.RolloutRunning {
		t.Errorf("rollout is %s after a time without a majority, want running", got)
	}
}

func TestAChangedConstraintMovesInstances(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	moved := service(3)
	moved.Require = []string{"host != h1"}
	c.deploy(moved)
	for range 60 {
		c.step()
		if c.readyCount() < 3 {
			t.Fatalf("%d instances answer while they move, want 3", c.readyCount())
		}
	}
	if n := len(c.live()["h1"]); n != 0 || c.count() != 3 {
		t.Errorf("%d instances on the host that is excluded, %d in all; want 0 and 3", n, c.count())
	}
}

func TestASilentHostsInstancesDoNotCountAsReady(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	c.down["h1"] = true
	c.seconds(4) // suspect
	c.deploy(service(2))
	c.round()
	for host, ps := range c.live() {
		if host == "h1" && len(ps) > 0 {
			t.Error("scaled from 3 to 2: an instance that answers was stopped, not the one on the silent host")
		}
	}
}

// TestAnUnreadableRecordBlocksItsHostOnly: a newer build may have written it.
func TestAnUnreadableRecordBlocksItsHostOnly(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	before := len(c.live()["h2"])
	c.view.Unreadable = map[string]error{
		subjects.KeyPlacement("h2", tenant, "x"): errors.New("garbage"),
	}
	c.deploy(service(6))
	c.settle()
	if n := len(c.live()["h2"]); n != before {
		t.Errorf("h2 has %d instances, had %d: nothing of it may change", n, before)
	}
	if c.count() != 6 {
		t.Errorf("%d instances, want 6 on the other hosts", c.count())
	}
	c.view.Unreadable = map[string]error{subjects.KeyHost("h3"): errors.New("garbage")}
	delete(c.view.Hosts, "h3")
	tombstone := kbroker.Placement{Tenant: tenant, App: "gone", Service: "web", Instance: "gone-web-1", Host: "h3", Epoch: 2, Stop: true}
	c.apply([]state.Change{state.PutPlacement{Placement: tombstone}})
	w := c.world()
	w.Verdict.Current["h3"] = true
	w.Verdict.Beats["h3"] = kbroker.Heartbeat{Host: "h3"}
	for _, change := range Plan(w) {
		switch x := change.(type) {
		case state.PutHost:
			if x.Host.Name == "h3" {
				t.Error("a host whose record cannot be read was written over")
			}
		case state.DropPlacement:
			t.Errorf("%s was dropped: its host's record is there, though unreadable", x.Key.Instance)
		}
	}
}

func TestANonMemberThatWasHeardOnceIsForgotten(t *testing.T) {
	c := newCluster(t, 1)
	c.apply([]state.Change{state.PutHost{Host: kbroker.Host{Name: "h2", Role: kbroker.RoleCore, State: kbroker.HostJoining}}})
	c.silent["h2"] = 10 * time.Second
	w := c.world() // h1 has heard h2, ten seconds ago
	w.InState = map[kbroker.HostID]time.Duration{"h2": joinExpires + time.Second}
	changes := Plan(w)
	if len(changes) != 1 {
		t.Fatalf("planned %v, want h2 forgotten", changes)
	}
	if drop, ok := changes[0].(state.DropHost); !ok || drop.Host != "h2" {
		t.Errorf("planned %v, want h2 forgotten", changes)
	}
}

// drain has a host emptied.
func (c *cluster) drain(host kbroker.HostID, force bool) {
	h := c.view.Hosts[host]
	h.Drain = &kbroker.Drain{Force: force}
	c.view.Hosts[host] = h
}

// stepAnswering is step, and fails the test when fewer than want answer.
func (c *cluster) stepAnswering(want int) {
	c.t.Helper()
	c.step()
	if n := c.readyCount(); n < want {
		c.t.Fatalf("%d instances answer, want %d at any time: %v", n, want, c.live())
	}
}

func TestADrainedHostIsEmptiedOneByOne(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(6))
	c.settle()
	c.drain("h2", false)
	for range 60 {
		before := len(c.live()["h2"])
		c.stepAnswering(6)
		if now := len(c.live()["h2"]); now < before-1 {
			t.Fatalf("%d instances left h2 at once", before-now)
		}
	}
	if on := c.view.On("h2"); len(on) != 0 || c.count() != 6 {
		t.Errorf("%d of 6 instances, on h2: %v", c.count(), on)
	}
	if r := c.view.Apps[webKey].Rollout; r.State != kbroker.RolloutDone {
		t.Errorf("the rollout is %s: a drain is none", r.State)
	}
	h := c.view.Hosts["h2"]
	h.Drain = nil
	c.view.Hosts["h2"] = h
	c.settle()
	if n := len(c.live()["h2"]); n != 0 {
		t.Errorf("%d instances went back by themselves", n)
	}
}

func TestADrainWaitsForRoomUnlessItIsForced(t *testing.T) {
	c := newCluster(t, 2)
	s := service(2)
	s.Resources.CPU = 1.5 // one on each host
	c.deploy(s)
	c.settle()
	c.drain("h1", false)
	for range 30 {
		c.stepAnswering(2)
	}
	if u := c.view.Apps[webKey].Unplaced; len(u) != 1 || !strings.Contains(u[0].Reason, "h1: draining") {
		t.Errorf("unplaced %+v, want the reason", u)
	}
	c.drain("h1", true)
	c.settle()
	if n := len(c.live()["h1"]); n != 0 || c.count() != 1 {
		t.Errorf("by force: %v", c.live())
	}
}

// TestARollingRestartKeepsTheSpread: whatever runs beside it, and however many
// change at a time, what was spread evenly is so afterwards.
func TestARollingRestartKeepsTheSpread(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		hosts := rapid.IntRange(2, 5).Draw(r, "hosts")
		c := newCluster(t, hosts)
		s := service(hosts * rapid.IntRange(1, 2).Draw(r, "each"))
		s.Update.Parallel = rapid.IntRange(1, 3).Draw(r, "parallel")
		c.deploy(s)
		c.settle()
		for i, h := range sortedHosts(&c.view) { // loaded unevenly by another app
			p := kbroker.Placement{Tenant: tenant, App: "other", Instance: kbroker.InstanceID(fmt.Sprintf("other-x-%d", i)), Host: h.Name, Epoch: 1}
			p.Spec.Resources.CPU = rapid.SampledFrom([]float64{0, 0.3, 0.6, 0.9}).Draw(r, "load")
			c.view.Placements[keyOf(p)] = p
		}
		d, err := decideRestart(&c.view, kbroker.RestartRequest{Tenant: tenant, App: webKey.App}, time.Time{})
		if err != nil {
			r.Fatal(err)
		}
		c.apply(d.changes)
		c.settle()
		for _, h := range sortedHosts(&c.view) {
			n := 0
			for _, p := range c.live()[h.Name] {
				if p.App == webKey.App {
					n++
				}
			}
			if want := s.Count.Min / hosts; n != want {
				r.Fatalf("%s runs %d, want %d as before: %v", h.Name, n, want, c.live())
			}
		}
	})
}

// TestAForcedDrainIsForcedWhateverRolls: two hosts, each full with one instance,
// and one of them is drained by force.
func TestAForcedDrainIsForcedWhateverRolls(t *testing.T) {
	full := func(version string) kbroker.Service {
		s := service(2)
		s.Resources.CPU = 1.5
		s.Args = []string{version}
		return s
	}
	for name, tc := range map[string]struct {
		broken bool // the new version
		before int  // seconds from its deploy to the drain
	}{
		"while a rollout runs":                  {before: 1},
		"before a rollout has begun":            {before: 0},
		"while a rollout runs that is to fail":  {broken: true, before: 10},
		"after a rollout has failed":            {broken: true, before: 90},
		"when nothing rolls, and one is broken": {before: -1},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2)
			c.deploy(full("1"))
			c.settle()
			c.broken[2] = tc.broken
			if tc.before >= 0 {
				c.deploy(full("2"))
			} else { // the other one crashes from now on
				c.broken[1] = true
				for _, p := range c.live()["h1"] {
					c.keep(keyOf(p))
				}
				c.settle()
			}
			for range tc.before {
				c.step()
			}
			c.drain("h1", true)
			for range 10 {
				c.step()
			}
			if on := c.live()["h1"]; len(on) != 0 { // its allocator has room elsewhere
				t.Errorf("h1 still has %v, rollout %+v", on, c.view.Apps[webKey].Rollout)
			}
			if on := c.live()["h2"]; len(on) != 1 {
				t.Errorf("h2 has %v, want its instance", on)
			}
		})
	}
}

// TestAForcedDrainWaitsForWhatHasRoom: with room elsewhere it is a drain as any
// other.
func TestAForcedDrainWaitsForWhatHasRoom(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(6))
	c.settle()
	changed := service(6)
	changed.Args = []string{"x"}
	c.deploy(changed)
	c.step()
	c.drain("h2", true)
	for range 120 {
		c.stepAnswering(6)
	}
	if len(c.view.On("h2")) != 0 || c.count() != 6 {
		t.Errorf("%v", c.live())
	}
}

func TestADrainDuringAFailedRolloutKeepsTheOldVersion(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	c.broken[2] = true
	changed := service(3)
	changed.Args = []string{"x"}
	c.deploy(changed)
	for range 90 {
		c.step()
	}
	if r := c.view.Apps[webKey].Rollout; r.State != kbroker.RolloutFailed {
		t.Fatalf("the rollout is %s", r.State)
	}
	host := kbroker.HostID("")
	for h, ps := range c.live() {
		for _, p := range ps {
			if p.Version == 1 && h > host {
				host = h
			}
		}
	}
	old := func(on kbroker.HostID) (n int) {
		for h, ps := range c.live() {
			for _, p := range ps {
				if p.Version == 1 && (on == "" || on == h) {
					n++
				}
			}
		}
		return n
	}
	want := old("")
	c.drain(host, false)
	for range 60 {
		c.stepAnswering(want)
	}
	if old(host) != 0 || old("") < want {
		t.Errorf("%d old instances, %d on the drained %s: %v", old(""), old(host), host, c.live())
	}
}

func TestAHostIsDrainedDuringARollout(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(4))
	c.settle()
	changed := service(4)
	changed.Args = []string{"x"}
	c.deploy(changed)
	c.step()
	c.drain("h1", false)
	for range 120 {
		c.stepAnswering(4)
	}
	r := c.view.Apps[webKey].Rollout
	if len(c.view.On("h1")) != 0 || c.count() != 4 || r.State != kbroker.RolloutDone {
		t.Errorf("rollout %s (%s); %v", r.State, r.Reason, c.live())
	}
}

func TestWhatARemovedHostRanIsPlacedElsewhere(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	c.down["h3"] = true
	h := c.view.Hosts["h3"]
	h.State = kbroker.HostRemoved
	c.view.Hosts["h3"] = h
	c.settle()
	if on := c.view.On("h3"); len(on) != 0 || c.count() != 3 {
		t.Errorf("%d of 3 instances, on h3: %v", c.count(), on)
	}
}
