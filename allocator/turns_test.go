package allocator

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func TestTurnsOfShards(t *testing.T) {
	var of turns
	shards := []kbroker.Shard{1, 2, 3, 4}
	now := time.Hour
	say := func(who kbroker.Incarnation, rounds int, all float64, busiest ...kbroker.ShardLoad) {
		for range rounds {
			now += kbroker.LoadEvery
			of.said(now, 15*time.Second, who, shards, ShardLoad{Turns: all}, busiest)
		}
	}
	check := func(what string, want ...float64) {
		t.Helper()
		for n, w := range want {
			if got := of.of[n+1].rate.Turns; math.Abs(got-w) > w/10+0.01 {
				t.Errorf("%s: shard %d has %.2f turns in a second, want about %.0f", what, n+1, got, w)
			}
		}
	}
	say("a.1", 200, 190, kbroker.ShardLoad{Shard: 2, TurnsPerS: 100})
	check("the busiest, and the rest", 30, 100, 30, 30)
	say("a.1", 2, 0)
	if got := of.of[2].rate.Turns; got < 80 {
		t.Errorf("a second without turns leaves %.0f of 100", got)
	}
	say("a.1", 200, 190, kbroker.ShardLoad{Shard: 2, TurnsPerS: 100})
	// Moved, it is as busy as it was, whatever its first seconds are like.
	say("b.1", int(turnsAfter/kbroker.LoadEvery), 0)
	check("moved", 30, 100, 30, 30)
	say("b.1", 400, 0)
	check("and idle there", 0, 0, 0, 0)
	// What rises goes on to rise while it moves.
	say("b.1", 10, 400, kbroker.ShardLoad{Shard: 2, TurnsPerS: 400})
	if got := of.of[2].rate.Turns; got > 150 {
		t.Errorf("after 5 s of 400 turns they are %.0f on average", got)
	}
	for range 8 {
		say("a.1", 1, 0)
	}
	if got := of.of[2].rate.Turns; got < 150 {
		t.Errorf("5 s after a move it is %.0f, want that it rises to 400", got)
	}
}

// What is said of work and bytes is divided as turns are.
func TestWorkOfShards(t *testing.T) {
	var of turns
	now := time.Hour
	for range 200 {
		now += kbroker.LoadEvery
		of.said(now, 15*time.Second, "a.1", []kbroker.Shard{1, 2, 3}, ShardLoad{Turns: 10, Work: 0.9, Bytes: 3000, CPU: 0.6},
			[]kbroker.ShardLoad{{Shard: 2, TurnsPerS: 2, Work: 0.7, BytesPerS: 5000}})
	}
	for n, want := range map[kbroker.Shard]ShardLoad{1: {4, 0.1, 0, 0.153}, 2: {2, 0.7, 5000, 0.293}, 3: {4, 0.1, 0, 0.153}} {
		if got := of.of[n].rate; math.Abs(got.Turns-want.Turns) > 0.1 || math.Abs(got.Work-want.Work) > 0.01 || math.Abs(got.Bytes-want.Bytes) > 10 || math.Abs(got.CPU-want.CPU) > 0.001 {
			t.Errorf("shard %d has %+v, want %+v", n, got, want)
		}
	}
}

// While one of the owners says turns alone, nothing else counts.
func TestOwnersOfEarlierBuilds(t *testing.T) {
	var of turns
	of.of[1].rate = ShardLoad{5, 0.5, 500, 0.1}
	v := View{Owners: []kbroker.Incarnation{webA, webB}, Shards: make([]Shard, 2)}
	of.weighs(webA, true)
	of.weighs(webB, false)
	for _, want := range []ShardLoad{{Turns: 5}, {5, 0.5, 500, 0.1}} {
		if of.fill(&v); v.Shards[1].ShardLoad != want {
			t.Errorf("a shard has %+v, want %+v", v.Shards[1].ShardLoad, want)
		}
		of.weighs(webB, true) // it has been upgraded
	}
}

