package super

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/metricstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

func metricsOf(t *testing.T, s *Super) map[string]float64 {
	t.Helper()
	return metricstest.Values(t, s.Collector())
}

func TestMetricsFollowTheLead(t *testing.T) {
	d := startSuper(t)
	awaitMetrics := func(want map[string]float64) map[string]float64 {
		t.Helper()
		var m map[string]float64
		wait.Until(t, 10*time.Second, func() error {
			m = metricsOf(t, d.Super)
			for name, value := range want {
				if got, there := m[name]; !there || got != value {
					return fmt.Errorf("%s is %v (there: %t), want %v", name, got, there, value)
				}
			}
			return nil
		})
		return m
	}
	m := awaitMetrics(map[string]float64{
		"kbroker_super_leads": 1, "kbroker_super_hosts ready": 1, "kbroker_super_hosts lost": 0, "kbroker_super_heard_hosts": 1,
		"kbroker_super_alarms": 0, "kbroker_super_placements": 0, "kbroker_super_apps": 0, "kbroker_super_events_waiting": 0,
	})
	if m["kbroker_super_epoch"] < 1 || m["kbroker_super_round_duration_seconds"] < 1 {
		t.Errorf("the leader has epoch %v and made %v rounds", m["kbroker_super_epoch"], m["kbroker_super_round_duration_seconds"])
	}
	if _, there := m["kbroker_super_commands_refused_total not_found"]; there {
		t.Error("a command is refused that nobody gave")
	}

	var deployed kbroker.DeployReply
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	if err := d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &deployed); err != nil {
		t.Fatal(err)
	}
	if err := d.ask(subjects.Super(subjects.VerbStop, tenant, subjects.NoKey), kbroker.StopRequest{App: "none"}, &deployed); !errors.Is(err, kbroker.NotFound) {
		t.Fatalf("stop of an app that is not there: %v, want not found", err)
	}
	before := m
	m = awaitMetrics(map[string]float64{
		"kbroker_super_placements": 5, "kbroker_super_stopping_placements": 0, "kbroker_super_apps": 1,
		"kbroker_super_commands_total": before["kbroker_super_commands_total"] + 2, "kbroker_super_commands_refused_total not_found": 1,
	})
	if n := m["kbroker_super_commit_duration_seconds"] - before["kbroker_super_commit_duration_seconds"]; n < 2 {
		t.Errorf("a deploy took %v commits, want those of the app and of its placements", n)
	}
	problems, err := testutil.CollectAndLint(d.Collector())
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}

	// Who leads no more tells nothing of what a leader knows.
	d.stop()
	m = awaitMetrics(map[string]float64{"kbroker_super_leads": 0})
	if _, there := m["kbroker_super_placements"]; there {
		t.Errorf("it does not lead and says %v", m)
	}
}

func TestDroppedEventsAreCountedForEver(t *testing.T) {
	j := newJournal("h1", "p1", slog.New(slog.DiscardHandler))
	for range maxJournal + 3 {
		j.add("agent h1", kbroker.Event{})
	}
	if waiting, dropped := j.counted(); waiting != maxJournal || dropped != 3 {
		t.Errorf("%d events wait and %d were dropped, want %d and 3", waiting, dropped, maxJournal)
	}
	for len(j.next()) > 0 {
	}
	if waiting, dropped := j.counted(); waiting != 0 || dropped != 3 {
		t.Errorf("when all are told %d events wait and %d were dropped, want 0 and 3", waiting, dropped)
	}
}

func TestATallyCountsHostsAsTheyAreJudged(t *testing.T) {
	host := func(s kbroker.HostState, drain bool) kbroker.Host {
		h := kbroker.Host{Name: "h", State: s}
		if drain {
			h.Drain = &kbroker.Drain{}
		}
		return h
	}
	v := &state.View{
		Hosts: map[kbroker.HostID]kbroker.Host{
			"new": host(kbroker.HostJoining, false), "well": host(kbroker.HostReady, false), "silent": host(kbroker.HostReady, true),
			"emptied": host(kbroker.HostReady, true), "back": host(kbroker.HostLost, false), "removed": host(kbroker.HostRemoved, false),
		},
		Placements: map[state.PlacementKey]kbroker.Placement{{Instance: "a"}: {}, {Instance: "b"}: {Stop: true}, {Instance: "c"}: {}},
	}
	verdict := Verdict{States: map[kbroker.HostID]kbroker.HostState{
		"well": kbroker.HostReady, "silent": kbroker.HostSuspect, "emptied": kbroker.HostReady, "back": kbroker.HostReady,
	}}
	c := newCounters()
	c.stand(7, v, verdict, 2)
	got := c.tally.Load()
	want := map[kbroker.HostState]int{kbroker.HostJoining: 1, kbroker.HostReady: 2, kbroker.HostSuspect: 1, kbroker.HostDraining: 1}
	if fmt.Sprint(got.hosts) != fmt.Sprint(want) || got.wanted != 2 || got.stops != 1 || got.epoch != 7 || got.alarms != 2 {
		t.Errorf("tally is %+v, want hosts %v, 2 wanted, 1 stop, epoch 7, 2 alarms", got, want)
	}
}
