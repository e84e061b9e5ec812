package sdk

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// Hundreds of shards are released in batches; one that is refused is split, until the one
// release is alone whose assignment was changed.
func TestManyShardsAreReleasedTogether(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	const shards = 150
	assign := func(a ownership.Assignment) {
		values := map[string]any{}
		for n := range kbroker.Shard(shards) {
			values[subjects.KeyAssign(n)] = a
		}
		core.put(values)
	}
	assign(ownership.Assignment{Owner: incarnation("a"), Epoch: 1})
	a := start(t, bank(s.URL, "a", nil))
	b := start(t, bank(s.URL, "b", nil))
	owned := func(r *running) int {
		n := make(chan int, 1)
		r.keeper.post(func(time.Duration) { n <- len(r.keeper.owner.Owned()) })
		return <-n
	}
	await := func(r *running, want int) {
		t.Helper()
		wait.Until(t, patience, func() error {
			if got := owned(r); got != want {
				return fmt.Errorf("%s owns %d shards, want %d", r.Instance(), got, want)
			}
			return nil
		})
	}
	await(a, shards)
	var batches atomic.Int64
	core.silently(func(w []kbroker.Write) int {
		if subjects.ParseOwnKey(w[0].Key).Table != subjects.OwnRelease {
			return 0
		}
		if batches.Add(1) == 1 { // one of the moves is called off, as the first batch comes
			assigned := w[len(w)/3].Guard
			_, err := core.apply(kbroker.DefaultTenant, "bank", []kbroker.Write{{
				Key: assigned, Expected: core.recs[assigned].Revision, Value: []byte(`{"owner":"` + string(incarnation("a")) + `","epoch":1}`),
			}})
			if err != nil {
				t.Error(err)
			}
		}
		return 0
	})
	assign(ownership.Assignment{Owner: incarnation("a"), Epoch: 1, Next: incarnation("b"), NextEpoch: 2})
	await(b, shards-1)
	await(a, 1)
	if n := batches.Load(); n > 40 {
		t.Errorf("%d batches for %d releases of which one is refused", n, shards)
	}
}

func TestALaterReleaseOfAShardTakesThePlaceOfAnEarlierOne(t *testing.T) {
	var r releases
	for n := range 3 * maxReleases {
		r.add(ownership.WriteRelease{Shard: kbroker.Shard(n % maxReleases), Number: uint64(n)})
	}
	if len(r.waiting) != 1 || len(r.waiting[0]) != maxReleases {
		t.Fatalf("%d batches wait, want one of %d", len(r.waiting), maxReleases)
	}
	for _, e := range r.waiting[0] {
		if e.Number < 2*maxReleases {
			t.Errorf("release %d of shard %d waits, want the last one", e.Number, e.Shard)
		}
	}
	r.add(ownership.WriteRelease{Shard: maxReleases})
	if len(r.waiting) != 2 {
		t.Errorf("%d batches wait, want a second one beyond the bound", len(r.waiting))
	}
}
