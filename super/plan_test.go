package super

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

func TestPlanFirstVersion(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.round()
	for host, ps := range c.live() {
		if len(ps) != 1 {
			t.Errorf("host %s has %d instances of a service that spreads over three hosts, want 1", host, len(ps))
		}
	}
	if n := c.count(); n != 3 {
		t.Errorf("%d instances are placed at once, want 3", n)
	}
	allocators := map[kbroker.HostID]bool{}
	for k, p := range c.view.Placements {
		if p.Service == kbroker.AllocatorService {
			allocators[k.Host] = true
		}
	}
	if len(allocators) != 2 {
		t.Errorf("the active and the standby allocator are on %d hosts, want 2", len(allocators))
	}
	if got := c.view.Apps[webKey].Rollout.State; got != kbroker.RolloutRunning {
		t.Errorf("rollout is %s before anything is ready, want running", got)
	}
	c.settle()
	if got := c.view.Apps[webKey].Rollout.State; got != kbroker.RolloutDone {
		t.Errorf("rollout is %s after all are ready, want done", got)
	}
}

func TestPlanRollsOneAtATimeAndNeverBelowCount(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	next := service(3)
	next.Artifact.SHA256 = "two"
	c.deploy(next)
	for i := 0; c.view.Apps[webKey].Rollout.State == kbroker.RolloutRunning; i++ {
		if i > 100 {
			t.Fatal("the rollout does not end")
		}
		c.step()
		if ready := c.readyCount(); ready < 3 {
			t.Fatalf("second %d: %d instances answer during a rollout, want 3 or more", i, ready)
		}
		fresh := 0
		for k, p := range c.view.Placements {
			if p.Version == 2 && p.Service == "web" && !p.Stop && c.view.Statuses[k].State != kbroker.StateReady {
				fresh++
			}
		}
		if fresh > 1 {
			t.Fatalf("second %d: %d new instances start at a time, want 1", i, fresh)
		}
	}
	c.settle()
	for _, ps := range c.live() {
		for _, p := range ps {
			if p.Version != 2 {
				t.Errorf("instance %s still has version %d", p.Instance, p.Version)
			}
		}
	}
	if n := c.count(); n != 3 {
		t.Errorf("%d instances after the rollout, want 3", n)
	}
}

func TestPlanFailedRolloutKeepsTheOldInstances(t *testing.T) {
	for _, rollback := range []bool{false, true} {
		t.Run(fmt.Sprintf("auto_rollback %t", rollback), func(t *testing.T) {
			c := newCluster(t, 3)
			c.deploy(service(3))
			c.settle()
			bad := service(3)
			bad.Artifact.SHA256, bad.Update.AutoRollback = "bad", rollback
			c.broken[2] = true
			c.deploy(bad)
			for range 200 {
				c.step()
				if ready := c.readyCount(); ready < 3 {
					t.Fatalf("%d instances answer while a rollout fails, want 3", ready)
				}
			}
			rec := c.view.Apps[webKey]
			if rollback {
				if rec.Version != 1 || rec.Rollout.State != kbroker.RolloutDone || !strings.Contains(rec.Rollout.Reason, "version 2 failed") {
					t.Errorf("record is %+v, want version 1, done, and a reason that names version 2", rec)
				}
				if n := c.count(); n != 3 {
					t.Errorf("%d instances after the way back, want 3", n)
				}
				return
			}
			if rec.Version != 2 || rec.Rollout.State != kbroker.RolloutFailed || !strings.Contains(rec.Rollout.Reason, "exit code 1") {
				t.Errorf("record is %+v, want version 2, failed, and the reason of the instance", rec)
			}
		})
	}
}

