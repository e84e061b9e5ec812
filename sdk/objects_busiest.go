package sdk

import (
	"cmp"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

// shardTurns counts the turns of each shard's objects. Of the keeper's loop.
type shardTurns struct {
	of     [kbroker.Shards]uint32
	placed uint32 // of placed objects
	since  time.Duration
}

// busiest are the shards with most turns since it was called last, and placed the turns of placed
// objects in a second; it forgets them.
func (s *shardTurns) busiest(now time.Duration) (shards []kbroker.ShardTurns, placed float64) {
	over := (now - s.since).Seconds()
	s.since = now
	if over <= 0 {
		return nil, 0
	}
	placed = float64(s.placed) / over
	s.placed = 0
	var all []kbroker.ShardTurns
	for n, count := range s.of {
		if count > 0 {
			all = append(all, kbroker.ShardTurns{Shard: kbroker.Shard(n), TurnsPerS: float64(count) / over})
		}
	}
	clear(s.of[:])
	slices.SortStableFunc(all, func(a, b kbroker.ShardTurns) int { return cmp.Compare(b.TurnsPerS, a.TurnsPerS) })
	return slices.Clip(all[:min(len(all), kbroker.MaxBusiest)]), placed
}

// counted counts turns of an object.
func (k *keeper) counted(now time.Duration, o kbroker.Object, turns uint64) {
	k.turns.add(now, turns)
	if o.Placed {
		k.shardTurns.placed += uint32(turns)
		return
	}
	k.shardTurns.of[o.Shard()] += uint32(turns)
}
