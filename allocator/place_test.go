package allocator

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

func webStart(n int) kbroker.Incarnation { return kbroker.Incarnation(webName(n) + ".a") }

// placed draws an app with owners, and shards that are anywhere.
func placed(t *rapid.T) View {
	var v View
	for n := range rapid.IntRange(1, 12).Draw(t, "owners") {
		v.Owners = append(v.Owners, webStart(n))
	}
	slices.Sort(v.Owners)
	names := append([]kbroker.Incarnation{"", "gone-1.a"}, v.Owners...)
	skew, works := rapid.Float64Range(0, 3).Draw(t, "skew"), rapid.Bool().Draw(t, "works")
	for n := range rapid.SampledFrom([]int{1, 7, 64, 256}).Draw(t, "shards") {
		s := Shard{Owner: rapid.SampledFrom(names).Draw(t, "owner"), Fresh: rapid.IntRange(0, 60).Draw(t, "fresh") == 0, ShardLoad: ShardLoad{Turns: 1000 * rapid.Float64Range(0, 1).Draw(t, "turns") / math.Pow(float64(n+1), skew)}}
		if works {
			s.Work = rapid.Float64Range(0, 1).Draw(t, "work") / math.Pow(float64(n+1), skew)
			s.CPU = rapid.Float64Range(0, 1).Draw(t, "cpu") / math.Pow(float64(n+1), skew)
			s.Bytes = 1e6 * rapid.Float64Range(0, 1).Draw(t, "bytes") / math.Pow(float64(n+1), skew)
		}
		if rapid.IntRange(0, 30).Draw(t, "wish") == 0 {
			s.Wished = rapid.SampledFrom(names).Draw(t, "wished")
		}
		v.Shards = append(v.Shards, s)
	}
	return v
}

// farthest is how far somebody is from the average at most.
func farthest(b *balance) (off float64) {
	for _, name := range b.names {
		off = max(off, math.Abs(b.off(name)))
	}
	return off
}

// apply is the view when all is where it is to be.
func apply(v View, where []kbroker.Incarnation) View {
	v.Shards = slices.Clone(v.Shards)
	for n := range where {
		if v.Shards[n].Owner != where[n] {
			v.Shards[n].Owner, v.Shards[n].Fresh = where[n], true
		}
	}
	return v
}

// Each shard has one owner that may have it, and the one that is wished for it; the answer is
// always the same, and there is an end of moves.
func TestBalancedSettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := placed(t)
		where := balanced(v)
		if len(where) != len(v.Shards) {
			t.Fatalf("%d of %d shards are placed", len(where), len(v.Shards))
		}
		owners := v.Owners
		for n, to := range where {
			if !slices.Contains(owners, to) {
				t.Errorf("shard %d is placed on %q", n, to)
			}
			if w := v.Shards[n].Wished; slices.Contains(owners, w) && to != w {
				t.Errorf("shard %d is placed on %q, and wished on %q", n, to, w)
			}
		}
		if again := balanced(v); !slices.Equal(where, again) {
			t.Error("another answer to the same question")
		}
		// What has moved counts as fresh in the rounds to come; soon nothing moves, and no
		// shard has gone back.
		const rounds = 6
		left := make([]map[kbroker.Incarnation]bool, len(v.Shards))
		for round := 1; ; round++ {
			moved := 0
			for n, s := range v.Shards {
				if s.Owner == where[n] {
					continue
				}
				moved++
				if left[n][where[n]] {
					t.Errorf("round %d: shard %d goes back to %s", round, n, where[n])
				}
				if left[n] == nil {
					left[n] = map[kbroker.Incarnation]bool{}
				}
				left[n][s.Owner] = true
			}
			if moved == 0 {
				break
			}
			if round > rounds {
				t.Fatalf("round %d: %d shards move, at %.3f off the average", round, moved, farthest(newBalance(v)))
			}
			v = apply(v, where)
			where = balanced(v)
		}
		for n := range v.Shards {
			v.Shards[n].Fresh = false
		}
		if next := balanced(v); !slices.Equal(where, next) {
			t.Error("some move once nothing is fresh")
		}
	})
}

