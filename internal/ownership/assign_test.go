package ownership

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// table is a store for one Assigner, which sees all that is written to it.
type table struct {
	t    *testing.T
	a    *Assigner
	now  time.Duration
	rev  kbroker.Revision
	recs map[string]storedRecord
}

func newTable(t *testing.T) *table {
	tb := &table{t: t, a: NewAssigner(AssignerConfig{Times: simTimes}), recs: map[string]storedRecord{}}
	tb.a.SawAll()
	return tb
}

func (tb *table) put(key string, value any) {
	tb.t.Helper()
	b, err := json.Marshal(value)
	if err != nil {
		tb.t.Fatal(err)
	}
	tb.write(kbroker.Write{Key: key, Expected: tb.recs[key].rev, Value: b})
}

func (tb *table) lease(l Lease) { tb.put(subjects.KeyLease(l.Incarnation), l) }

func (tb *table) write(writes ...kbroker.Write) {
	tb.t.Helper()
	for _, w := range writes {
		if tb.recs[w.Key].rev != w.Expected {
			tb.t.Fatalf("%s is at %d", w, tb.recs[w.Key].rev)
		}
		tb.rev++
		tb.recs[w.Key] = storedRecord{w.Value, tb.rev}
		switch k := subjects.ParseOwnKey(w.Key); k.Table {
		case subjects.OwnLease:
			var l Lease
			_ = json.Unmarshal(w.Value, &l)
			tb.a.SawLease(tb.now, tb.now, k.Incarnation, l, tb.rev)
		case subjects.OwnAssign:
			var as Assignment
			_ = json.Unmarshal(w.Value, &as)
			tb.a.SawShard(tb.now, k.Shard, as, tb.rev)
		case subjects.OwnRelease:
			var r Release
			_ = json.Unmarshal(w.Value, &r)
			tb.a.SawRelease(k.Shard, r, tb.rev)
		default:
			tb.t.Fatalf("an assigner writes %s", w)
		}
	}
}

// read has every lease read again.
func (tb *table) read() {
	for _, i := range slices.Collect(maps.Keys(tb.a.leases)) {
		r := tb.recs[subjects.KeyLease(i)]
		tb.a.SawLease(tb.now, tb.now, i, tb.a.leases[i].Lease, r.rev)
	}
}

// plan makes the next batch by the policy, checks its bounds, and writes it.
func (tb *table) plan(floor uint64) Batch {
	tb.t.Helper()
	b := tb.a.Plan(tb.now, floor, Spread(tb.a.Owners(), tb.a.Live(tb.now, nil), nil))
	if len(b.Writes) > maxBatchWrites || len(b.Shards) > maxBatchShards {
		tb.t.Fatalf("a batch of %d records about %d shards", len(b.Writes), len(b.Shards))
	}
	tb.write(b.Writes...)
	return b
}

// settle plans until there is nothing to do.
func (tb *table) settle(floor uint64) (all Counts) {
	tb.t.Helper()
	for range 100 {
		b := tb.plan(floor)
		if len(b.Writes) == 0 {
			return all
		}
		all.Add(b.Counts)
	}
	tb.t.Fatal("there is no end of batches")
	return all
}

// owned is how many shards each has, those on their way not counted.
func (tb *table) owned() map[kbroker.Incarnation]int {
	n := map[kbroker.Incarnation]int{}
	for _, s := range tb.a.shards {
		n[s.Owner]++
	}
	return n
}

func TestShardsAreAssignedToWhoIsThere(t *testing.T) {
	tb := newTable(t)
	if b := tb.plan(1); len(b.Writes) != 0 {
		t.Fatalf("with nobody there %d records are written", len(b.Writes))
	}
	tb.lease(Lease{Incarnation: "w-1.a"})
	tb.lease(Lease{Incarnation: "w-2.a", Leaving: true})
	tb.lease(Lease{Incarnation: "w-3.a", Revoked: true})
	if all := tb.settle(1); all != (Counts{Assigned: kbroker.Shards}) {
		t.Fatalf("%+v, want all assigned", all)
	}
	if got := tb.owned(); got["w-1.a"] != kbroker.Shards {
		t.Fatalf("owned %v, want all by the one that stays", got)
	}
}