func TestPlanReplacesWhatALostHostRan(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	c.down["h2"] = true
	for s := 1; s <= 5; s++ {
		c.step()
		if s < 5 && c.count() != 3 {
			t.Fatalf("after %d s of silence: %d live placements, want 3: nothing moves before the bound", s, c.count())
		}
	}
	if got := c.view.Hosts["h2"].State; got != kbroker.HostLost {
		t.Fatalf("h2 is %s after 5 s, want lost", got)
	}
	if ps := c.live()["h2"]; len(ps) != 0 {
		t.Errorf("h2 is lost and still has %d placements", len(ps))
	}
	if c.count() != 3 {
		t.Errorf("%d instances are placed elsewhere, want 3", c.count())
	}
	tombstones := 0
	for k, p := range c.view.Placements {
		if k.Host == "h2" && p.Stop {
			tombstones++
		}
	}
	if tombstones == 0 {
		t.Error("what the lost host may still run has no tombstone")
	}
	c.down["h2"] = false
	c.settle()
	for k := range c.view.Placements {
		if k.Host == "h2" {
			t.Errorf("%s is still recorded on h2 after its agent confirmed the exit", k.Instance)
		}
	}
	if c.view.Hosts["h2"].State != kbroker.HostReady {
		t.Errorf("h2 returned and is %s, want ready", c.view.Hosts["h2"].State)
	}
}

func TestPlanFreezesBeyondTheShare(t *testing.T) {
	c := newCluster(t, 7)
	c.deploy(service(7))
	c.settle()
	c.down["h1"], c.down["h2"] = true, true
	for range 10 {
		c.step()
	}
	if c.view.Hosts["h1"].State != kbroker.HostLost || c.view.Hosts["h2"].State != kbroker.HostLost {
		t.Fatalf("h1 is %s, h2 is %s, want both lost: a third of seven is two", c.view.Hosts["h1"].State, c.view.Hosts["h2"].State)
	}
	before := c.names("h3")
	c.down["h3"] = true
	for range 20 {
		c.step()
	}
	if len(c.world().Verdict.Alarms) == 0 {
		t.Error("three of seven hosts are silent: want an alarm")
	}
	if after := c.names("h3"); after != before {
		t.Errorf("h3's placements changed during a freeze:\nbefore %s\nafter  %s", before, after)
	}
	scaled := service(8)
	c.deploy(scaled)
	for range 20 {
		c.step()
	}
	if c.count() != 8 {
		t.Errorf("%d instances during a freeze, want 8: healthy hosts go on being planned", c.count())
	}
}

func TestPlanWithoutAMajorityDoesNothing(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	c.deploy(service(5))
	c.down["h2"], c.down["h3"] = true, true
	if changes := c.round(); len(changes) != 0 {
		t.Errorf("one of three cores answers: planned %v, want nothing", changes)
	}
}

func TestPlanScalesInPlace(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	names := map[kbroker.InstanceID]bool{}
	for _, ps := range c.live() {
		for _, p := range ps {
			names[p.Instance] = true
		}
	}
	c.deploy(service(5))
	c.settle()
	kept := 0
	for _, ps := range c.live() {
		for _, p := range ps {
			if p.Version != 2 {
				t.Errorf("%s shows version %d, want 2", p.Instance, p.Version)
			}
			if names[p.Instance] {
				kept++
			}
		}
	}
	if kept != 3 || c.count() != 5 {
		t.Errorf("scaled 3 to 5: %d instances, %d of them kept; want 5, 3", c.count(), kept)
	}
	c.deploy(service(1))
	c.settle()
	if c.count() != 1 {
		t.Errorf("scaled to 1: %d instances", c.count())
	}
}

