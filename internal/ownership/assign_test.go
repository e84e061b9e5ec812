package ownership

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

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

// release has all owners leave what is to be moved.
func (tb *table) release() {
	tb.t.Helper()
	for n, s := range tb.a.shards {
		if s.Next != "" && !s.release.isOf(s.Assignment) {
			tb.put(subjects.KeyRelease(n), Release{Epoch: s.Epoch, To: s.Next, ToEpoch: s.NextEpoch})
		}
	}
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

// TestLeasesAreReadWhenOneIsDue: a look a little before would have the shards wait for the
// next one.
func TestLeasesAreReadWhenOneIsDue(t *testing.T) {
	tb := newTable(t)
	tb.lease(Lease{Incarnation: "w-1.a"})
	if at, ok := tb.a.Due(tb.now); ok {
		t.Errorf("due at %v, though nobody owns anything", at)
	}
	tb.settle(1)
	tb.now = 100 * time.Millisecond
	tb.lease(Lease{Incarnation: "w-2.a"}) // moves are offered, and wait for releases
	tb.plan(1)
	tb.now = 200 * time.Millisecond
	tb.lease(Lease{Incarnation: "w-1.a", Number: 1})
	if at, ok := tb.a.Due(tb.now); !ok || at != 100*time.Millisecond+simTimes.ObserverActs {
		t.Fatalf("due at %v, %t; want when the lease of w-2.a is unchanged for long enough", at, ok)
	}
	at, _ := tb.a.Due(tb.now)
	tb.now = at
	tb.read()
	if !tb.a.out(tb.now, "w-2.a") {
		t.Error("it is not out when it was due")
	}
	if at, ok := tb.a.Due(tb.now); !ok || at != 200*time.Millisecond+simTimes.ObserverActs {
		t.Errorf("due at %v, %t; want that of w-1.a", at, ok)
	}
	tb.a.Outage(tb.now + simTimes.ObserverActs)
	if at, _ := tb.a.Due(tb.now); at != tb.now+simTimes.ObserverActs+simTimes.OutageGrace {
		t.Errorf("due at %v, want behind the grace", at)
	}
}

// TestAnOlderPlanMovesNoPlacedObject: one that was to get a place has got one meanwhile.
func TestAnOlderPlanMovesNoPlacedObject(t *testing.T) {
	tb := newTable(t)
	for _, i := range []kbroker.Incarnation{"w-1.a", "w-2.a"} {
		tb.lease(Lease{Incarnation: i, Number: 1})
	}
	p := Placed{Kind: "room", ID: "1"}
	plan := func(to kbroker.Incarnation) Batch {
		return tb.a.PlanPlaced(tb.now, 1, []PlacedPlan{{Shard: p.Object().Shard(), To: to, New: &p}})
	}
	first := plan("w-1.a")
	tb.write(first.Writes...)
	if b := plan("w-2.a"); len(first.Writes) != 1 || len(b.Writes) != 0 {
		t.Errorf("it has a place by %v, and gets another one by %v", first.Writes, b.Writes)
	}
}