// After a rescue the allocator's lease has an epoch above all that was given away.
func TestAnEpochIsNotBelowTheFloor(t *testing.T) {
	const rescued = 1_000_007
	tb := newTable(t)
	tb.lease(Lease{Incarnation: "w-1.a"})
	tb.put(subjects.KeyAssign(1), Assignment{Owner: "w-0.x", Epoch: 41})
	tb.put(subjects.KeyAssign(2), Assignment{Owner: "w-0.x", Epoch: 41, Next: "w-0.y", NextEpoch: 42})
	tb.put(subjects.KeyAssign(3), Assignment{Owner: "w-0.x", Epoch: rescued + 5})
	tb.put(subjects.KeyAssign(4), Assignment{Owner: "w-1.a", Epoch: 41})
	tb.a.SawLease(0, 0, "w-0.x", Lease{}, 0) // their leases were dropped
	tb.a.SawLease(0, 0, "w-0.y", Lease{}, 0)
	tb.now = simTimes.ObserverActs - 1
	tb.lease(Lease{Incarnation: "w-1.a"})
	tb.now++
	tb.read()
	tb.settle(rescued)
	for n, want := range map[kbroker.Shard]uint64{0: rescued, 1: rescued, 2: rescued, 3: rescued + 6, 4: 41} {
		if got := tb.a.shards[n].Assignment; got.Owner != "w-1.a" || got.Epoch != want {
			t.Errorf("shard %d: %+v, want w-1.a at epoch %d", n, got, want)
		}
	}
	for _, i := range []kbroker.Incarnation{"w-0.x", "w-0.y"} {
		if !tb.a.leases[i].Revoked {
			t.Errorf("the lease of %s is not revoked", i)
		}
	}
	tb.lease(Lease{Incarnation: "w-2.a"})
	tb.plan(rescued)
	for n, s := range tb.a.shards {
		if s.Next != "" && s.NextEpoch != max(s.Epoch+1, rescued) {
			t.Errorf("shard %d is offered: %+v", n, s.Assignment)
		}
	}
}

func TestALeavingOwnersShardsAreMoved(t *testing.T) {
	tb := newTable(t)
	for n := range 3 {
		tb.lease(Lease{Incarnation: kbroker.Incarnation(fmt.Sprintf("w-%d.a", n))})
	}
	tb.settle(1)
	has := tb.owned()["w-1.a"]
	tb.lease(Lease{Incarnation: "w-1.a", Number: 1, Leaving: true})
	batches := 0
	for ; ; batches++ {
		b := tb.plan(1)
		if c := b.Counts; c.Taken+c.Assigned+c.Kept > 0 || len(b.Leases) > 0 {
			t.Fatalf("who leaves is well: %+v, leases written %v", c, b.Leases)
		}
		if len(b.Writes) == 0 {
			break
		}
	}
	if want := (has + maxBatchShards - 1) / maxBatchShards; batches != want {
		t.Errorf("%d shards are offered in %d batches, want %d", has, batches, want)
	}
	offered := 0
	for n, s := range tb.a.shards {
		switch {
		case s.Owner != "w-1.a":
		case s.Next == "" || s.Next == "w-1.a":
			t.Fatalf("shard %d of who leaves is not moved: %+v", n, s.Assignment)
		default:
			offered++
			tb.put(subjects.KeyRelease(n), Release{Epoch: s.Epoch, To: s.Next, ToEpoch: s.NextEpoch})
		}
	}
	if offered != has {
		t.Fatalf("%d of %d shards are moved", offered, has)
	}
	if all := tb.settle(1); all != (Counts{Moved: has}) {
		t.Errorf("%+v, want %d moved", all, has)
	}
	if got := tb.owned(); got["w-1.a"] != 0 || got["w-0.a"]-got["w-2.a"] > 1 || got["w-2.a"]-got["w-0.a"] > 1 {
		t.Errorf("owned %v, want the two that stay to have all", got)
	}
}

// Who is to get a shard may be told to leave first; and the last one keeps what it has.
func TestNobodyWhoLeavesIsGivenAShard(t *testing.T) {
	tb := newTable(t)
	tb.lease(Lease{Incarnation: "w-1.a"})
	tb.settle(1)
	tb.lease(Lease{Incarnation: "w-2.a"})
	tb.plan(1)
	tb.lease(Lease{Incarnation: "w-2.a", Number: 1, Leaving: true})
	if all := tb.settle(1); all != (Counts{Kept: 32}) {
		t.Errorf("%+v, want the 32 moves that had begun called off", all)
	}
	tb.lease(Lease{Incarnation: "w-1.a", Number: 1, Leaving: true})
	if all := tb.settle(1); all != (Counts{}) {
		t.Errorf("%+v with nobody who stays, want nothing", all)
	}
	tb.lease(Lease{Incarnation: "w-3.a"})
	tb.settle(1)
	for n, s := range tb.a.shards {
		if s.Next == "w-2.a" || s.Next == "" && s.Owner == "w-2.a" {
			t.Errorf("shard %d: %+v", n, s.Assignment)
		}
	}
}

