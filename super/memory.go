package super

import (
	"fmt"
	"maps"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// memory is what a leader learns by watching: durations, which the store does
// not hold because nobody's wall clock is to be trusted. A new leader begins
// anew, which only makes it more patient. Not safe for concurrent use.
type memory struct {
	ready    map[state.PlacementKey]seen[kbroker.Incarnation]
	hosts    map[kbroker.HostID]seen[kbroker.HostState]
	leaves   map[kbroker.HostID]seen[string] // holders of Host.Maintenance
	progress map[state.AppKey]progress
	steady   map[kbroker.HostID]seen[bool]       // hosts that take instances
	marked   map[state.PlacementKey]seen[string] // instances that are moved apart
	failed   map[serviceKey]time.Duration        // when a move apart took too long
	tried    map[state.PlacementKey]seen[bool]   // instances that failed on other hosts
	stops    map[state.PlacementKey]seen[uint64] // epochs of tombstones
}

// progress is how far a rollout has come. It only grows: an instance that
// becomes ready again and again is no progress.
type progress struct {
	rollout string // which one
	settled int    // the most instances of the wanted version that ever were
	old     int    // the fewest of other versions that ever were
	since   time.Duration
}

// seen is a value and when it was first seen without a break.
type seen[T comparable] struct {
	value T
	since time.Duration
}

func newMemory() *memory {
	return &memory{
		ready: map[state.PlacementKey]seen[kbroker.Incarnation]{}, hosts: map[kbroker.HostID]seen[kbroker.HostState]{},
		leaves:   map[kbroker.HostID]seen[string]{},
		progress: map[state.AppKey]progress{}, steady: map[kbroker.HostID]seen[bool]{},
		marked: map[state.PlacementKey]seen[string]{}, failed: map[serviceKey]time.Duration{},
		tried: map[state.PlacementKey]seen[bool]{}, stops: map[state.PlacementKey]seen[uint64]{},
	}
}

// see compares the view with what was seen before.
func (m *memory) see(v *state.View, now time.Duration) {
	ready := map[state.PlacementKey]seen[kbroker.Incarnation]{}
	marked, tried := map[state.PlacementKey]seen[string]{}, map[state.PlacementKey]seen[bool]{}
	stops := map[state.PlacementKey]seen[uint64]{}
	settled, old := map[state.AppKey]int{}, map[state.AppKey]int{}
	for k, p := range v.Placements {
		if p.Stop {
			stops[k] = keep(m.stops, k, p.Epoch, now)
			continue
		}
		app := state.AppKey{Tenant: p.Tenant, App: p.App}
		s := v.Statuses[k]
		if s.State == kbroker.StateReady && s.Epoch == p.Epoch {
			ready[k] = keep(m.ready, k, s.Incarnation, now)
		}
		if p.Replace == togetherReason {
			marked[k] = keep(m.marked, k, p.Replace, now)
			if now-marked[k].since >= p.Spec.Update.Deadline {
				m.failed[serviceOf(p)] = now
			}
		}
		if len(p.Failed) > 0 {
			tried[k] = keep(m.tried, k, true, now)
		}
		switch since, isReady := ready[k]; {
		case isBuiltin(p.Spec):
		case p.Version != v.Apps[app].Version:
			old[app]++
		case isReady && now-since.since >= p.Spec.Update.MinHealthy:
			settled[app]++
		}
	}
	hosts, leaves := map[kbroker.HostID]seen[kbroker.HostState]{}, map[kbroker.HostID]seen[string]{}
	for name, h := range v.Hosts {
		hosts[name] = keep(m.hosts, name, h.State, now)
		if h.Maintenance != nil {
			leaves[name] = keep(m.leaves, name, h.Maintenance.Holder, now)
		}
	}
	advance := map[state.AppKey]progress{}
	for k, a := range v.Apps {
		if a.Rollout.State != kbroker.RolloutRunning {
			continue
		}
		rollout := fmt.Sprint(a.Version, a.Rollout.Started, a.Stopped)
		p, ok := m.progress[k]
		if !ok || p.rollout != rollout {
			p = progress{rollout, settled[k], old[k], now}
		}
		if settled[k] > p.settled || old[k] < p.old {
			p.settled, p.old, p.since = max(p.settled, settled[k]), min(p.old, old[k]), now
		}
		advance[k] = p
	}
	maps.DeleteFunc(m.failed, func(_ serviceKey, since time.Duration) bool { return now-since >= apartAgain })
	m.ready, m.hosts, m.leaves, m.progress, m.marked, m.tried = ready, hosts, leaves, advance, marked, tried
	m.stops = stops
}

// seeVerdict notes which hosts take instances now.
func (m *memory) seeVerdict(v *state.View, verdict Verdict, now time.Duration) {
	steady := map[kbroker.HostID]seen[bool]{}
	for name, h := range v.Hosts {
		if h.State == kbroker.HostReady && h.Drain == nil && verdict.States[name] == kbroker.HostReady && !verdict.Blind {
			steady[name] = keep(m.steady, name, true, now)
		}
	}
	m.steady = steady
}

// blind notes that nothing can be planned: that is no fault of a rollout.
func (m *memory) blind(now time.Duration) {
	for k, p := range m.progress {
		p.since = now
		m.progress[k] = p
	}
}

func keep[K, V comparable](before map[K]seen[V], k K, value V, now time.Duration) seen[V] {
	if b, ok := before[k]; ok && b.value == value {
		return b
	}
	return seen[V]{value, now}
}

func ages[K, V comparable](m map[K]seen[V], now time.Duration) map[K]time.Duration {
	out := make(map[K]time.Duration, len(m))
	for k, s := range m {
		out[k] = now - s.since
	}
	return out
}

func (m *memory) readyFor(now time.Duration) map[state.PlacementKey]time.Duration {
	return ages(m.ready, now)
}

func (m *memory) inState(now time.Duration) map[kbroker.HostID]time.Duration {
	return ages(m.hosts, now)
}

// leaveFor is how long each host has had its leave to go down.
func (m *memory) leaveFor(now time.Duration) map[kbroker.HostID]time.Duration {
	return ages(m.leaves, now)
}

func (m *memory) steadyFor(now time.Duration) map[kbroker.HostID]time.Duration {
	return ages(m.steady, now)
}

func (m *memory) apartFor(now time.Duration) map[state.PlacementKey]time.Duration {
	return ages(m.marked, now)
}

func (m *memory) triedFor(now time.Duration) map[state.PlacementKey]time.Duration {
	return ages(m.tried, now)
}

// stopFor is how long each instance has been to stop.
func (m *memory) stopFor(now time.Duration) map[state.PlacementKey]time.Duration {
	return ages(m.stops, now)
}

// apartFailed is how long ago the move apart of a service took too long.
func (m *memory) apartFailed(now time.Duration) map[serviceKey]time.Duration {
	out := make(map[serviceKey]time.Duration, len(m.failed))
	for k, since := range m.failed {
		out[k] = now - since
	}
	return out
}

func (m *memory) stalled(now time.Duration) map[state.AppKey]time.Duration {
	out := make(map[state.AppKey]time.Duration, len(m.progress))
	for k, p := range m.progress {
		out[k] = now - p.since
	}
	return out
}
