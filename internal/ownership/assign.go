package ownership

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

// Bounds of an assigner.
const (
	// maxBatchShards bounds the shards that one batch gives away, maxBatchWrites its records
	// beside the allocator's lease, of which one shard needs maxShardWrites: its own, and
	// two leases that are revoked.
	maxBatchShards = 100
	maxBatchWrites = kbroker.MaxBatchWrites - 1
	maxShardWrites = 3
	// maxLeavingMoves bounds the shards that are moved at a time while some are of an owner
	// that leaves: somebody waits for its end.
	maxLeavingMoves = 512
	// garbageTerms is how many bounds of an observer a lease is unchanged, of one that owns
	// nothing, before its record is taken away.
	garbageTerms = 10
)

// AssignerConfig is what an Assigner needs to know.
type AssignerConfig struct {
	Times Times
	// Moves bounds the shards that are moved at a time, though their owners are well;
	// 0: 32.
	Moves int
	// MovesPerS bounds how many such moves begin in a second; 0: 100. Those of owners that
	// leave are as many as there can be: somebody waits for their end.
	MovesPerS float64
}

// Assigner decides who owns the shards of an app: the part of the active allocator that
// gives them to incarnations and takes them from those that are out. The driver tells it
// what it reads through leaders and hears announced, and writes its batches, one at a
// time. Not safe for concurrent use.
type Assigner struct {
	cfg      AssignerConfig
	leases   map[kbroker.Incarnation]*leaseSeen
	shards   map[kbroker.Shard]*shardSeen
	placed   placedSeen
	pace     pace
	gone     map[kbroker.Incarnation]bool // by (c): its agent has waited for it
	grace    time.Duration                // nobody is judged before
	complete bool                         // all that is stored was read once
}

// leaseSeen is a lease as it is observed.
type leaseSeen struct {
	Lease
	rev   kbroker.Revision // 0: none was found
	away  bool             // its record was taken away at rev
	since time.Duration    // when it was first seen so
	still time.Duration    // when it was asked for last, and found the same
}

// shardSeen is what is stored of a shard.
type shardSeen struct {
	Assignment
	rev        kbroker.Revision
	release    Release
	releaseRev kbroker.Revision
	since      time.Duration // when rev was first seen
}

// NewAssigner returns one that knows nothing yet, and so decides nothing.
func NewAssigner(cfg AssignerConfig) *Assigner {
	cfg.Moves = cmp.Or(cfg.Moves, 32)
	cfg.MovesPerS = cmp.Or(cfg.MovesPerS, 100)
	return &Assigner{
		cfg: cfg, pace: pace{perS: cfg.MovesPerS, most: float64(cfg.Moves), tokens: float64(cfg.Moves)}, leases: map[kbroker.Incarnation]*leaseSeen{}, shards: map[kbroker.Shard]*shardSeen{}, placed: newPlacedSeen(), gone: map[kbroker.Incarnation]bool{},
	}
}

// SawLease takes a lease at a revision, 0 if there is none: read between asked and now, or
// announced (asked is now then). One that was taken away, at its revision, is the zero
// Lease. It reports whether it is more than a renewal: then it is worth to plan again.
func (a *Assigner) SawLease(asked, now time.Duration, i kbroker.Incarnation, l Lease, rev kbroker.Revision) bool {
	known := a.leases[i]
	switch {
	case known == nil || rev > known.rev:
		seen := &leaseSeen{Lease: l, rev: rev, since: now, still: asked}
		if rev != 0 && l.Incarnation == "" { // by an allocator: nobody holds it again
			seen.away, seen.Lease = true, Lease{Incarnation: i, Revoked: true}
		}
		a.leases[i] = seen
		return known == nil || known.rev == 0 || known.Revoked != seen.Revoked || known.Leaving != seen.Leaving
	case rev == known.rev:
		known.still = max(known.still, asked)
	}
	return false
}

// SawShard takes the assignment of a shard at a revision, 0 if there is none, and reports
// whether it is news.
func (a *Assigner) SawShard(now time.Duration, n kbroker.Shard, as Assignment, rev kbroker.Revision) bool {
	s := a.shard(n)
	if rev <= s.rev {
		return false
	}
	if n.OfOne() {
		a.placed.saw(now, n, s.Assignment, as)
	}
	s.Assignment, s.rev, s.since = as, rev, now
	return true
}

// SawRelease takes the release of a shard at a revision, 0 if there is none, and reports
// whether it is news.
func (a *Assigner) SawRelease(n kbroker.Shard, r Release, rev kbroker.Revision) bool {
	s := a.shard(n)
	if rev <= s.releaseRev {
		return false
	}
	s.release, s.releaseRev = r, rev
	return true
}

func (a *Assigner) shard(n kbroker.Shard) *shardSeen {
	of := a.shards
	if n.OfOne() {
		of = a.placed.of
	}
	s := of[n]
	if s == nil {
		s = &shardSeen{}
		of[n] = s
	}
	return s
}

// SawAll says that all that was stored at some time has been read: from now on it may be
// decided who owns what.
func (a *Assigner) SawAll() { a.complete = true }