// No shard that has an owner moves without gain: then somebody was far from the average, and
// who has most has less than before.
func TestBalancedMovesForAGainAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := placed(t)
		where := balanced(v)
		before := newBalance(v)
		before.settle()
		moved := 0
		for n := range where {
			if before.out[n] != where[n] {
				moved++
			}
		}
		if moved == 0 {
			return
		}
		after := newBalance(apply(v, where))
		most, _ := before.extremes()
		now, _ := after.extremes()
		if was, is := farthest(before), farthest(after); was <= uneven && len(before.gets) == 0 || after.load[now] > before.load[most]+1e-9 || is > was {
			t.Errorf("%d shards move: from %.3f off the average to %.3f, most is %.1f, was %.1f", moved, was, is, after.load[now], before.load[most])
		}
	})
}

// Where no shard is heavy, a new instance is soon as busy as the others, and nothing moves
// between those.
func TestANewInstanceGetsItsShare(t *testing.T) {
	for _, n := range []int{1, 3, 10, 49} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var v View
			for i := range n + 1 {
				v.Owners = append(v.Owners, webStart(i))
			}
			for s := range kbroker.Shards {
				v.Shards = append(v.Shards, Shard{Owner: webStart(s % n), ShardLoad: ShardLoad{Turns: 10 + float64(s%7)}})
			}
			where := balanced(v)
			fresh := webStart(n)
			for s, to := range where {
				if to != v.Shards[s].Owner && to != fresh {
					t.Errorf("shard %d moves from %s to %s", s, v.Shards[s].Owner, to)
				}
			}
			if off := farthest(newBalance(apply(v, where))); off > uneven {
				t.Errorf("loads are up to %.2f off the average", off)
			}
		})
	}
}

// Turns that take long, or store much, are load as many turns are; where there is little of
// that it moves nothing.
func TestWorkAndBytesAreLoad(t *testing.T) {
	for name, c := range map[string]struct {
		heavy ShardLoad
		moves bool
	}{
		"much work":    {ShardLoad{Turns: 5, Work: 0.2}, true},
		"much cpu":     {ShardLoad{Turns: 5, CPU: 0.2}, true},
		"little cpu":   {ShardLoad{Turns: 5, CPU: 0.0005}, false},
		"many bytes":   {ShardLoad{Turns: 5, Bytes: 1e6}, true},
		"many turns":   {ShardLoad{Turns: 50}, true},
		"little work":  {ShardLoad{Turns: 5, Work: 0.0005}, false},
		"little bytes": {ShardLoad{Turns: 5, Bytes: 100}, false},
	} {
		v := View{Owners: []kbroker.Incarnation{webStart(0), webStart(1)}}
		for n := range 40 {
			s := Shard{Owner: v.Owners[n%2], ShardLoad: ShardLoad{Turns: 5}}
			if n%4 == 0 { // all of them with the first
				s.ShardLoad = c.heavy
			}
			v.Shards = append(v.Shards, s)
		}
		heavy := 0
		for n, to := range balanced(v) {
			if n%4 == 0 && to == v.Owners[1] {
				heavy++
			}
		}
		if c.moves != (heavy > 0) || c.moves && (heavy < 3 || heavy > 7) {
			t.Errorf("%s: %d of 10 move to the other one", name, heavy)
		}
	}
}

// An allocator that has just begun knows of no turns, and would even the numbers out that
// another one has made uneven by them.
func TestNothingMovesBeforeTurnsAreKnown(t *testing.T) {
	v := View{Owners: []kbroker.Incarnation{webStart(0), webStart(1)}, Settling: true}
	for n := range 40 {
		v.Shards = append(v.Shards, Shard{Owner: v.Owners[n/30]})
	}
	v.Shards[5].Owner = "gone-1.a"
	for n, to := range balanced(v) {
		if was := v.Shards[n].Owner; to != was && n != 5 || to == "" {
			t.Errorf("shard %d is moved from %s to %q", n, was, to)
		}
	}
}

func TestNobodyOwnsWhatNobodyMayOwn(t *testing.T) {
	if where := balanced(View{Shards: make([]Shard, 4)}); where != nil {
		t.Errorf("placed %v", where)
	}
}

func BenchmarkBalanced(b *testing.B) {
	var v View
	for i := range 101 {
		v.Owners = append(v.Owners, webStart(i))
	}
	for s := range kbroker.Shards {
		v.Shards = append(v.Shards, Shard{Owner: webStart(s % 100), ShardLoad: ShardLoad{Turns: 10 + float64(s*s%97)}})
	}
	for b.Loop() {
		balanced(v)
	}
}