// A scale is the allocator's: with another one, and with none, the processes stay.
func TestAnotherScaleRestartsNothing(t *testing.T) {
	c := newCluster(t, 3)
	s := service(3)
	s.Count.Max = 6
	c.deploy(s)
	c.settle()
	before := c.liveNames()
	if len(before) != 3 {
		t.Fatalf("%q run, want 3", before)
	}
	for version, scale := range []*kbroker.Scale{{Busy: 0.5}, {CPU: 0.7, Requests: 200, Buffer: 1, Down: time.Minute}, nil} {
		s.Scale = scale
		c.deploy(s)
		c.settle()
		if after := c.liveNames(); !slices.Equal(after, before) {
			t.Errorf("with scale %+v run %q, want %q as before", scale, after, before)
		}
		for _, ps := range c.live() {
			for _, p := range ps {
				if p.Version != version+2 || !reflect.DeepEqual(p.Spec.Scale, scale) {
					t.Errorf("%s shows version %d with scale %+v, want %d with %+v", p.Instance, p.Version, p.Spec.Scale, version+2, scale)
				}
			}
		}
	}
}

func TestPlanLeavesPendingWhatDoesNotFit(t *testing.T) {
	c := newCluster(t, 2)
	s := service(5)
	s.Resources.CPU = 0.9
	c.deploy(s)
	c.settle()
	rec := c.view.Apps[webKey]
	if c.count() != 4 || len(rec.Unplaced) != 1 || rec.Unplaced[0].Count != 1 || !strings.Contains(rec.Unplaced[0].Reason, "cpu") {
		t.Errorf("%d placed, unplaced %+v; want 4 placed and 1 that needs cpu", c.count(), rec.Unplaced)
	}
	for range 61 {
		c.step()
	}
	if got := c.view.Apps[webKey].Rollout; got.State != kbroker.RolloutFailed || !strings.Contains(got.Reason, "cpu") {
		t.Errorf("rollout is %+v at its deadline, want failed for want of cpu", got)
	}
}

func TestPlanMakesRoomWhenHostsAreFull(t *testing.T) {
	c := newCluster(t, 2)
	s := service(2)
	s.Resources.CPU = 1.5
	c.deploy(s)
	c.settle()
	s.Artifact.SHA256 = "two"
	c.deploy(s)
	for i := 0; c.view.Apps[webKey].Rollout.State == kbroker.RolloutRunning && i < 100; i++ {
		c.step()
		if c.readyCount() < 1 {
			t.Fatal("no instance answers during a rollout on full hosts, want at least 1")
		}
	}
	if got := c.view.Apps[webKey].Rollout; got.State != kbroker.RolloutDone {
		t.Errorf("rollout on full hosts is %+v, want done", got)
	}
}

func TestPlanStopsAStoppedApp(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(3))
	c.settle()
	rec := c.view.Apps[webKey]
	rec.Stopped = true
	c.apply([]state.Change{state.PutApp{Record: rec}})
	c.settle()
	if len(c.view.Placements) != 0 {
		t.Errorf("a stopped app has %d placements left", len(c.view.Placements))
	}
	if _, ok := c.view.Versions[webKey][1]; !ok {
		t.Error("a stopped app lost its version")
	}
}

func TestPlanNamesAreUniqueAcrossApps(t *testing.T) {
	c := newCluster(t, 1)
	long, short := service(1), service(1)
	long.Name, short.Name = "b-c", "c"
	deploy := func(app kbroker.AppName, s kbroker.Service) {
		k := state.AppKey{Tenant: tenant, App: app}
		c.apply(newVersion(&c.view, k, kbroker.App{Name: app, Services: []kbroker.Service{s}}, "deploy", time.Time{}).changes)
		c.settle()
	}
	deploy("a", long)
	deploy("a-b", short)
	perApp := map[kbroker.AppName]int{}
	for _, ps := range c.live() {
		for _, p := range ps {
			perApp[p.App]++
		}
	}
	if perApp["a"] != 1 || perApp["a-b"] != 1 {
		t.Errorf("instances per app: %v, want one of each: a/b-c and a-b/c would share a name", perApp)
	}
}