// Reaped says that an incarnation has ended: its agent has waited for it, in the boot in
// which it was started.
func (a *Assigner) Reaped(i kbroker.Incarnation) { a.gone[i] = true }

// Outage says that the store could not be read: who could not renew meanwhile is not
// judged by that.
func (a *Assigner) Outage(now time.Duration) {
	a.grace = now + a.cfg.Times.OutageGrace
}

// Named are the incarnations that a shard is on, or on its way to, sorted: of these it has
// to be known whether their leases are there.
func (a *Assigner) Named() []kbroker.Incarnation {
	named := a.named()
	return slices.Sorted(maps.Keys(named))
}

func (a *Assigner) named() map[kbroker.Incarnation]bool {
	named := map[kbroker.Incarnation]bool{}
	for _, s := range a.shards {
		for _, i := range []kbroker.Incarnation{s.Owner, s.Next} {
			if i != "" {
				named[i] = true
			}
		}
	}
	for i := range a.placed.on {
		named[i] = true
	}
	return named
}

// Forget drops what is known of incarnations that own nothing, and have no lease that is
// stored, for long.
func (a *Assigner) Forget(now time.Duration) {
	named := a.named()
	for i, l := range a.leases {
		if !named[i] && (l.rev == 0 || l.away) && now-l.since >= garbageTerms*a.cfg.Times.ObserverActs {
			delete(a.leases, i)
		}
	}
	a.placed.forget(now - garbageTerms*a.cfg.Times.ObserverActs)
	for i := range a.gone {
		if a.leases[i] == nil && !named[i] {
			delete(a.gone, i)
		}
	}
}

// out reports whether an incarnation cannot serve any more, once its lease is revoked.
func (a *Assigner) out(now time.Duration, i kbroker.Incarnation) bool {
	l := a.lease(now, i)
	bound := a.cfg.Times.ObserverActs
	if !ruleMargin {
		bound = a.cfg.Times.HolderStops
	}
	return l.Revoked || a.gone[i] || now >= a.grace && l.still-l.since >= bound
}

// Due is when leases should be read next: the first that will then be unchanged for long
// enough to be out, of an incarnation that shards are on; ok is false if there is none.
func (a *Assigner) Due(now time.Duration) (at time.Duration, ok bool) {
	for i := range a.named() {
		if l := a.leases[i]; l != nil && !a.out(now, i) {
			if due := max(a.grace, l.since+a.cfg.Times.ObserverActs); !ok || due < at {
				at, ok = due, true
			}
		}
	}
	return at, ok
}

// lease is what is known of one: that nothing is known of it is known since now.
func (a *Assigner) lease(now time.Duration, i kbroker.Incarnation) *leaseSeen {
	l := a.leases[i]
	if l == nil {
		l = &leaseSeen{Lease: Lease{Incarnation: i}, since: now}
		a.leases[i] = l
	}
	return l
}

// Live are the incarnations that may be given shards: whose lease is there, was changed
// within a term, is not revoked, and does not say that they leave. of leaves some of them
// out; nil: none.
func (a *Assigner) Live(now time.Duration, of func(Lease) bool) []kbroker.Incarnation {
	var live []kbroker.Incarnation
	for i, l := range a.leases {
		if a.takes(now, i) && (of == nil || of(l.Lease)) {
			live = append(live, i)
		}
	}
	slices.Sort(live)
	return live
}

// takes reports whether an incarnation may be given a shard.
func (a *Assigner) takes(now time.Duration, i kbroker.Incarnation) bool {
	l := a.leases[i]
	return l != nil && l.rev != 0 && !l.Leaving && !a.out(now, i)
}

// Moving are the shards that are on their way from one owner to another.
func (a *Assigner) Moving() map[kbroker.Shard]bool {
	moving := map[kbroker.Shard]bool{}
	for n, s := range a.shards {
		if s.Next != "" && s.Owner != "" && s.Next != s.Owner {
			moving[n] = true
		}
	}
	return moving
}

// Fresh are the shards whose owner is another one, or is to be, since a time.
func (a *Assigner) Fresh(since time.Duration) map[kbroker.Shard]bool {
	fresh := map[kbroker.Shard]bool{}
	for n, s := range a.shards {
		if s.Next != "" || s.since >= since {
			fresh[n] = true
		}
	}
	return fresh
}

// OwnedBy are the shards that are on an incarnation, or on their way to it, in no order.
func (a *Assigner) OwnedBy(i kbroker.Incarnation) []kbroker.Shard {
	var all []kbroker.Shard
	for n, s := range a.shards {
		if cmp.Or(s.Next, s.Owner) == i {
			all = append(all, n)
		}
	}
	return all
}

// Owners are the incarnations that the shards are on, or on their way to.
func (a *Assigner) Owners() map[kbroker.Shard]kbroker.Incarnation {
	out := map[kbroker.Shard]kbroker.Incarnation{}
	for n, s := range a.shards {
		if to := cmp.Or(s.Next, s.Owner); to != "" {
			out[n] = to
		}
	}
	return out
}