// A batch revokes up to two owners for each shard.
func TestABatchIsBounded(t *testing.T) {
	tb := newTable(t)
	tb.lease(Lease{Incarnation: "w-1.a"})
	for n := range kbroker.Shard(kbroker.Shards) {
		x, y := kbroker.Incarnation(fmt.Sprintf("x-%d.a", n)), kbroker.Incarnation(fmt.Sprintf("y-%d.a", n))
		tb.lease(Lease{Incarnation: x})
		tb.lease(Lease{Incarnation: y})
		tb.put(subjects.KeyAssign(n), Assignment{Owner: x, Epoch: 1, Next: y, NextEpoch: 2})
		tb.a.Reaped(x)
		tb.a.Reaped(y)
	}
	if all := tb.settle(1); all != (Counts{Taken: kbroker.Shards}) {
		t.Fatalf("%+v, want all taken", all)
	}
	if got := tb.owned(); got["w-1.a"] != kbroker.Shards {
		t.Fatalf("owned %v", got)
	}
}

func TestLeasesThatNobodyNeedsAreCollected(t *testing.T) {
	tb := newTable(t)
	for _, i := range []kbroker.Incarnation{"w-1.a", "w-2.a", "w-3.a"} {
		tb.lease(Lease{Incarnation: i})
	}
	tb.settle(1)
	tb.a.Reaped("w-2.a")
	tb.settle(1) // revokes it
	tb.lease(Lease{Incarnation: "w-4.a", Leaving: true})
	live := func() {
		for _, i := range []kbroker.Incarnation{"w-1.a", "w-3.a"} {
			tb.lease(Lease{Incarnation: i, Number: uint64(tb.now)})
		}
		tb.read()
	}
	tb.now = garbageTerms*simTimes.ObserverActs - 1
	live()
	if b := tb.plan(1); len(b.Writes) != 0 {
		t.Fatalf("%v is written too early", b.Writes)
	}
	tb.now++
	live()
	if b := tb.plan(1); !slices.Equal(b.Leases, []kbroker.Incarnation{"w-2.a", "w-4.a"}) || len(b.Shards) != 0 {
		t.Fatalf("%v is written, want the leases of who is out taken away", b.Writes)
	}
	if b := tb.plan(1); len(b.Writes) != 0 {
		t.Fatalf("%v is written again", b.Writes)
	}
	if got := tb.a.Live(tb.now, nil); !slices.Equal(got, []kbroker.Incarnation{"w-1.a", "w-3.a"}) {
		t.Errorf("live are %v", got)
	}
	tb.a.Forget(tb.now)
	if len(tb.a.leases) != 4 {
		t.Errorf("%d leases are known, want 4: what is late is recognized", len(tb.a.leases))
	}
	tb.now += garbageTerms * simTimes.ObserverActs
	live()
	tb.a.Forget(tb.now)
	if len(tb.a.leases) != 2 || len(tb.a.gone) != 0 {
		t.Errorf("leases %v and ends %v are known, want those of who is there", tb.a.leases, tb.a.gone)
	}
}

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

// TestAnOutageIsNoNewTerm: who was silent before a store was away is judged soon after it
// is back; nobody is before holders could renew.
func TestAnOutageIsNoNewTerm(t *testing.T) {
	tb := newTable(t)
	tb.lease(Lease{Incarnation: "a.1"})
	tb.now += simTimes.ObserverActs
	tb.a.Outage(tb.now)
	tb.now += simTimes.OutageGrace - 1
	tb.read()
	if tb.a.out(tb.now, "a.1") {
		t.Error("it is judged before it could renew")
	}
	tb.now += 2
	tb.read()
	if !tb.a.out(tb.now, "a.1") {
		t.Errorf("it is not judged, though its lease is unchanged for %v and the store is back for %v", tb.now, simTimes.OutageGrace)
	}
}