func TestPlanRecordsAMemberThatHasNoRecord(t *testing.T) {
	c := newCluster(t, 1)
	w := c.world()
	delete(w.View.Hosts, "h1")
	if changes := Plan(w); len(changes) != 0 {
		t.Errorf("heard, but no member of the broker: planned %v", changes)
	}
	w.Verdict.Current["h1"] = true
	changes := Plan(w)
	if len(changes) != 1 {
		t.Fatalf("planned %v, want the host recorded", changes)
	}
	if put, ok := changes[0].(state.PutHost); !ok || put.Host.Name != "h1" || put.Host.State != kbroker.HostReady {
		t.Errorf("planned %v, want h1 ready", changes)
	}
}

// BenchmarkPlan plans a full cluster in which nothing changes: 100,000
// instances on 1,000 hosts.
func BenchmarkPlan(b *testing.B) {
	c := newCluster(b, 1000)
	for app := range 100 {
		k := state.AppKey{Tenant: tenant, App: kbroker.AppName(fmt.Sprintf("app%d", app))}
		s := service(1000)
		s.Resources = kbroker.Resources{CPU: 0.01, MemoryBytes: 1 << 20}
		c.apply(newVersion(&c.view, k, kbroker.App{Name: k.App, Services: []kbroker.Service{s}}, "deploy", time.Time{}).changes)
	}
	began := time.Now()
	first := len(Plan(c.world()))
	b.Logf("first plan: %d changes in %v", first, time.Since(began).Round(time.Millisecond))
	c.round()
	for range 5 {
		c.step()
	}
	w := c.world()
	for b.Loop() {
		if changes := Plan(w); len(changes) != 0 {
			b.Fatalf("planning an applied plan: %d changes", len(changes))
		}
	}
}

// TestPlanProperties drives a cluster through random events and holds, after
// every round, what Plan promises.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		hosts := rapid.IntRange(1, 6).Draw(r, "hosts")
		c := newCluster(t, hosts)
		sha := 0
		names := []kbroker.HostID{}
		for i := range hosts {
			names = append(names, kbroker.HostID(fmt.Sprintf("h%d", i+1)))
		}
		for range rapid.IntRange(1, 25).Draw(r, "steps") {
			switch rapid.SampledFrom([]string{"deploy", "deploy", "down", "up", "wait", "wait", "demand", "stop", "forget"}).Draw(r, "event") {
			case "deploy":
				s := service(rapid.IntRange(0, 8).Draw(r, "count"))
				s.Count.Max += rapid.IntRange(0, 3).Draw(r, "more")
				s.Resources.CPU = rapid.SampledFrom([]float64{0.1, 0.3, 0.9}).Draw(r, "cpu")
				s.Update.Parallel = rapid.IntRange(1, 3).Draw(r, "parallel")
				s.Update.AutoRollback = rapid.Bool().Draw(r, "rollback")
				if rapid.Bool().Draw(r, "new") {
					sha++
				}
				s.Artifact.SHA256 = fmt.Sprint(sha)
				if rapid.Bool().Draw(r, "constrained") {
					s.Require = []string{"host != h1"}
				}
				if number := rapid.SampledFrom([]int{0, 0, 8080, 9090}).Draw(r, "port"); number != 0 {
					s.Ports = []kbroker.Port{{Name: "http", Number: number}}
				}
				c.broken[c.view.Apps[webKey].Latest+1] = rapid.IntRange(0, 4).Draw(r, "broken") == 0
				c.deploy(s)
			case "down":
				c.down[rapid.SampledFrom(names).Draw(r, "host")] = true
			case "up":
				c.down[rapid.SampledFrom(names).Draw(r, "host")] = false
			case "wait":
				for range rapid.IntRange(1, 70).Draw(r, "seconds") {
					c.step()
				}
			case "demand":
				c.apply([]state.Change{state.PutDemand{Demand: kbroker.Demand{
					Tenant: tenant, App: webKey.App, Wanted: map[kbroker.ServiceName]int{"web": rapid.IntRange(0, 12).Draw(r, "wanted")},
				}}})
			case "stop":
				if rec, ok := c.view.Apps[webKey]; ok {
					rec.Stopped = rapid.Bool().Draw(r, "stopped")
					c.apply([]state.Change{state.PutApp{Record: rec}})
				}
			case "forget": // reports are lost: absence, on which nobody may act
				before := livePlacements(c)
				clear(c.view.Statuses)
				c.memory = newMemory()
				c.round()
				for k := range before {
					if p, ok := c.view.Placements[k]; !ok || p.Stop && p.StopReason != "scaled down" && !strings.Contains(p.StopReason, "is lost") &&
						p.StopReason != "app stopped" && !strings.HasPrefix(p.StopReason, "makes room") {
						r.Fatalf("%s was stopped when its report was lost: %+v", k.Instance, p)
					}
				}
			}
			checkRound(r, c)
		}
	})
}

