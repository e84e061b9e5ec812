package allocator

import (
	"maps"
	"math"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// turnsAfter is how long a shard that has moved is taken to be as busy as it was last: its
	// objects come into memory, and calls that waited come at once.
	turnsAfter = 5 * time.Second
)

// turns are what each shard has to do in a second, on average. Owners say it of their busiest
// shards, and of all: the others have the rest in equal parts. The zero value knows of
// none. Not safe for concurrent use.
type turns struct {
	of     [kbroker.Shards]shardTurns
	owners map[kbroker.Incarnation]owns
	// silent are owners that say turns alone, as their SDK is of an earlier build.
	silent map[kbroker.Incarnation]bool
}

// owns is how many shards an owner has, and since when.
type owns struct {
	shards int
	since  time.Duration
}

type shardTurns struct {
	rate  ShardLoad
	last  ShardLoad           // what the average follows
	owner kbroker.Incarnation // that said so last
	since time.Duration       // when it did first
	at    time.Duration       // when it did last
}

// ShardLoad is what the objects of a shard have to do; see kbroker.ShardLoad. CPU is its part of
// the cores that its owner uses, whatever for, by turns and work: so shards weigh more, and are
// fewer, where the processor has other things to do, or is slower.
type ShardLoad struct{ Turns, Work, Bytes, CPU float64 }

// plus is l and a part of m.
func (l ShardLoad) plus(m ShardLoad, part float64) ShardLoad {
	return ShardLoad{l.Turns + part*m.Turns, l.Work + part*m.Work, l.Bytes + part*m.Bytes, l.CPU + part*m.CPU}
}

// part is how much of all turns and of all work l has, 0 to 1.
func (l ShardLoad) part(all ShardLoad) float64 {
	switch {
	case all.Turns <= 0:
		return 0
	case all.Work <= 0:
		return min(l.Turns/all.Turns, 1)
	}
	return min((l.Turns/all.Turns+l.Work/all.Work)/2, 1)
}

// sawTurns takes what an owner says of its shards' turns, and how many it has in all.
func (s *shards) sawTurns(now time.Duration, m kbroker.InstanceLoad, l Load) {
	if m.Objects == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turns.weighs(m.Incarnation, m.Weighs)
	all := ShardLoad{Turns: max(l.Turns-m.PlacedTurnsPerS, 0), Work: m.Work, Bytes: m.BytesPerS}
	if all.Turns > 0 { // without turns it is none of the shards'
		all.CPU = m.CPU * all.Turns / l.Turns
	}
	s.turns.said(now, s.alloc.pace.turnsOver, m.Incarnation, s.assigner.OwnedBy(m.Incarnation), all, m.Busiest)
}

// weighs notes whether an owner says work and bytes.
func (t *turns) weighs(who kbroker.Incarnation, does bool) {
	if t.silent == nil {
		t.silent = map[kbroker.Incarnation]bool{}
	}
	if delete(t.silent, who); !does {
		t.silent[who] = true
	}
}

// fill sets the loads of a view's shards. While one of its owners says turns alone these are all
// that counts: shards of the others would seem to be heavier.
func (t *turns) fill(v *View) {
	turnsAlone := slices.ContainsFunc(v.Owners, func(i kbroker.Incarnation) bool { return t.silent[i] })
	for n := range v.Shards {
		if v.Shards[n].ShardLoad = t.of[n].rate; turnsAlone {
			v.Shards[n].ShardLoad = ShardLoad{Turns: t.of[n].rate.Turns}
		}
	}
}

// said takes what an owner says that has these shards: what all have to do, and the busiest.
// The time constant of the averages is over: moves follow what lasts.
func (t *turns) said(now, over time.Duration, who kbroker.Incarnation, shards []kbroker.Shard, all ShardLoad, busiest []kbroker.ShardLoad) {
	rates, rest := map[kbroker.Shard]ShardLoad{}, all
	for _, b := range busiest {
		l := ShardLoad{Turns: b.TurnsPerS, Work: b.Work, Bytes: b.BytesPerS}
		l.CPU = all.CPU * l.part(all)
		rates[b.Shard] = l
		rest = rest.plus(l, -1)
	}
	rest = ShardLoad{max(rest.Turns, 0), max(rest.Work, 0), max(rest.Bytes, 0), max(rest.CPU, 0)}
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
		maps.DeleteFunc(t.owners, func(i kbroker.Incarnation, o owns) bool {
			if now-o.since <= time.Hour {
				return false
			}
			delete(t.silent, i) // it says so again, if it lives
			return true
		})
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
			rate = ShardLoad{}.plus(rest, 1/float64(others))
		}
		if s.owner == "" {
			s.at = now
		}
		if s.owner != who {
			s.owner, s.since = who, now
		}
		if (now-s.since >= turnsAfter || s.rate == ShardLoad{}) && (hot || !mixed) {
			s.last = rate
		}
		s.rate = s.rate.plus(s.last.plus(s.rate, -1), 1-math.Exp(-(now-s.at).Seconds()/over.Seconds()))
		s.at = now
	}
}
