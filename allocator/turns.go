package allocator

import (
	"maps"
	"math"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// turnsAfter is how long a shard that has moved is taken to be as busy as it was last: its
	// objects come into memory, and calls that waited come at once.
	turnsAfter = 5 * time.Second
)

// turns are those of each shard in a second, on average. Owners say how many there were of
// their busiest shards, and of all: the others have the rest in equal parts. The zero value
// knows of none. Not safe for concurrent use.
type turns struct {
	of     [kbroker.Shards]shardTurns
	owners map[kbroker.Incarnation]owns
}

// owns is how many shards an owner has, and since when.
type owns struct {
	shards int
	since  time.Duration
}

type shardTurns struct {
	rate  float64
	last  float64             // what the average follows
	owner kbroker.Incarnation // that said so last
	since time.Duration       // when it did first
	at    time.Duration       // when it did last
}

// sawTurns takes what an owner says of its shards' turns, and how many it has in all.
func (s *shards) sawTurns(now time.Duration, m kbroker.InstanceLoad, l Load) {
	if m.Objects == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turns.said(now, s.alloc.pace.turnsOver, m.Incarnation, s.assigner.OwnedBy(m.Incarnation), l, m.PlacedTurnsPerS, m.Busiest)
}

// said takes what an owner says that has these shards. The time constant of the averages is
// over: moves follow what lasts.
func (t *turns) said(now, over time.Duration, who kbroker.Incarnation, shards []kbroker.Shard, l Load, ofPlaced float64, busiest []kbroker.ShardTurns) {
	rates, rest := map[kbroker.Shard]float64{}, l.Turns-ofPlaced
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
	if t.owners == nil {
		t.owners = map[kbroker.Incarnation]owns{}
	}
	if was, known := t.owners[who]; !known || was.shards != len(shards) {
		maps.DeleteFunc(t.owners, func(_ kbroker.Incarnation, o owns) bool { return now-o.since > time.Hour })
		t.owners[who] = owns{len(shards), now}
		if !known {
			t.owners[who] = owns{len(shards), now - loadOver}
		}
	}
	// Its load is an average: that of shards which it no longer has is none of the others'.
	mixed := now-t.owners[who].since < loadOver
	for _, n := range shards {
		s := &t.of[n]
		rate, hot := rates[n]
		if !hot {
			rate = max(rest, 0) / float64(others)
		}
		if s.owner == "" {
			s.at = now
		}
		if s.owner != who {
			s.owner, s.since = who, now
		}
		if (now-s.since >= turnsAfter || s.rate == 0) && (hot || !mixed) {
			s.last = rate
		}
		s.rate += (s.last - s.rate) * (1 - math.Exp(-(now-s.at).Seconds()/over.Seconds()))
		s.at = now
	}
}
