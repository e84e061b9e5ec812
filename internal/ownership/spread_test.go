package ownership

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

func TestSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := func(n int) kbroker.Incarnation { return kbroker.Incarnation(fmt.Sprintf("w-%d.a", n)) }
		var live []kbroker.Incarnation
		for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 30), 0, 12, rapid.ID).Draw(t, "live") {
			live = append(live, name(n))
		}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		now, some := map[kbroker.Shard]kbroker.Incarnation{}, rapid.IntRange(1, 30).Draw(t, "owners")
		for n := range kbroker.Shard(kbroker.Shards) {
			if r.IntN(20) > 0 {
				now[n] = name(min(r.IntN(some), r.IntN(some)))
			}
		}
		out := Spread(now, live, nil)
		if len(live) == 0 {
			if len(out) != 0 {
				t.Fatalf("%d shards for nobody", len(out))
			}
			return
		}
		has, had, moved := map[kbroker.Incarnation]int{}, map[kbroker.Incarnation]int{}, 0
		for n := range kbroker.Shard(kbroker.Shards) {
			if !slices.Contains(live, out[n]) {
				t.Fatalf("shard %d is of %q, who is not there", n, out[n])
			}
			has[out[n]]++
			had[now[n]]++
			if out[n] != now[n] {
				moved++
			}
		}
		least := kbroker.Shards / len(live)
		for _, i := range live {
			if has[i] != least && has[i] != least+1 {
				t.Fatalf("%s has %d of %d shards among %d", i, has[i], kbroker.Shards, len(live))
			}
		}
		// What nobody can keep: all but the even shares, of which those that have most get the
		// larger ones.
		larger, kept := kbroker.Shards%len(live), 0
		slices.SortFunc(live, func(a, b kbroker.Incarnation) int { return had[b] - had[a] })
		for k, i := range live {
			share := least
			if k < larger {
				share++
			}
			kept += min(had[i], share)
		}
		if moved != kbroker.Shards-kept {
			t.Fatalf("%d shards change their owner, %d need to", moved, kbroker.Shards-kept)
		}
		if again := Spread(now, rapid.Permutation(live).Draw(t, "order"), nil); !maps.Equal(again, out) {
			t.Fatal("another order of who is there is another answer")
		}
		if next := Spread(out, live, nil); !maps.Equal(next, out) {
			t.Fatal("what is spread is spread again")
		}
	})
}

// TestSpreadAroundWishes: what is wished is so, all else is as even as it can be, and spreading
// again moves nothing.
func TestSpreadAroundWishes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live := []kbroker.Incarnation{"a.1", "b.1", "c.1", "d.1"}[:rapid.IntRange(1, 4).Draw(t, "live")]
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		now, wished := map[kbroker.Shard]kbroker.Incarnation{}, map[kbroker.Shard]kbroker.Incarnation{}
		wishes, skewed := rapid.IntRange(0, kbroker.Shards).Draw(t, "wishes"), rapid.Bool().Draw(t, "skewed")
		all := append(slices.Clone(live), "gone.1")
		for n := range kbroker.Shard(kbroker.Shards) {
			now[n] = all[r.IntN(len(all))]
		}
		for _, n := range r.Perm(kbroker.Shards)[:wishes] {
			to := all[r.IntN(len(all))]
			if skewed {
				to = live[0]
			}
			wished[kbroker.Shard(n)] = to
		}
		out := Spread(now, live, wished)
		has, fixed := map[kbroker.Incarnation]int{}, map[kbroker.Incarnation]int{}
		for n := range kbroker.Shard(kbroker.Shards) {
			if !slices.Contains(live, out[n]) {
				t.Fatalf("shard %d is of %q, who is not there", n, out[n])
			}
			if to := wished[n]; slices.Contains(live, to) {
				if out[n] != to {
					t.Fatalf("shard %d is of %s, wished at %s", n, out[n], to)
				}
				fixed[to]++
			}
			has[out[n]]++
		}
		// Who has something beside what is wished has at most one more than anybody.
		for _, i := range live {
			for _, j := range live {
				if has[i] > fixed[i] && has[i] > has[j]+1 {
					t.Fatalf("%s has %d, %d by wishes, and %s %d", i, has[i], fixed[i], j, has[j])
				}
			}
		}
		if next := Spread(out, live, wished); !maps.Equal(next, out) {
			t.Fatal("what is spread is spread again")
		}
	})
}
