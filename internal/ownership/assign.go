package ownership

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
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
}

// Assigner decides who owns the shards of an app: the part of the active allocator that
// gives them to incarnations and takes them from those that are out. The driver tells it
// what it reads through leaders and hears announced, and writes its batches, one at a
// time. Not safe for concurrent use.
type Assigner struct {
	cfg      AssignerConfig
	leases   map[kbroker.Incarnation]*leaseSeen
	shards   map[kbroker.Shard]*shardSeen
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
	return &Assigner{
		cfg: cfg, leases: map[kbroker.Incarnation]*leaseSeen{}, shards: map[kbroker.Shard]*shardSeen{}, gone: map[kbroker.Incarnation]bool{},
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
	s := a.shards[n]
	if s == nil {
		s = &shardSeen{}
		a.shards[n] = s
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

// Batch is what an assigner has written. The driver puts the allocator's lease in front.
type Batch struct {
	Writes []kbroker.Write
	Shards []kbroker.Shard // that it is about: to be read again when it is not known what became of it
	Leases []kbroker.Incarnation
	Counts Counts
}

// Counts says what becomes of how many shards by a batch.
type Counts struct {
	Assigned int // had no owner
	Taken    int // from owners that are out
	Offered  int // a move begins
	Moved    int // and is over
	Kept     int // a move is called off
}

// Add adds what another batch did.
func (c *Counts) Add(d Counts) {
	c.Assigned += d.Assigned
	c.Taken += d.Taken
	c.Offered += d.Offered
	c.Moved += d.Moved
	c.Kept += d.Kept
}

// Plan is the next batch, given who is to own each shard; empty: there is nothing to do.
// It decides by what is known, and changes nothing of that: the outcome of the batch is
// seen like everything else. wanted may lack shards, and name incarnations that are out,
// or leave: those shards stay where they are, if they can.
//
// An epoch that is given to a shard is not below floor, the epoch of the allocator's lease:
// a rescue raises that one above all that was given in the store whose copy this is.
func (a *Assigner) Plan(now time.Duration, floor uint64, wanted map[kbroker.Shard]kbroker.Incarnation) Batch {
	if !a.complete {
		return Batch{}
	}
	p := planner{Assigner: a, now: now, floor: floor, revoked: map[kbroker.Incarnation]bool{}}
	for _, s := range a.shards {
		if s.Next != "" {
			p.moves++
		}
	}
	for _, n := range slices.Sorted(maps.Keys(wanted)) {
		if len(p.Shards) >= maxBatchShards || len(p.Writes)+maxShardWrites > maxBatchWrites {
			break
		}
		to := wanted[n]
		if !a.takes(now, to) {
			to = ""
		}
		p.shard(n, a.shard(n), to)
	}
	if len(p.Writes) == 0 {
		p.collect()
	}
	return p.Batch
}

// planner makes one batch.
type planner struct {
	*Assigner
	Batch
	now     time.Duration
	floor   uint64
	moves   int
	revoked map[kbroker.Incarnation]bool
}

// after is an epoch that a shard may have next, behind one that it had, or was offered.
func (p *planner) after(epoch uint64) uint64 { return max(epoch+1, p.floor) }

// shard does what one shard needs; to is who is to have it, empty: nobody is known.
func (p *planner) shard(n kbroker.Shard, s *shardSeen, to kbroker.Incarnation) {
	switch {
	case s.Owner == "":
		if to != "" {
			p.Counts.Assigned++
			p.assign(n, s, Assignment{Owner: to, Epoch: p.after(s.Epoch)})
		}
	case s.Next == "":
		p.owned(n, s, to)
	default:
		p.moving(n, s, to)
	}
}

// owned is a shard that is not being moved.
func (p *planner) owned(n kbroker.Shard, s *shardSeen, to kbroker.Incarnation) {
	switch {
	case p.out(p.now, s.Owner):
		if to != "" && to != s.Owner {
			p.Counts.Taken++
			p.assign(n, s, Assignment{Owner: to, Epoch: p.after(s.Epoch)}, s.Owner)
		}
	case to != "" && to != s.Owner && p.moves < p.mostMoves(s.Owner):
		p.moves++
		p.Counts.Offered++
		p.assign(n, s, Assignment{Owner: s.Owner, Epoch: s.Epoch, Next: to, NextEpoch: p.after(s.Epoch)})
	}
}

// mostMoves is how many shards may be moved at a time, for one of an owner.
func (p *planner) mostMoves(owner kbroker.Incarnation) int {
	if l := p.leases[owner]; l != nil && l.Leaving {
		return max(maxLeavingMoves, p.cfg.Moves)
	}
	return p.cfg.Moves
}

// moving is a shard whose owner was asked to leave it to the next. The epoch that the next
// was offered is the one it gets, whatever the floor: it may have begun by the release.
func (p *planner) moving(n kbroker.Shard, s *shardSeen, to kbroker.Incarnation) {
	left := s.release.Epoch == s.Epoch && (!ruleReleaseNames || s.release.isOf(s.Assignment))
	ownerOut, nextOut := p.out(p.now, s.Owner), p.out(p.now, s.Next)
	elsewhere := to
	if to == s.Next || to == s.Owner && ownerOut {
		elsewhere = ""
	}
	switch {
	case nextOut && (left || ownerOut):
		if elsewhere != "" {
			out := []kbroker.Incarnation{s.Next}
			if ownerOut {
				out = append(out, s.Owner)
			}
			p.Counts.Taken++
			p.assign(n, s, Assignment{Owner: elsewhere, Epoch: p.after(s.NextEpoch)}, out...)
		}
	case nextOut: // the owner keeps it, if it has not released it meanwhile
		p.cancel(n, s, s.Next)
	case left:
		p.Counts.Moved++
		p.assign(n, s, Assignment{Owner: s.Next, Epoch: s.NextEpoch})
	case ownerOut && !ruleForward && elsewhere != "":
		p.assign(n, s, Assignment{Owner: elsewhere, Epoch: p.after(s.Epoch)}, s.Owner)
	case ownerOut:
		p.Counts.Taken++
		p.assign(n, s, Assignment{Owner: s.Next, Epoch: s.NextEpoch}, s.Owner)
	case to != s.Next && to != "" || p.now-s.since >= p.cfg.Times.MoveDeadline:
		p.cancel(n, s)
	}
}

// collect takes the records of leases away that nobody needs: of who is out, and owns
// nothing, for long. Every start leaves one. Who comes back is refused by the revision.
func (p *planner) collect() {
	named := p.named()
	for _, i := range slices.Sorted(maps.Keys(p.leases)) {
		l := p.leases[i]
		old := l.still-l.since >= garbageTerms*p.cfg.Times.ObserverActs && p.now >= p.grace
		if old && l.rev != 0 && !l.away && !named[i] && len(p.Leases) < maxBatchShards {
			p.Writes = append(p.Writes, kbroker.Write{Key: subjects.KeyLease(i), Expected: l.rev})
			p.Leases = append(p.Leases, i)
		}
	}
}

// assign writes an assignment, and revokes those by whose end it is allowed.
func (p *planner) assign(n kbroker.Shard, s *shardSeen, next Assignment, out ...kbroker.Incarnation) {
	for _, i := range out {
		p.revoke(i)
	}
	w := kbroker.Write{Key: subjects.KeyAssign(n), Expected: s.rev, Value: encode(next)}
	p.Writes, p.Shards = append(p.Writes, w), append(p.Shards, n)
}

// revoke ends a lease, once in a batch. One that is already revoked stays so for ever.
func (p *planner) revoke(i kbroker.Incarnation) {
	l := p.lease(p.now, i)
	if !ruleRevoke || l.Revoked || p.revoked[i] {
		return
	}
	p.revoked[i] = true
	l2 := l.Lease
	l2.Incarnation, l2.Revoked = i, true
	p.Writes = append(p.Writes, kbroker.Write{Key: subjects.KeyLease(i), Expected: l.rev, Value: encode(l2)})
	p.Leases = append(p.Leases, i)
}

// cancel takes a move back. A release that came first refuses the batch, as the record is
// rewritten as it was seen: else the next, or if that is out nobody, would serve beside
// the record of an owner who never does again.
func (p *planner) cancel(n kbroker.Shard, s *shardSeen, out ...kbroker.Incarnation) {
	p.Counts.Kept++
	if ruleCancelGuard && (ruleUndoGuard || len(out) == 0) {
		p.Writes = append(p.Writes, kbroker.Write{Key: subjects.KeyRelease(n), Expected: s.releaseRev, Value: encode(s.release)})
	}
	p.assign(n, s, Assignment{Owner: s.Owner, Epoch: s.Epoch}, out...)
}

// Spread gives every shard an owner, evenly, and moves as few as it can from where they
// are now. A shard that is wished somewhere is there, if that one is live, and counts: who
// has more than an even share by wishes has nothing else. Pure: the same answer whatever the
// order of live. With nobody live it is empty.
func Spread(now map[kbroker.Shard]kbroker.Incarnation, live []kbroker.Incarnation, wished map[kbroker.Shard]kbroker.Incarnation) map[kbroker.Shard]kbroker.Incarnation {
	out := make(map[kbroker.Shard]kbroker.Incarnation, kbroker.Shards)
	if len(live) == 0 {
		return out
	}
	live = slices.Sorted(slices.Values(live))
	fixed := map[kbroker.Incarnation]int{}
	for n := range kbroker.Shard(kbroker.Shards) {
		if i := wished[n]; slices.Contains(live, i) {
			out[n] = i
			fixed[i]++
		}
	}
	has := map[kbroker.Incarnation][]kbroker.Shard{}
	var free []kbroker.Shard
	for n := range kbroker.Shard(kbroker.Shards) {
		if _, done := out[n]; done {
			continue
		}
		if i, ok := now[n]; ok && slices.Contains(live, i) {
			has[i] = append(has[i], n)
		} else {
			free = append(free, n)
		}
	}
	share := shares(live, has, fixed)
	for _, i := range live {
		if over := len(has[i]) - share[i]; over > 0 {
			free = append(free, has[i][share[i]:]...)
			has[i] = has[i][:share[i]]
		}
	}
	slices.Sort(free)
	for _, i := range live {
		for _, n := range has[i] {
			out[n] = i
		}
		take := min(share[i]-len(has[i]), len(free))
		for _, n := range free[:take] {
			out[n] = i
		}
		free = free[take:]
	}
	return out
}

// shares are how many shards each is to have beside those that are fixed: those that have
// most keep one more, where it does not come out even.
func shares(live []kbroker.Incarnation, has map[kbroker.Incarnation][]kbroker.Shard, fixed map[kbroker.Incarnation]int) map[kbroker.Incarnation]int {
	share, among, all := map[kbroker.Incarnation]int{}, slices.Clone(live), kbroker.Shards
	slices.SortStableFunc(among, func(a, b kbroker.Incarnation) int {
		return cmp.Compare(len(has[b])+fixed[b], len(has[a])+fixed[a])
	})
	for {
		clear(share)
		for k, i := range among {
			share[i] = all/len(among) - fixed[i]
			if k < all%len(among) {
				share[i]++
			}
		}
		full := slices.IndexFunc(among, func(i kbroker.Incarnation) bool { return share[i] < 0 })
		if full < 0 {
			return share
		}
		all -= fixed[among[full]] // by what is fixed it has more than its share: it takes no part
		among = slices.Delete(among, full, full+1)
	}
}
