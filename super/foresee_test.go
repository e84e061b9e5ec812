package super

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// planOf plans the deploy of services on what the cluster is now.
func (c *cluster) planOf(services ...kbroker.Service) (kbroker.PlanReply, error) {
	w := c.world()
	return decidePlan(context.Background(), w.View, w.Verdict, kbroker.PlanRequest{Tenant: tenant, App: kbroker.App{Name: "shop", Services: services}}, time.Time{})
}

// whole is a form that passes the rules of specs.
func whole(t *testing.T, change func(*kbroker.Service)) kbroker.Service {
	return shop(t, change).Services[0]
}

// scaledBy makes a service one of 3 to 6 instances.
func scaledBy(busy float64) func(*kbroker.Service) {
	return func(s *kbroker.Service) {
		s.Count, s.Scale = kbroker.Count{Min: 3, Max: 6}, &kbroker.Scale{Busy: busy}
	}
}

func TestDecidePlan(t *testing.T) {
	base := func(s *kbroker.Service) { s.Count = kbroker.Count{Min: 3, Max: 3} }
	for _, tc := range []struct {
		name    string
		running func(*kbroker.Service) // nil: the app is new
		wanted  func(*kbroker.Service)
		change  kbroker.ServiceChange
		mode    kbroker.ChangeMode
		starts  int
		leaves  int
		lacking int
	}{
		{"a new app", nil, base, kbroker.ServiceNew, kbroker.ModeStart, 3, 0, 0},
		{"what runs already", base, base, kbroker.ServiceUnchanged, "", 0, 0, 0},
		{"more instances", base, func(s *kbroker.Service) { s.Count = kbroker.Count{Min: 5, Max: 5} }, kbroker.ServiceChanged, kbroker.ModeStart, 2, 0, 0},
		{"fewer instances", base, func(s *kbroker.Service) { s.Count = kbroker.Count{Min: 1, Max: 1} }, kbroker.ServiceChanged, kbroker.ModeStop, 0, 2, 0},
		{"another program", base, func(s *kbroker.Service) { s.Artifact.SHA256 = s.Artifact.SHA256[1:] + "b" }, kbroker.ServiceChanged, kbroker.ModeRolling, 3, 3, 0},
		{"a program that is not built", base, func(s *kbroker.Service) { s.Artifact.SHA256 = "" }, kbroker.ServiceChanged, kbroker.ModeRolling, 3, 3, 0},
		{"other update rules", base, func(s *kbroker.Service) { s.Update.Parallel = 2 }, kbroker.ServiceChanged, kbroker.ModeInPlace, 0, 0, 0},
		{"another scale", scaledBy(0.7), scaledBy(0.5), kbroker.ServiceChanged, kbroker.ModeInPlace, 0, 0, 0},
		{"the same scale", scaledBy(0.7), scaledBy(0.7), kbroker.ServiceUnchanged, "", 0, 0, 0},
		{"no scale", scaledBy(0.7), func(s *kbroker.Service) { s.Count = kbroker.Count{Min: 3, Max: 6} }, kbroker.ServiceChanged, kbroker.ModeInPlace, 0, 0, 0},
		{"more than fits", base, func(s *kbroker.Service) {
			s.Count, s.Resources.CPU = kbroker.Count{Min: 5, Max: 5}, 0.9
		}, kbroker.ServiceChanged, kbroker.ModeRolling, 3, 2, 1}, // an old one stays: its leaving makes no room
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, 2)
			for name, h := range c.view.Hosts {
				h.Capacity.CPU = map[kbroker.HostID]float64{"h1": 2, "h2": 1}[name]
				c.view.Hosts[name] = h
			}
			if tc.running != nil {
				c.deploy(whole(t, tc.running))
				c.settle()
			}
			p, err := c.planOf(whole(t, tc.wanted))
			if err != nil {
				t.Fatal(err)
			}
			lacking := 0
			for _, u := range p.Unplaced {
				lacking += u.Count
				if len(u.Hosts) != 2 || len(u.Hosts[0].Why) == 0 {
					t.Errorf("unplaced %+v, want the reason of each of 2 hosts", u)
				}
			}
			s := p.Services[0]
			if s.Change != tc.change || s.Mode != tc.mode || p.Starts != tc.starts || p.Leaves != tc.leaves || lacking != tc.lacking {
				t.Errorf("plan is %s, %q, %d start, %d leave, %d lack a host; want %s, %q, %d, %d, %d", s.Change, s.Mode, p.Starts, p.Leaves, lacking, tc.change, tc.mode, tc.starts, tc.leaves, tc.lacking)
			}
			if p.Unchanged != (tc.change == kbroker.ServiceUnchanged) {
				t.Errorf("unchanged is %t of a service that is %s", p.Unchanged, s.Change)
			}
		})
	}
}