func livePlacements(c *cluster) map[state.PlacementKey]bool {
	out := map[state.PlacementKey]bool{}
	for k, p := range c.view.Placements {
		if !p.Stop {
			out[k] = true
		}
	}
	return out
}

// checkRound plans once and holds the promises of Plan.
func checkRound(r *rapid.T, c *cluster) {
	w := c.world()
	before := c.view.Placements
	first := Plan(w)
	if again := Plan(w); !reflect.DeepEqual(first, again) {
		r.Fatalf("two plans of one world differ:\n%v\n%v", first, again)
	}
	fresh := map[state.PlacementKey]bool{}
	for _, change := range first {
		if p, ok := change.(state.PutPlacement); ok {
			if _, existed := before[keyOf(p.Placement)]; !existed {
				fresh[keyOf(p.Placement)] = true
			}
		}
	}
	c.apply(first)
	// A second plan may go on (a rollback was decided, tombstones made room),
	// but it must come to rest without anything new being seen.
	for i := 0; ; i++ {
		next := Plan(c.world())
		if len(next) == 0 {
			break
		}
		if i > 3 {
			r.Fatalf("planning an applied plan does not come to rest: %v", next)
		}
		c.apply(next)
	}
	used, taken := map[kbroker.HostID]float64{}, map[string]kbroker.InstanceID{}
	for k, p := range c.view.Placements {
		used[k.Host] += p.Spec.Resources.CPU
		for _, port := range p.Spec.Ports {
			at := fmt.Sprintf("%s:%d", k.Host, port.Number)
			if other, ok := taken[at]; ok {
				r.Fatalf("%s is that of %s and of %s", at, k.Instance, other)
			}
			taken[at] = k.Instance
		}
		if !fresh[k] {
			continue
		}
		host := c.view.Hosts[k.Host]
		if host.State != kbroker.HostReady || w.Verdict.States[k.Host] == kbroker.HostSuspect {
			r.Fatalf("%s was placed on host %s, which is %s", k.Instance, k.Host, host.State)
		}
		if why := unfit(host, p.Spec); why != "" {
			r.Fatalf("%s was placed on host %s, which %s", k.Instance, k.Host, why)
		}
	}
	for host, cpu := range used {
		if limit := c.view.Hosts[host].Capacity.CPU; math.Round(cpu*1000) > math.Round(limit*1000) {
			r.Fatalf("host %s has %.3f cpu reserved of %.3f", host, cpu, limit)
		}
	}
	for k, rec := range c.view.Apps {
		if rec.Stopped || w.Verdict.Blind || rec.Rollout.State == kbroker.RolloutFailed {
			continue // nothing is planned, or the rollout stands where it stopped
		}
		for _, s := range c.view.Versions[k][rec.Version].App.Services {
			live := 0
			for _, p := range c.view.Placements {
				if p.Service == s.Name && !p.Stop && p.Template == kbroker.Template(s) && p.Replace == "" && c.view.Hosts[p.Host].Drain == nil && unfit(c.view.Hosts[p.Host], s) == "" {
					live++
				}
			}
			if live > wanted(s, c.view.Demands[k]) {
				r.Fatalf("%d live instances of the wanted version, at most %d are wanted", live, wanted(s, c.view.Demands[k]))
			}
		}
	}
}
