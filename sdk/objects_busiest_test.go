package sdk

import (
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

func TestBusiestShards(t *testing.T) {
	k := &keeper{}
	now := time.Hour
	if got, _ := k.shardTurns.busiest(now); len(got) != 0 {
		t.Errorf("busiest are %v before anything ran", got)
	}
	o := kbroker.Object{Kind: "account", ID: "alice"}
	k.counted(now, o, 3)
	k.counted(now, o, 1)
	now += 2 * time.Second
	if got, _ := k.shardTurns.busiest(now); len(got) != 1 || got[0] != (kbroker.ShardTurns{Shard: o.Shard(), TurnsPerS: 2}) {
		t.Errorf("busiest are %v, want the shard of %s with 2 in a second", got, o)
	}
	k.counted(now, kbroker.Object{Kind: "room", ID: "1", Placed: true}, 6)
	now += 2 * time.Second
	if got, placed := k.shardTurns.busiest(now); len(got) != 0 || placed != 3 {
		t.Errorf("busiest are %v, and placed objects have %v turns in a second, want none and 3", got, placed)
	}
	for n := range kbroker.Shards {
		k.shardTurns.of[n] = uint32(n)
	}
	now += time.Second
	got, _ := k.shardTurns.busiest(now)
	if len(got) != kbroker.MaxBusiest || got[0].Shard != kbroker.Shards-1 || got[len(got)-1].Shard != kbroker.Shards-kbroker.MaxBusiest {
		t.Errorf("%d are busiest, from %v to %v", len(got), got[0], got[len(got)-1])
	}
	if got, _ := k.shardTurns.busiest(now + time.Second); len(got) != 0 {
		t.Errorf("busiest are %v, though nothing ran since", got)
	}
}