func TestAPlanShowsWhatIsRemovedAndChangesNothing(t *testing.T) {
	c := newCluster(t, 2)
	api := whole(t, func(s *kbroker.Service) { s.Name = "api" })
	c.deploy(api, whole(t, nil))
	c.settle()
	before := fmt.Sprint(c.view.Apps, c.view.Placements, c.view.Versions)
	p, err := c.planOf(api)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Services) != 2 || p.Services[1].Change != kbroker.ServiceRemoved || p.Services[1].Mode != kbroker.ModeStop || p.Leaves != 3 || p.Starts != 0 {
		t.Errorf("plan is %+v, want web removed with its 3 instances", p)
	}
	if after := fmt.Sprint(c.view.Apps, c.view.Placements, c.view.Versions); after != before {
		t.Error("planning changed the view")
	}
	if _, err := c.planOf(whole(t, func(s *kbroker.Service) { s.Require = []string{"disk == ssd"} })); !errors.Is(errorOf(err), kbroker.Invalid) {
		t.Errorf("a plan that no host can run: %v, want invalid as its deploy", err)
	}
}

// TestPlansComeTrue: what a plan foresees is what happens, whatever else runs. To set
// instances apart, later, is no part of it. Where several are replaced at a time and have
// to wait for room, it depends on how long each takes which of them gets it: then only as
// many run as was foreseen.
func TestPlansComeTrue(t *testing.T) {
	first := whole(t, nil)
	rapid.Check(t, func(r *rapid.T) {
		c := newCluster(t, rapid.IntRange(1, 5).Draw(r, "hosts"))
		c.together = true
		draw := func(label string) kbroker.Service {
			s := first
			n := rapid.IntRange(0, 8).Draw(r, label+" count")
			s.Count = kbroker.Count{Min: n, Max: n}
			s.Resources.CPU = rapid.SampledFrom([]float64{0.1, 0.3, 0.9}).Draw(r, label+" cpu")
			s.Update.Parallel = rapid.IntRange(1, 3).Draw(r, label+" parallel")
			s.Artifact.SHA256 = fmt.Sprintf("%064d", rapid.IntRange(1, 2).Draw(r, label+" program"))
			return s
		}
		other := newVersion(&c.view, state.AppKey{Tenant: tenant, App: "other"}, kbroker.App{Name: "other", Services: []kbroker.Service{draw("other")}}, "deploy", time.Time{})
		c.apply(other.changes)
		before := draw("first")
		c.deploy(before)
		c.settle()
		next := draw("next")
		p, err := c.planOf(next)
		if err != nil {
			r.Fatal(err)
		}
		want := map[kbroker.HostID]int{}
		mine := func() map[kbroker.HostID]int {
			out := map[kbroker.HostID]int{}
			for host, ps := range c.live() {
				for _, q := range ps {
					if q.App == "shop" {
						out[host]++
					}
				}
			}
			return out
		}
		maps.Copy(want, mine())
		for _, i := range p.Start {
			want[i.Host]++
		}
		for _, i := range p.Leave {
			want[i.Host]--
		}
		maps.DeleteFunc(want, func(_ kbroker.HostID, n int) bool { return n == 0 })
		d, err := decideDeploy(&c.view, kbroker.DeployRequest{Tenant: tenant, App: kbroker.App{Name: "shop", Services: []kbroker.Service{next}}, CheckIndex: p.CheckIndex}, time.Time{})
		if err != nil {
			r.Fatal(err)
		}
		c.apply(d.changes)
		c.settle()
		got := mine()
		if crowded := next.Update.Parallel > 1 && max(before.Resources.CPU, next.Resources.CPU) > 0.3; crowded {
			got, want = map[kbroker.HostID]int{"all": total(got)}, map[kbroker.HostID]int{"all": total(want)}
		}
		if !reflect.DeepEqual(got, want) {
			r.Fatalf("per host run %v, the plan said %v (start %v, leave %v)", got, want, p.Start, p.Leave)
		}
	})
}

