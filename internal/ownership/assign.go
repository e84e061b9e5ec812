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
	// maxBatchShards bounds the shards that one batch gives away; each has at most two
	// records.
	maxBatchShards = 100
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
// announced (asked is now then).
func (a *Assigner) SawLease(asked, now time.Duration, i kbroker.Incarnation, l Lease, rev kbroker.Revision) {
	known := a.leases[i]
	switch {
	case known == nil || rev > known.rev:
		a.leases[i] = &leaseSeen{l, rev, now, asked}
	case rev == known.rev:
		known.still = max(known.still, asked)
	}
}

// SawShard takes the assignment of a shard at a revision, 0 if there is none.
func (a *Assigner) SawShard(now time.Duration, n kbroker.Shard, as Assignment, rev kbroker.Revision) {
	s := a.shard(n)
	if rev > s.rev {
		s.Assignment, s.rev, s.since = as, rev, now
	}
}

// SawRelease takes the release of a shard at a revision, 0 if there is none.
func (a *Assigner) SawRelease(n kbroker.Shard, r Release, rev kbroker.Revision) {
	s := a.shard(n)
	if rev > s.releaseRev {
		s.release, s.releaseRev = r, rev
	}
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
	for _, l := range a.leases {
		l.since = now
	}
}

// Forget drops an incarnation that owns nothing, and is out.
func (a *Assigner) Forget(i kbroker.Incarnation) {
	for _, s := range a.shards {
		if s.Owner == i || s.Next == i {
			return
		}
	}
	delete(a.leases, i)
	delete(a.gone, i)
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
// within a term, and is not revoked.
func (a *Assigner) Live(now time.Duration) []kbroker.Incarnation {
	var live []kbroker.Incarnation
	for i, l := range a.leases {
		if l.rev != 0 && !a.out(now, i) {
			live = append(live, i)
		}
	}
	slices.Sort(live)
	return live
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
}

// Plan is the next batch, given who is to own each shard; empty: there is nothing to do.
// It decides by what is known, and changes nothing of that: the outcome of the batch is
// seen like everything else. wanted may lack shards, and name incarnations that are out:
// those shards stay where they are, if they can.
func (a *Assigner) Plan(now time.Duration, wanted map[kbroker.Shard]kbroker.Incarnation) Batch {
	if !a.complete {
		return Batch{}
	}
	p := planner{Assigner: a, now: now, revoked: map[kbroker.Incarnation]bool{}}
	for _, s := range a.shards {
		if s.Next != "" {
			p.moves++
		}
	}
	for _, n := range slices.Sorted(maps.Keys(wanted)) {
		if len(p.Shards) >= maxBatchShards {
			break
		}
		to := wanted[n]
		if l := a.leases[to]; l == nil || l.rev == 0 || a.out(now, to) {
			to = ""
		}
		p.shard(n, a.shard(n), to)
	}
	return p.Batch
}

// planner makes one batch.
type planner struct {
	*Assigner
	Batch
	now     time.Duration
	moves   int
	revoked map[kbroker.Incarnation]bool
}

// shard does what one shard needs; to is who is to have it, empty: nobody is known.
func (p *planner) shard(n kbroker.Shard, s *shardSeen, to kbroker.Incarnation) {
	switch {
	case s.Owner == "":
		if to != "" {
			p.assign(n, s, Assignment{Owner: to, Epoch: s.Epoch + 1})
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
			p.assign(n, s, Assignment{Owner: to, Epoch: s.Epoch + 1}, s.Owner)
		}
	case to != "" && to != s.Owner && p.moves < p.cfg.Moves:
		p.moves++
		p.assign(n, s, Assignment{Owner: s.Owner, Epoch: s.Epoch, Next: to, NextEpoch: s.Epoch + 1})
	}
}

// moving is a shard whose owner was asked to leave it to the next.
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
			p.assign(n, s, Assignment{Owner: elsewhere, Epoch: s.NextEpoch + 1}, out...)
		}
	case nextOut: // the owner keeps it, if it has not released it meanwhile
		p.cancel(n, s, s.Next)
	case left:
		p.assign(n, s, Assignment{Owner: s.Next, Epoch: s.NextEpoch})
	case ownerOut && !ruleForward && elsewhere != "":
		p.assign(n, s, Assignment{Owner: elsewhere, Epoch: s.Epoch + 1}, s.Owner)
	case ownerOut:
		p.assign(n, s, Assignment{Owner: s.Next, Epoch: s.NextEpoch}, s.Owner)
	case to != s.Next && to != "" || p.now-s.since >= p.cfg.Times.MoveDeadline:
		p.cancel(n, s)
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
	if ruleCancelGuard && (ruleUndoGuard || len(out) == 0) {
		p.Writes = append(p.Writes, kbroker.Write{Key: subjects.KeyRelease(n), Expected: s.releaseRev, Value: encode(s.release)})
	}
	p.assign(n, s, Assignment{Owner: s.Owner, Epoch: s.Epoch}, out...)
}

// Spread gives every shard an owner, evenly, and moves as few as it can from where they
// are now. Pure: the same answer whatever the order of live. With nobody live it is empty.
func Spread(now map[kbroker.Shard]kbroker.Incarnation, live []kbroker.Incarnation) map[kbroker.Shard]kbroker.Incarnation {
	out := make(map[kbroker.Shard]kbroker.Incarnation, kbroker.Shards)
	if len(live) == 0 {
		return out
	}
	live = slices.Sorted(slices.Values(live))
	has := map[kbroker.Incarnation][]kbroker.Shard{}
	var free []kbroker.Shard
	for n := range kbroker.Shard(kbroker.Shards) {
		if i, ok := now[n]; ok && slices.Contains(live, i) {
			has[i] = append(has[i], n)
		} else {
			free = append(free, n)
		}
	}
	// Those that have most keep one more, where it does not come out even.
	byLoad := slices.Clone(live)
	slices.SortStableFunc(byLoad, func(a, b kbroker.Incarnation) int { return cmp.Compare(len(has[b]), len(has[a])) })
	share := map[kbroker.Incarnation]int{}
	for k, i := range byLoad {
		share[i] = kbroker.Shards / len(live)
		if k < kbroker.Shards%len(live) {
			share[i]++
		}
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
