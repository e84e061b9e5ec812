package super

import (
	"fmt"
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
	progress map[state.AppKey]seen[string]
}

// seen is a value and when it was first seen without a break.
type seen[T comparable] struct {
	value T
	since time.Duration
}

func newMemory() *memory {
	return &memory{
		ready: map[state.PlacementKey]seen[kbroker.Incarnation]{}, hosts: map[kbroker.HostID]seen[kbroker.HostState]{},
		progress: map[state.AppKey]seen[string]{},
	}
}

// see compares the view with what was seen before.
func (m *memory) see(v *state.View, now time.Duration) {
	ready := map[state.PlacementKey]seen[kbroker.Incarnation]{}
	readyOf := map[state.AppKey]int{}
	for k, p := range v.Placements {
		if s := v.Statuses[k]; s.State == kbroker.StateReady && s.Epoch == p.Epoch && !p.Stop {
			ready[k] = keep(m.ready, k, s.Incarnation, now)
			if p.Version == v.Apps[state.AppKey{Tenant: p.Tenant, App: p.App}].Version {
				readyOf[state.AppKey{Tenant: p.Tenant, App: p.App}]++
			}
		}
	}
	hosts := map[kbroker.HostID]seen[kbroker.HostState]{}
	for name, h := range v.Hosts {
		hosts[name] = keep(m.hosts, name, h.State, now)
	}
	progress := map[state.AppKey]seen[string]{}
	for k, a := range v.Apps {
		if a.Rollout.State == kbroker.RolloutRunning {
			progress[k] = keep(m.progress, k, fmt.Sprint(a.Version, a.Rollout.Started, readyOf[k], a.NextInstance), now)
		}
	}
	m.ready, m.hosts, m.progress = ready, hosts, progress
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

func (m *memory) stalled(now time.Duration) map[state.AppKey]time.Duration {
	return ages(m.progress, now)
}