func total(perHost map[kbroker.HostID]int) (n int) {
	for _, of := range perHost {
		n += of
	}
	return n
}

func TestTheCheckIndexSeesWhatChangesAndNothingElse(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(whole(t, nil))
	c.settle()
	last := checkIndex(&c.view, webKey)
	if last == 0 || last >= 1<<indexBits {
		t.Fatalf("index %d is not from 1 to below 2^%d", last, indexBits)
	}
	for range 100 {
		c.step()
	}
	if got := checkIndex(&c.view, webKey); got != last {
		t.Errorf("the index of a quiet cluster went from %d to %d", last, got)
	}
	other := newVersion(&c.view, state.AppKey{Tenant: tenant, App: "other"}, kbroker.App{Name: "other", Services: []kbroker.Service{service(2)}}, "deploy", time.Time{})
	c.apply(other.changes)
	c.settle()
	if got := checkIndex(&c.view, webKey); got != last {
		t.Errorf("another app's deploy changed the index from %d to %d", last, got)
	}
	seen := map[uint64]string{last: "nothing"}
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"a version", func() { c.deploy(form("two", 3)); c.settle() }},
		{"the way back to the same", func() { c.rollback(1); c.settle() }},
		{"a restart", func() { c.restart(""); c.settle() }},
		{"a restart of one instance", func() { c.restart(c.liveNames()[0]) }},
		{"a lost host", func() { c.settle(); c.down["h3"] = true; c.settle() }},
		{"a demand", func() {
			c.apply([]state.Change{state.PutDemand{Demand: kbroker.Demand{Tenant: tenant, App: "shop", Epoch: 1, Wanted: map[kbroker.ServiceName]int{"web": 2}}}})
		}},
		{"a stop", func() {
			d, err := decideStop(&c.view, kbroker.StopRequest{Tenant: tenant, App: "shop"})
			if err != nil {
				t.Fatal(err)
			}
			c.apply(d.changes)
		}},
	} {
		step.do()
		got := checkIndex(&c.view, webKey)
		if before, ok := seen[got]; ok {
			t.Errorf("the index after %s is that after %s", step.what, before)
		}
		seen[got] = step.what
	}
}

func TestADeployOfAnOldPlanIsRefused(t *testing.T) {
	c := newCluster(t, 2)
	c.deploy(whole(t, nil))
	c.settle()
	next := whole(t, func(s *kbroker.Service) { s.Args = []string{"-v"} })
	p, err := c.planOf(next)
	if err != nil {
		t.Fatal(err)
	}
	request := kbroker.DeployRequest{Tenant: tenant, App: kbroker.App{Name: "shop", Services: []kbroker.Service{next}}, CheckIndex: p.CheckIndex}
	d, err := decideDeploy(&c.view, request, time.Time{})
	if err != nil || len(d.changes) == 0 {
		t.Fatalf("deploy of a fresh plan: %v with %d changes", err, len(d.changes))
	}
	stale := request
	stale.CheckIndex++
	if _, err := decideDeploy(&c.view, stale, time.Time{}); !errors.Is(errorOf(err), kbroker.Refused) {
		t.Errorf("deploy of a plan of another state: %v, want refused", err)
	}
	c.apply(d.changes)
	if d, err := decideDeploy(&c.view, request, time.Time{}); err != nil || len(d.changes) != 0 {
		t.Errorf("the same deploy sent again after a lost answer: %v with %d changes, want unchanged", err, len(d.changes))
	}
}