// TestBusyShardsAreOnSeveralOwners: they are all with one at first, which has as many shards
// as the other one.
func TestBusyShardsAreOnSeveralOwners(t *testing.T) {
	w := newBalanced(t)
	w.fake(webA, "web")
	w.start("shop-allocator-1", objectPace)
	w.shared(webA)
	w.fake(webB, "web")
	wait.Until(t, 3*within, func() error {
		has := map[kbroker.Incarnation]int{}
		for _, as := range w.assignments() {
			if as.Next == "" {
				has[as.Owner]++
			}
		}
		// That is where they end to be moved for their number.
		if most := (1 + even) * kbroker.Shards / 2; has[webA]+has[webB] != kbroker.Shards || float64(has[webA]) > most {
			return fmt.Errorf("owned %v, want at most %.0f by one", has, most)
		}
		return nil
	})
	first := w.assignments()
	var busy []string
	for key, as := range first {
		if as.Owner == webA {
			busy = append(busy, key)
		}
	}
	slices.Sort(busy)
	busy = busy[:4]
	conn, began, said := w.server.Connect(t), time.Now(), 0.0
	turns := map[kbroker.Incarnation]float64{}
	say := func() {
		// Each owner says what is so of its shards.
		of := map[kbroker.Incarnation][]kbroker.ShardLoad{webA: {}, webB: {}}
		for _, key := range busy {
			as := w.assignments()[key]
			of[as.Owner] = append(of[as.Owner], kbroker.ShardLoad{Shard: subjects.ParseOwnKey(key).Shard, TurnsPerS: 1000})
		}
		at := time.Since(began).Seconds()
		for who, hot := range of {
			turns[who] += (at - said) * 1000 * float64(len(hot))
			b, err := json.Marshal(kbroker.InstanceLoad{
				Incarnation: who, Service: "web", AtS: at, Busiest: hot,
				Objects: &kbroker.ObjectFigures{Turns: uint64(turns[who])},
			})
			if err == nil {
				err = conn.Publish(subjects.Load(tenant, shop, who), b)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		said = at
	}
	wait.Until(t, 3*within, func() error {
		say()
		now, on := w.assignments(), map[kbroker.Incarnation]int{}
		for _, key := range busy {
			on[now[key].Owner]++
		}
		if on[webA] != 2 || on[webB] != 2 {
			return fmt.Errorf("busy shards are on %v, want two on each", on)
		}
		return nil
	})
	moved := 0
	for key, as := range w.assignments() {
		if as.Owner != first[key].Owner && !slices.Contains(busy, key) {
			moved++
		}
	}
	if moved > 0 {
		t.Errorf("%d shards that have no load have moved", moved)
	}
}

// One whose processor has other things to do has fewer shards, in the end, and none goes to and fro.
func TestProcessorTimeIsLoad(t *testing.T) {
	const each, perTurn = 10.0, 300e-6 // turns of a shard in a second, cores of one
	for name, c := range map[string]struct {
		other      float64 // cores
		least, has int     // of the 1,024 shards that one has
	}{
		"nothing":          {0, 341, 342},
		"a tenth":          {0.1, 341, 342}, // not worth a move
		"as much":          {1, 250, 320},
		"three times that": {3, 100, 280},
	} {
		t.Run(name, func(t *testing.T) {
			var of turns
			v := View{Owners: []kbroker.Incarnation{webStart(0), webStart(1), webStart(2)}, Shards: make([]Shard, kbroker.Shards)}
			since := make([]time.Duration, len(v.Shards))
			for n := range v.Shards {
				v.Shards[n].Owner = v.Owners[n%3]
			}
			left, moved, last := map[string]bool{}, 0, time.Duration(0)
			for now := time.Hour; now < time.Hour+5*time.Minute; now += kbroker.LoadEvery {
				for k, who := range v.Owners {
					var shards []kbroker.Shard
					for n, s := range v.Shards {
						if s.Owner == who {
							shards = append(shards, kbroker.Shard(n))
						}
					}
					all := ShardLoad{Turns: each * float64(len(shards))}
					if all.CPU = perTurn * all.Turns; k == 0 {
						all.CPU += c.other
					}
					of.weighs(who, true)
					of.said(now, 15*time.Second, who, shards, all, nil)
				}
				of.fill(&v)
				v.Settling = now < time.Hour+15*time.Second
				for n, to := range balanced(v) {
					s := &v.Shards[n]
					if s.Fresh = now-since[n] < freshFor; to == s.Owner {
						continue
					}
					if left[fmt.Sprint(n, to)] {
						t.Fatalf("after %v shard %d goes back to %s", now-time.Hour, n, to)
					}
					left[fmt.Sprint(n, s.Owner)] = true
					s.Owner, since[n], last = to, now, now
					moved++
				}
			}
			has := map[kbroker.Incarnation]int{}
			for _, s := range v.Shards {
				has[s.Owner]++
			}
			t.Logf("%d moves, the last after %v: %v", moved, (last - time.Hour).Round(time.Second), has)
			if few := has[v.Owners[0]]; few < c.least || few > c.has || last > time.Hour+3*time.Minute {
				t.Errorf("%d of %d shards are with the one that has other things to do, want %d to %d; the last moved after %v", few, kbroker.Shards, c.least, c.has, last-time.Hour)
			}
		})
	}
}
