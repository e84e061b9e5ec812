package allocator

import (
	"math"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// fewTurns in a second of all objects together are no reason to wait for their averages.
	fewTurns = 10
	// turnsAfter is how long nothing is counted of a shard that has moved: its objects come
	// into memory, and calls that waited come at once.
	turnsAfter = 5 * time.Second
)

// turns are those of each shard in a second, on average. Owners say how many there were of
// their busiest shards, and of all: the others have the rest in equal parts. The zero value
// knows of none. Not safe for concurrent use.
type turns struct {
	of [kbroker.Shards]shardTurns
}

type shardTurns struct {
	rate  float64
	owner kbroker.Incarnation // that said so last
	since time.Duration       // when it did first
	at    time.Duration       // when it did last
}

// change is one of the turns of all shards. The zero value is before any. Not safe for
// concurrent use.
type change struct {
	began, seen time.Duration // 0: none
}

// settling notes whether turns change, and reports whether their averages are to be waited
// for. It ends where these cannot follow, as there is change after change.
func (c *change) settling(now, over time.Duration, changing bool) bool {
	if c.seen == 0 || now-c.seen > over {
		c.began = now
	}
	if changing {
		c.seen = now
	}
	return changing && now-c.began < 2*over
}

// unsteady is whether turns of shards change too much, as change says.
func (s *shards) unsteady(now, over time.Duration, changing bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change.settling(now, over, changing)
}

// sawTurns takes what an owner says of its shards' turns, and how many it has in all.
func (s *shards) sawTurns(now time.Duration, m kbroker.InstanceLoad, l Load) {
	if m.Objects == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var of []kbroker.Shard
	for n, owner := range s.assigner.Owners() {
		if owner == m.Incarnation {
			of = append(of, n)
		}
	}
	s.turns.said(now, s.alloc.pace.turnsOver, m.Incarnation, of, l, m.Busiest)
}

// said takes what an owner says that has these shards. The time constant of the averages is
// over: moves follow what lasts.
func (t *turns) said(now, over time.Duration, who kbroker.Incarnation, shards []kbroker.Shard, l Load, busiest []kbroker.ShardTurns) {
	rates, rest := map[kbroker.Shard]float64{}, l.Turns
	for _, b := range busiest {
		rates[b.Shard] = b.TurnsPerS
		rest -= b.TurnsPerS
	}
	others := 0
	for _, n := range shards {
		if _, hot := rates[n]; !hot {
			others++
		}
	}
	for _, n := range shards {
		s := &t.of[n]
		rate, hot := rates[n]
		if !hot {
			rate = max(rest, 0) / float64(others)
		}
		if s.owner != who {
			s.owner, s.since, s.at = who, now, now
		}
		if now-s.since >= turnsAfter || s.rate == 0 {
			s.rate += (rate - s.rate) * (1 - math.Exp(-(now-s.at).Seconds()/over.Seconds()))
		}
		s.at = now
	}
}
