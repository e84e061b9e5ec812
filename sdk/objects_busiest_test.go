package sdk

import (
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

func TestBusiestShards(t *testing.T) {
	k := &keeper{}
	now := time.Hour
	if got := k.shardLoads.busiest(now); len(got.busiest) != 0 {
		t.Errorf("busiest are %v before anything ran", got)
	}
	o := kbroker.Object{Kind: "account", ID: "alice"}
	k.counted(now, o, 3, 300*time.Millisecond, 1000)
	k.counted(now, o, 1, 100*time.Millisecond, 0)
	now += 2 * time.Second
	is := kbroker.ShardLoad{Shard: o.Shard(), TurnsPerS: 2, Work: 0.2, BytesPerS: 500}
	if got := k.shardLoads.busiest(now); len(got.busiest) != 1 || got.busiest[0] != is || got.work != is.Work || got.bytes != is.BytesPerS {
		t.Errorf("busiest are %+v, want %+v alone", got, is)
	}
	k.counted(now, kbroker.Object{Kind: "room", ID: "1", Placed: true}, 6, time.Second, 10)
	now += 2 * time.Second
	if got := k.shardLoads.busiest(now); len(got.busiest) != 0 || got.placedTurns != 3 || got.work != 0 || got.bytes != 0 {
		t.Errorf("busiest are %+v, want none, and placed objects with 3 turns in a second", got)
	}
	for n := range kbroker.Shards {
		k.shardLoads.of[n].turns = uint32(n)
	}
	// What works for long, or stores much, is busy also if it does so seldom.
	k.shardLoads.of[1].work = 800 * time.Millisecond
	k.shardLoads.of[2].bytes = 1 << 20
	now += time.Second
	got := k.shardLoads.busiest(now).busiest
	if len(got) != kbroker.MaxBusiest || got[0].Shard != 2 || got[1].Shard != 1 || got[2].Shard != kbroker.Shards-1 || got[len(got)-1].Shard != kbroker.Shards-kbroker.MaxBusiest+2 {
		t.Errorf("%d are busiest, from %v to %v", len(got), got[:3], got[len(got)-1])
	}
	if got := k.shardLoads.busiest(now + time.Second); len(got.busiest) != 0 {
		t.Errorf("busiest are %v, though nothing ran since", got)
	}
}
