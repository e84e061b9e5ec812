package super

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// told are the events of all changes from now on, in short.
func (c *cluster) told(during func(apply func([]state.Change))) (out []string) {
	during(func(changes []state.Change) {
		for _, e := range eventsOf(&c.view, changes) {
			out = append(out, fmt.Sprintf("%s %s: %s", e.Kind, subjectOfEvent(e), e.Message))
		}
		c.apply(changes)
	})
	return out
}

func subjectOfEvent(e kbroker.Event) string {
	switch {
	case e.Instance != "":
		return string(e.Instance)
	case e.App != "":
		return string(e.App)
	}
	return string(e.Host)
}

// life steps until nothing happens any more and tells it.
func (c *cluster) life(start func(apply func([]state.Change))) []string {
	return c.told(func(apply func([]state.Change)) {
		start(apply)
		for quiet := 0; quiet < 8; quiet++ {
			c.agents()
			c.now += time.Second
			for name := range c.view.Hosts {
				if c.down[name] {
					c.silent[name] += time.Second
				}
			}
			if changes := Plan(c.world()); len(changes) > 0 {
				apply(changes)
				quiet = 0
			}
		}
	})
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("told\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestEventsOfADeployAndOfALostHost(t *testing.T) {
	c := newCluster(t, 3)
	got := c.life(func(apply func([]state.Change)) {
		apply(newVersion(&c.view, webKey, kbroker.App{Name: "shop", Services: []kbroker.Service{service(2)}}, "deploy", time.Time{}).changes)
	})
	wantLines(t, got,
		"version_stored shop: version 1, by deploy: web: new, count 2",
		"placed shop-web-1: placed on h1, version 1",
		"placed shop-web-2: placed on h2, version 1",
		"placed shop-allocator-3: placed on h3, version 1",
		"placed shop-allocator-4: placed on h1, version 1",
		"rollout_done shop: every instance runs as version 1 wants it",
	)
	got = c.life(func(func([]state.Change)) { c.down["h1"] = true })
	wantLines(t, got,
		"host_lost h1: no core of a majority has heard host h1; what it ran is placed elsewhere",
		"moved shop-web-1: stopped: host h1 is lost, replaced by shop-web-5 on h3",
		"moved shop-allocator-4: stopped: host h1 is lost, replaced by shop-allocator-6 on h2",
		"placed shop-web-5: placed on h3, version 1, for shop-web-1 of host h1",
		"placed shop-allocator-6: placed on h2, version 1, for shop-allocator-4 of host h1",
	)
	got = c.life(func(func([]state.Change)) { c.down["h1"], c.silent["h1"] = false, 0 })
	wantLines(t, got, "host_ready h1: host h1 is back")
}

func TestEventsOfChanges(t *testing.T) {
	c := newCluster(t, 2)
	c.versions(service(2))
	rec := c.view.Apps[webKey]
	changed := func(change func(*kbroker.AppRecord)) []state.Change {
		now := rec
		change(&now)
		return []state.Change{state.PutApp{Record: now}}
	}
	host := c.view.Hosts["h1"]
	hostIs := func(change func(*kbroker.Host)) []state.Change {
		now := host
		change(&now)
		return []state.Change{state.PutHost{Host: now}}
	}
	demand := func(epoch uint64, n int) []state.Change {
		return []state.Change{state.PutDemand{Demand: kbroker.Demand{Tenant: tenant, App: "shop", Epoch: epoch, Wanted: map[kbroker.ServiceName]int{"web": n}, Reason: "load"}}}
	}
	c.apply(demand(1, 2))
	var placed kbroker.Placement
	for _, p := range c.live()["h1"] {
		placed = p
	}
	stopped, marked, relabelled := placed, placed, placed
	stopped.Stop, stopped.StopReason = true, "scaled down"
	marked.Replace = "restarted"
	relabelled.Version++
	for _, tc := range []struct {
		name    string
		changes []state.Change
		want    []string
	}{
		{"a stop", changed(func(r *kbroker.AppRecord) { r.Stopped = true }), []string{"app_stopped shop: stop was asked for; its spec and versions stay"}},
		{"a failed rollout", changed(func(r *kbroker.AppRecord) {
			r.Rollout.State, r.Rollout.Reason = kbroker.RolloutFailed, "no progress for 1m"
		}), []string{"rollout_failed shop: version 1: no progress for 1m"}},
		{"a way back", changed(func(r *kbroker.AppRecord) {
			r.Version, r.Rollout.State, r.Rollout.Reason = 0, kbroker.RolloutRunning, "version 1 failed and was rolled back: x"
		}), []string{"rolled_back shop: version 1 failed and was rolled back: x; version 0 is wanted again"}},
		{"what finds no host", changed(func(r *kbroker.AppRecord) {
			r.Unplaced = []kbroker.Unplaced{{Service: "web", Count: 2, Reason: "h1: needs more"}}
		}), []string{"unplaced shop: no host can take 2 more of web: h1: needs more"}},
		{"a record in which nothing of that changed", changed(func(r *kbroker.AppRecord) { r.NextInstance++ }), nil},
		{"a demand", demand(2, 5), []string{"demand shop: the allocator wants web 5: load"}},
		{"the same demand of another allocator", demand(2, 2), nil},
		{"a host that joins", []state.Change{state.PutHost{Host: kbroker.Host{Name: "h9", Role: kbroker.RoleCore, State: kbroker.HostJoining}}}, []string{"host_joined h9: host h9 was admitted as core"}},
		{"another field of a host", hostIs(func(h *kbroker.Host) { h.Client = "new:1" }), []string{"host_changed h1: host h1 takes clients at new:1"}},
		{"a drain", hostIs(func(h *kbroker.Host) { h.Drain = &kbroker.Drain{} }), []string{"host_changed h1: host h1 is draining: what it runs is placed elsewhere"}},
		{"a drain by force", hostIs(func(h *kbroker.Host) { h.Drain = &kbroker.Drain{Force: true} }), []string{"host_changed h1: host h1 is draining: what it runs is placed elsewhere, and stopped where no other host has room"}},
		{"a leave to go down", hostIs(func(h *kbroker.Host) { h.Maintenance = &kbroker.Maintenance{Holder: "x"} }), []string{"host_changed h1: host h1 has leave to go down: it is silent for a moment"}},
		{"a host with other labels", hostIs(func(h *kbroker.Host) { h.Labels = map[string]string{"arch": "amd64", "disk": "ssd"} }), []string{"host_changed h1: host h1 has the labels arch=amd64, disk=ssd"}},
		{"a host with another capacity", hostIs(func(h *kbroker.Host) { h.Capacity = kbroker.Resources{CPU: 4, MemoryBytes: 1 << 30} }), []string{"host_changed h1: host h1 has 4 cpu and 1024 MiB of memory, before 2 cpu and 8192 MiB of memory"}},
		{"a host that is gone", []state.Change{state.DropHost{Host: "h1"}}, []string{"host_removed h1: host h1 is not a member any more"}},
		{"an instance that leaves", []state.Change{state.PutPlacement{Placement: stopped}}, []string{"stopped shop-web-1: stopped: scaled down"}},
		{"an instance that is to be replaced", []state.Change{state.PutPlacement{Placement: marked}}, []string{"replacing shop-web-1: restarted: a new instance comes first, then it leaves"}},
		{"a version without a restart", []state.Change{state.PutPlacement{Placement: relabelled}}, nil},
		{"a confirmed exit", []state.Change{state.DropPlacement{Key: keyOf(placed)}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantLines(t, c.told(func(apply func([]state.Change)) {
				was := c.view
				c.view = *alone(&was, webKey)
				apply(tc.changes)
				c.view = was
			}), tc.want...)
		})
	}
}

// TestAMoveApartIsTold, and that it is called off.
func TestAMoveApartIsTold(t *testing.T) {
	c := joined(t, 1, kbroker.Host{Capacity: roomy})
	c.brokenOn = func(p kbroker.Placement) bool { return p.Host == "h2" && p.Service != kbroker.AllocatorService }
	c.steady("h2")
	told := c.told(func(apply func([]state.Change)) {
		for range 2 * service(2).Update.Deadline / time.Second {
			c.agents()
			c.now += time.Second
			apply(Plan(c.world()))
		}
	})
	told = slices.DeleteFunc(told, func(line string) bool { return strings.Contains(line, "allocator") })
	wantLines(t, told,
		"replacing shop0-web-2: all instances of the service were on one host: a new instance comes first, then it leaves",
		"placed shop0-web-5: placed on h2, version 1",
		"replacing shop0-web-2: it stays: it is not to be replaced any more",
		"stopped shop0-web-5: stopped: it did not get ready within 1m0s",
	)
}

// TestADrainAndALeaveAreToldToTheirEnd: what follows on a drain or a leave that is
// there already.
func TestADrainAndALeaveAreToldToTheirEnd(t *testing.T) {
	drain, force := &kbroker.Drain{}, &kbroker.Drain{Force: true}
	one, other := &kbroker.Maintenance{Holder: "one"}, &kbroker.Maintenance{Holder: "other"}
	for _, tc := range []struct {
		name     string
		was, now kbroker.Host
		want     []string
	}{
		{"forced later", kbroker.Host{Drain: drain}, kbroker.Host{Drain: force}, []string{"host_changed h1: the drain of host h1 is by force now: what no other host has room for is stopped"}},
		{"undrained", kbroker.Host{Drain: force}, kbroker.Host{}, []string{"host_changed h1: host h1 takes instances again"}},
		{"the leave ends", kbroker.Host{Maintenance: one}, kbroker.Host{}, []string{"host_changed h1: the leave of host h1 to go down has ended"}},
		{"another has it", kbroker.Host{Maintenance: one}, kbroker.Host{Maintenance: other}, []string{"host_changed h1: the leave of host h1 to go down is another one's"}},
		{"lost on leave", kbroker.Host{Maintenance: one}, kbroker.Host{Maintenance: one, State: kbroker.HostLost}, []string{"host_lost h1: no core of a majority has heard host h1; what it ran is placed elsewhere"}},
		{"back, and its leave ends", kbroker.Host{Maintenance: one, State: kbroker.HostLost}, kbroker.Host{}, []string{"host_changed h1: the leave of host h1 to go down has ended", "host_ready h1: host h1 is back"}},
		{"removed", kbroker.Host{Drain: force, Maintenance: one}, kbroker.Host{State: kbroker.HostRemoved}, []string{"host_removed h1: host h1 was removed; what it ran is placed elsewhere"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, h := range []*kbroker.Host{&tc.was, &tc.now} {
				h.Name = "h1"
				if h.State == "" {
					h.State = kbroker.HostReady
				}
			}
			c := newCluster(t, 0)
			c.view.Hosts["h1"] = tc.was
			var got []string
			for _, e := range eventsOf(&c.view, []state.Change{state.PutHost{Host: tc.now}}) {
				got = append(got, string(e.Kind)+" "+subjectOfEvent(e)+": "+e.Message)
			}
			wantLines(t, got, tc.want...)
		})
	}
}

// TestEveryFieldOfAHostIsToldInWords: whichever changes, there is an event, and
// none shows what only a programmer reads.
func TestEveryFieldOfAHostIsToldInWords(t *testing.T) {
	was := kbroker.Host{Name: "h1", State: kbroker.HostReady, Role: kbroker.RoleCore, Labels: map[string]string{"a": "b"}}
	full := kbroker.Host{
		Role: kbroker.RoleWorker, State: kbroker.HostSuspect, Labels: map[string]string{}, Capacity: kbroker.Resources{CPU: 1},
		Client: "c:1", Route: "r:1", Address: "a", Since: time.Unix(9, 0), Fingerprint: "f", User: "u", Revoked: []string{"v"}, Generation: 2,
		CredentialLife: time.Hour, Drain: &kbroker.Drain{}, Maintenance: &kbroker.Maintenance{},
	}
	fields := reflect.TypeFor[kbroker.Host]()
	for i := range fields.NumField() {
		name := fields.Field(i).Name
		if name == "Name" || name == "Since" { // the key, and what goes with the state
			continue
		}
		now := was
		reflect.ValueOf(&now).Elem().Field(i).Set(reflect.ValueOf(full).Field(i))
		c := newCluster(t, 0)
		c.view.Hosts["h1"] = was
		events := eventsOf(&c.view, []state.Change{state.PutHost{Host: now}})
		if len(events) != 1 || reflect.DeepEqual(was, now) {
			t.Errorf("%s: %d events, want one: %+v", name, len(events), events)
			continue
		}
		for _, alien := range []string{"<nil>", "&{", "map[", "->", "0x", "{", "%!"} {
			if strings.Contains(events[0].Message, alien) {
				t.Errorf("%s: %q has %q in it", name, events[0].Message, alien)
			}
		}
	}
}

func TestStatusEvents(t *testing.T) {
	zero, three := 0, 3
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	status := func(s kbroker.InstanceState, change func(*kbroker.Status)) kbroker.Status {
		out := kbroker.Status{Tenant: tenant, App: "shop", Service: "web", Instance: "shop-web-1", Host: "h1", Version: 1, Epoch: 1, State: s, Incarnation: "shop-web-1.a"}
		if change != nil {
			change(&out)
		}
		return out
	}
	crash := func(n int) func(*kbroker.Status) {
		return func(s *kbroker.Status) {
			s.Crashes, s.Exit, s.Message = n, &kbroker.Exit{Code: &three, At: at.Add(time.Duration(n) * time.Second)}, "exit code 3: panic"
		}
	}
	loops := func(n int) func(*kbroker.Status) {
		return func(s *kbroker.Status) { crash(n)(s); s.Failing, s.Message = true, "crash loop: "+s.Message }
	}
	left := func(s *kbroker.Status) { s.Crashes, s.Exit = 1, &kbroker.Exit{Code: &zero, At: at} }
	ready := status(kbroker.StateReady, nil)
	for _, tc := range []struct {
		name     string
		was, now kbroker.Status
		want     []string
	}{
		{"ready for the first time", status(kbroker.StateRunning, nil), ready, []string{"ready: ready on h1"}},
		{"ready still", ready, ready, nil},
		{"ready again in the next incarnation", ready, status(kbroker.StateReady, func(s *kbroker.Status) { s.Incarnation, s.Restarts = "shop-web-1.b", 1 }), []string{"ready: ready again on h1, restart 1"}},
		{"crashed, and started again before the report", ready, status(kbroker.StateStarting, crash(1)), []string{"crashed: exit code 3: panic"}},
		{"crashed again", status(kbroker.StateReady, crash(1)), status(kbroker.StateBackoff, crash(2)), []string{"crashed: exit code 3: panic", "backoff: crashed 2 times in a row; its next start waits"}},
		{"the same crash reported again", status(kbroker.StateBackoff, crash(2)), status(kbroker.StateBackoff, crash(2)), nil},
		{"could not be started", status(kbroker.StateStarting, nil), status(kbroker.StateBackoff, func(s *kbroker.Status) { s.Crashes, s.Message = 1, "no such artifact" }), []string{"crashed: no such artifact"}},
		{"crashed once too often", status(kbroker.StateReady, crash(4)), status(kbroker.StateBackoff, loops(5)), []string{"crash_loop: crash loop: exit code 3: panic"}},
		{"which also holds of what cannot be started", status(kbroker.StateBackoff, func(s *kbroker.Status) { s.Crashes = 4 }), status(kbroker.StateBackoff, func(s *kbroker.Status) {
			s.Crashes, s.Failing, s.Message = 5, true, "crash loop: no such artifact"
		}), []string{"crash_loop: crash loop: no such artifact"}},
		{"and is told once, whatever it crashes then", status(kbroker.StateBackoff, loops(5)), status(kbroker.StateBackoff, loops(6)), nil},
		{"nor is it news that it runs for a moment", status(kbroker.StateBackoff, loops(5)), status(kbroker.StateReady, loops(5)), nil},
		{"nor that it crashes then", status(kbroker.StateReady, loops(5)), status(kbroker.StateBackoff, loops(6)), nil},
		{"until it is well", status(kbroker.StateReady, loops(6)), ready, []string{"recovered: it is well on h1, and was in a crash loop"}},
		{"stopped in a crash loop", status(kbroker.StateBackoff, loops(6)), status(kbroker.StateExited, func(s *kbroker.Status) { loops(6)(s); s.Failing, s.Epoch = false, 2 }), nil},
		{"left by itself", ready, status(kbroker.StateBackoff, left), []string{"exited: it left by itself: exit code 0"}},
		{"which its agent then concludes", status(kbroker.StateBackoff, left), status(kbroker.StateExited, func(s *kbroker.Status) { left(s); s.Crashes, s.Epoch = 0, 2 }), nil},
		{"stopped in order", status(kbroker.StateDraining, nil), status(kbroker.StateExited, func(s *kbroker.Status) { left(s); s.Crashes = 0 }), []string{"exited: exit code 0"}},
		{"stopped before it had a process", status(kbroker.StatePending, nil), status(kbroker.StateExited, nil), []string{"exited: it ended before it had a process"}},
		{"killed for its memory", ready, status(kbroker.StateBackoff, func(s *kbroker.Status) {
			s.Crashes, s.Exit = 1, &kbroker.Exit{Signal: "SIGKILL", OOM: true, At: at}
		}), []string{"crashed: out of memory, killed by the kernel"}},
	} {
		var got []string
		events := statusEvents(tc.was, tc.now, kbroker.Placement{Epoch: 1})
		for _, e := range events {
			got = append(got, string(e.Kind)+": "+e.Message)
			if e.By != "agent h1" || e.ID == "" || e.Instance != "shop-web-1" || e.Version != 1 {
				t.Errorf("%s: event %+v lacks who saw it, an ID, or what it is about", tc.name, e)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		if again := statusEvents(tc.was, tc.now, kbroker.Placement{Epoch: 1}); !reflect.DeepEqual(again, events) {
			t.Errorf("%s: the same report again makes %+v, before it made %+v", tc.name, again, events)
		}
	}
}

// TestAStopThatWasAskedForIsToldSo, also of a process that has seen its tombstone
// before its agent has.
func TestAStopThatWasAskedForIsToldSo(t *testing.T) {
	zero := 0
	was := kbroker.Status{Instance: "shop-web-1", Host: "h1", Epoch: 1, State: kbroker.StateReady}
	left := was
	left.State, left.Crashes, left.Exit = kbroker.StateBackoff, 1, &kbroker.Exit{Code: &zero, At: time.Unix(1, 0)}
	tombstone := kbroker.Placement{Epoch: 2, Stop: true, StopReason: "host h1 is draining"}
	events := statusEvents(was, left, tombstone)
	if want := "it left as it was told to, host h1 is draining: exit code 0"; len(events) != 1 || events[0].Kind != kbroker.EventExited || events[0].Message != want {
		t.Errorf("%+v, want one that says %q", events, want)
	}
	if again := statusEvents(was, left, kbroker.Placement{}); len(again) != 1 || again[0].ID != events[0].ID {
		t.Errorf("the same report, when the tombstone has gone, is another event: %+v", again)
	}
}

// TestABatchInDoubtIsFoundInTheNextView: one whose outcome is not known is told
// when the view shows it, and only what it shows.
func TestABatchInDoubtIsFoundInTheNextView(t *testing.T) {
	c := newCluster(t, 2)
	c.versions(service(2))
	rec, host := c.view.Apps[webKey], c.view.Hosts["h1"]
	rec.Stopped, host.Client = true, "new:1"
	var placed kbroker.Placement
	for _, p := range c.live()["h1"] {
		placed = p
	}
	stopped, gone := placed, keyOf(placed)
	stopped.Epoch++
	gone.Host = "h2"
	c.view.Placements[gone] = placed
	for _, change := range []state.Change{
		state.PutApp{Record: rec},
		state.PutVersion{Version: kbroker.AppVersion{Tenant: tenant, Version: 9, App: kbroker.App{Name: "shop"}, Created: time.Now()}},
		state.PutPlacement{Placement: stopped},
		state.DropPlacement{Key: gone},
		state.PutHost{Host: host},
		state.DropHost{Host: "h2"},
		state.PutDemand{Demand: kbroker.Demand{Tenant: tenant, App: "shop", Epoch: 3}},
	} {
		if shows(&c.view, change) {
			t.Errorf("%s is seen before it was done", change)
		}
		c.apply([]state.Change{change})
		if !shows(&c.view, change) {
			t.Errorf("%s is not seen after it was done", change)
		}
	}
}