func TestHostFitsSayWhatRefusesAndWhoIsNext(t *testing.T) {
	c := newCluster(t, 5)
	set := func(name kbroker.HostID, change func(*kbroker.Host)) {
		h := c.view.Hosts[name]
		change(&h)
		c.view.Hosts[name] = h
	}
	set("h2", func(h *kbroker.Host) { h.Capacity = kbroker.Resources{CPU: 0.05, MemoryBytes: 1 << 20} })
	set("h3", func(h *kbroker.Host) { h.Labels["arch"] = "arm64" })
	set("h4", func(h *kbroker.Host) { h.State = kbroker.HostLost })
	s := service(1)
	s.Require = []string{"host != h3"}
	c.deploy(s)
	c.down["h4"], c.silent["h4"] = true, time.Hour
	c.settle()
	d := newDraft(c.world())
	fits := map[kbroker.HostID]kbroker.HostFit{}
	var next kbroker.HostID
	for _, f := range d.hostFits(webKey, s) {
		fits[f.Host] = f
		if f.Rank == 1 {
			next = f.Host
		}
	}
	for host, want := range map[kbroker.HostID][]string{
		"h1": {}, "h5": {},
		"h2": {"needs 0.10 cpu, 0.05 are free", "needs 64 MiB memory, 1 MiB are free"},
		"h3": {"the program is built for amd64, the host is arm64", "does not meet host != h3"},
		"h4": {"lost"},
	} {
		if f := fits[host]; !slices.Equal(f.Why, want) || f.Fits != (len(want) == 0) {
			t.Errorf("host %s fits %t, refuses by %q; want %q", host, f.Fits, f.Why, want)
		}
	}
	live := d.live(webKey, func(p kbroker.Placement) bool { return p.Service == "web" })
	if take := d.seats(s, live).take(); take != next || take == "" {
		t.Errorf("next is %q, but %q would be taken", next, take)
	}
}

// rollout is a world in which an app runs, and the changes that roll it; cpu is
// what an instance asks for, of two per host.
func rollout(t testing.TB, hosts, instances int, cpu float64) (World, []state.Change) {
	c := newCluster(t, hosts)
	one, two := form("one", instances), form("two", instances)
	one.Resources.CPU, two.Resources.CPU = cpu, cpu
	c.deploy(one)
	for range 5 {
		c.step()
	}
	w := c.world()
	return w, newVersion(w.View, webKey, kbroker.App{Name: "shop", Services: []kbroker.Service{two}}, "deploy", time.Time{}).changes
}

// TestALargeRolloutIsForeseenInFewRounds: what a round costs grows with the
// instances, so their number must not.
func TestALargeRolloutIsForeseenInFewRounds(t *testing.T) {
	for _, tc := range []struct {
		name string
		cpu  float64
		most int
	}{
		{"with room for all", 0.05, foreseenSteps + 5},
		{"with room for a few", 0.0996, 3 * foreseenSteps},
		{"with room for none", 0.1, 3 * foreseenSteps},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, changes := rollout(t, 50, 1000, tc.cpu)
			look := foresee(t.Context(), w.View, w.Verdict, webKey, changes)
			if !look.settled || len(look.start) != 1000 || len(look.leave) != 1000 {
				t.Errorf("settled %t, %d start, %d leave; want true, 1000, 1000", look.settled, len(look.start), len(look.leave))
			}
			if look.rounds > tc.most {
				t.Errorf("%d rounds, want at most %d", look.rounds, tc.most)
			}
		})
	}
}

