package sdk

import (
	"cmp"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

// shardLoads counts what the objects of each shard have to do. Of the keeper's loop.
type shardLoads struct {
	of     [kbroker.Shards]shardLoad
	placed uint32 // turns of placed objects
	since  time.Duration
}

type shardLoad struct {
	turns uint32
	work  time.Duration
	bytes uint64
}

// loadOfShards is what is told of the shards that an instance owns.
type loadOfShards struct {
	busiest     []kbroker.ShardLoad
	work, bytes float64 // of all
	placed      int
	placedTurns float64
}

// busiest are the shards with most to do since it was called last, and placed the turns of placed
// objects in a second; it forgets them.
func (s *shardLoads) busiest(now time.Duration) (l loadOfShards) {
	over := (now - s.since).Seconds()
	s.since = now
	if over <= 0 {
		return l
	}
	l.placedTurns = float64(s.placed) / over
	s.placed = 0
	turns := 0.0
	for n, c := range s.of {
		if c.turns == 0 {
			continue
		}
		x := kbroker.ShardLoad{Shard: kbroker.Shard(n), TurnsPerS: float64(c.turns) / over, Work: c.work.Seconds() / over, BytesPerS: float64(c.bytes) / over}
		l.busiest = append(l.busiest, x)
		turns, l.work, l.bytes = turns+x.TurnsPerS, l.work+x.Work, l.bytes+x.BytesPerS
	}
	clear(s.of[:])
	share := func(x kbroker.ShardLoad) float64 {
		return part(x.TurnsPerS, turns) + part(x.Work, l.work) + part(x.BytesPerS, l.bytes)
	}
	slices.SortStableFunc(l.busiest, func(a, b kbroker.ShardLoad) int { return cmp.Compare(share(b), share(a)) })
	l.busiest = slices.Clip(l.busiest[:min(len(l.busiest), kbroker.MaxBusiest)])
	return l
}

// part is how much x is of all; 0, if there is nothing.
func part(x, all float64) float64 {
	if all == 0 {
		return 0
	}
	return x / all
}

// counted counts turns of an object, for how long they ran in all, and how much is to be stored.
func (k *keeper) counted(now time.Duration, o kbroker.Object, turns uint64, work time.Duration, bytes int) {
	k.turns.add(now, turns)
	if o.Placed {
		k.shardLoads.placed += uint32(turns)
		return
	}
	s := &k.shardLoads.of[o.Shard()]
	s.turns += uint32(turns)
	s.work += work
	s.bytes += uint64(bytes)
}
