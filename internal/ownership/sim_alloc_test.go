package ownership

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// allocLease is the lease of the active allocator, as far as the simulation needs it.
type allocLease struct {
	Holder string
	Number uint64
}

// simAlloc is an allocator's process: it drives an Assigner while it holds the lease.
type simAlloc struct {
	*proc
	a      *Assigner
	lease  allocLease
	rev    kbroker.Revision
	since  time.Duration
	active bool
	busy   bool   // a batch is under way
	won    uint64 // the number of the lease when it became active: its epoch
	moves  map[kbroker.Shard]kbroker.Incarnation
	gone   map[kbroker.Shard]bool // placed objects that are to be released
	rounds int
}

func (w *world) allocator(n int) *simAlloc {
	a := &simAlloc{proc: w.proc(fmt.Sprintf("alloc%d", n)), moves: map[kbroker.Shard]kbroker.Incarnation{}, gone: map[kbroker.Shard]bool{}}
	a.a = NewAssigner(AssignerConfig{Times: simTimes})
	w.store.heard = append(w.store.heard, func(key string, value []byte, rev kbroker.Revision) {
		if w.unheard() {
			return
		}
		w.after(w.hop(), func() { a.do(byAnnouncement, func() { a.see(a.clock(), key, storedRecord{value, rev}); a.stirred() }) })
	})
	a.do(byDecision, a.round)
	return a
}

func (a *simAlloc) see(asked time.Duration, key string, r storedRecord) {
	now := a.clock()
	if strings.HasPrefix(key, "lease.") {
		a.a.SawLease(asked, now, kbroker.Incarnation(strings.TrimPrefix(key, subjects.MatchLeases+".")), decodeAs[Lease](a.w, r.value), r.rev)
		return
	}
	switch k := subjects.ParseOwnKey(key); k.Table {
	case subjects.OwnAssign:
		a.a.SawShard(now, k.Shard, decodeAs[Assignment](a.w, r.value), r.rev)
	case subjects.OwnRelease:
		a.a.SawRelease(k.Shard, decodeAs[Release](a.w, r.value), r.rev)
	}
}

// stirred acts on what was heard, if it does.
func (a *simAlloc) stirred() {
	if a.w.f.eager && a.w.chance(0.3) {
		a.act()
	}
}

// round reads everything, then acts.
func (a *simAlloc) round() {
	w := a.w
	if a.rounds++; w.f.eager && a.rounds%4 > 0 && !w.healing {
		a.act()
		a.after(w.between(30*time.Millisecond, 80*time.Millisecond), a.round)
		return
	}
	keys := append([]string{allocKey}, w.store.below("lease.")...)
	for _, s := range w.shards() {
		keys = append(keys, subjects.KeyAssign(s), subjects.KeyRelease(s))
	}
	asked := a.clock()
	w.store.readAll(a.proc, simWithin, keys, func(found []storedRecord, ok bool) {
		if !ok {
			a.a.Outage(a.clock())
		} else {
			for i, key := range keys[1:] {
				a.see(asked, key, found[i+1])
			}
			a.a.SawAll()
			a.judge(found[0])
		}
		a.act()
		again := w.between(30*time.Millisecond, 80*time.Millisecond)
		if w.f.hasty {
			again /= 4
		}
		a.after(again, a.round)
	})
}

// judge looks at the allocators' own lease.
func (a *simAlloc) judge(r storedRecord) {
	if r.rev != a.rev {
		if r.rev < a.rev {
			return
		}
		a.lease, a.rev, a.since = decodeAs[allocLease](a.w, r.value), r.rev, a.clock()
		if is := a.lease.Holder == a.name; is != a.active {
			a.active, a.won = is, a.lease.Number
		}
		return
	}
	waits := simTimes.ObserverActs
	if a.w.f.duel {
		waits = 60 * time.Millisecond
	}
	if !a.active && !a.busy && a.clock()-a.since > waits {
		a.write(Batch{})
	}
}

// act writes the next batch.
func (a *simAlloc) act() {
	if !a.active || a.busy {
		return
	}
	floor := uint64(0)
	if a.w.f.leaves {
		floor = a.lease.Number
	}
	var b Batch
	if a.w.f.placed {
		b = a.a.PlanPlaced(a.clock(), a.won, a.places())
	} else {
		b = a.a.Plan(a.clock(), floor, a.wanted())
	}
	if len(b.Writes) == 0 && a.clock()-a.since < simTimes.Renew {
		return
	}
	a.write(b)
}

// places is what is to become of placed objects: at random some move, and some are released,
// to be allocated again at once.
func (a *simAlloc) places() (plans []PlacedPlan) {
	w := a.w
	live := a.a.Live(a.clock(), nil)
	for _, s := range w.shards() {
		p, is := PlacedPlan{Shard: s}, a.a.Placed(s)
		if len(live) > 0 && (is.Owner == "" || a.a.Homeless(a.clock(), s) || w.f.moves && w.chance(0.1)) {
			p.To = live[w.r.IntN(len(live))]
		}
		switch {
		case is.Owner == "":
			p.New = &Placed{Kind: "a"}
			delete(a.gone, s)
		case w.chance(0.1):
			a.gone[s] = true
		}
		p.Gone = a.gone[s] && !w.healing
		plans = append(plans, p)
	}
	return plans
}

// wanted is the policy: where they are, but for what is moved at random, away from who is
// out.
func (a *simAlloc) wanted() map[kbroker.Shard]kbroker.Incarnation {
	w := a.w
	live := a.a.Live(a.clock(), nil)
	want := a.a.Owners()
	if len(live) == 0 {
		return want
	}
	for _, s := range w.shards() {
		if !slices.Contains(live, want[s]) {
			want[s] = live[w.r.IntN(len(live))]
		}
		if w.f.moves && w.chance(0.15) {
			a.moves[s] = live[w.r.IntN(len(live))]
		}
		if to, ok := a.moves[s]; ok && !w.healing && slices.Contains(live, to) {
			want[s] = to
		}
	}
	return want
}

func (a *simAlloc) write(b Batch) {
	w := a.w
	lease := allocLease{a.name, a.lease.Number + 1}
	writes := append([]kbroker.Write{{Key: allocKey, Expected: a.rev, Value: encode(lease)}}, b.Writes...)
	if !ruleAssignCAS {
		writes = b.Writes
	}
	if len(writes) == 0 {
		a.rev, a.active = 0, true // mutation: who is active does not count
		return
	}
	a.busy = true
	w.store.write(a.proc, simWithin, writes, func(out Written, first kbroker.Revision) {
		a.busy = false
		if out == Accepted && ruleAssignCAS {
			if !a.active {
				a.won = lease.Number
			}
			a.lease, a.rev, a.since, a.active = lease, first, a.clock(), true
		}
	})
}

// shards are those that objects of the world are in.
func (w *world) shards() []kbroker.Shard {
	all := map[kbroker.Shard]bool{}
	for _, o := range w.objects {
		all[o.Shard()] = true
	}
	return slices.Sorted(maps.Keys(all))
}