// TestStridesLeadWhereStepsDo: a look ahead that takes several instances at a
// time ends with as many starts and leaves as one that takes one after the other,
// and leaves no host fuller than it can be.
func TestStridesLeadWhereStepsDo(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		c := newCluster(t, rapid.IntRange(1, 6).Draw(r, "hosts"))
		draw := func(program string) kbroker.Service {
			s := form(program, rapid.IntRange(1, 30).Draw(r, program+" count"))
			s.Resources.CPU = rapid.SampledFrom([]float64{0.02, 0.05, 0.1}).Draw(r, "cpu")
			s.Update.Parallel = rapid.IntRange(1, 4).Draw(r, program+" parallel")
			return s
		}
		c.deploy(draw("one"))
		c.settle()
		w := c.world()
		changes := newVersion(w.View, webKey, kbroker.App{Name: "shop", Services: []kbroker.Service{draw("two")}}, "deploy", time.Time{}).changes
		slow := foreseeIn(t.Context(), w.View, w.Verdict, webKey, changes, 0)
		fast := foreseeIn(t.Context(), w.View, w.Verdict, webKey, changes, rapid.IntRange(2, 8).Draw(r, "steps"))
		sum := func(o outlook) string {
			short := 0
			for _, u := range o.unplaced {
				short += u.Count
			}
			return fmt.Sprint(o.settled, " start ", len(o.start), " leave ", len(o.leave), " unplaced ", short)
		}
		if sum(slow) != sum(fast) {
			r.Fatalf("in strides: %s; one by one: %s", sum(fast), sum(slow))
		}
		used := map[kbroker.HostID]float64{}
		for _, p := range fast.start {
			used[p.Host] += 0.02
		}
		for host, cpu := range used {
			if cpu > w.View.Hosts[host].Capacity.CPU {
				r.Fatalf("host %s is given %.2f cpu", host, cpu)
			}
		}
	})
}

func TestAPlanEndsWithItsCaller(t *testing.T) {
	w, _ := rollout(t, 5, 20, 0.05)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	app := kbroker.App{Name: "shop", Services: []kbroker.Service{whole(t, nil)}}
	_, err := decidePlan(ctx, w.View, w.Verdict, kbroker.PlanRequest{Tenant: tenant, App: app}, time.Time{})
	if !errors.Is(err, kbroker.DeadlineExceeded) {
		t.Errorf("a plan whose caller has gone: %v, want deadline_exceeded", err)
	}
}

// TestOnePlanAtATime: a second one waits for the first, or hears that the core is
// busy.
func TestOnePlanAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &desk{Super: &Super{cfg: Config{Host: "h1"}}, planning: make(chan struct{}, 1)}
		done, err := d.oneAtATime(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = d.oneAtATime(t.Context())
		if e := errorOf(err); e.Code != kbroker.Overloaded || e.Hint == "" || time.Since(began) != planWait {
			t.Errorf("a second plan after %v: %v (hint %q), want overloaded with a hint after %v", time.Since(began), err, e.Hint, planWait)
		}
		time.AfterFunc(planWait/2, done) // in the bubble's time
		again, err := d.oneAtATime(t.Context())
		if err != nil {
			t.Fatalf("a plan that waited for the first: %v", err)
		}
		again()
	})
}

// A core answers a plan within a second; a large rolling one in a cluster without
// room is the worst.
func BenchmarkForeseeALargeRollout(b *testing.B) {
	w, changes := rollout(b, 50, 1000, 0.1)
	for b.Loop() {
		look := foresee(b.Context(), w.View, w.Verdict, webKey, changes)
		if len(look.start) != 1000 || !look.settled {
			b.Fatalf("%d start (settled: %t), want 1000", len(look.start), look.settled)
		}
		b.ReportMetric(float64(look.rounds), "rounds/op")
	}
}
