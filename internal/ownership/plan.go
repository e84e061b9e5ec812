package ownership

import (
	"maps"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Batch is what an assigner has written. The driver puts the allocator's lease in front.
type Batch struct {
	Writes []kbroker.Write
	Shards []kbroker.Shard // that it is about: to be read again when it is not known what became of it
	Leases []kbroker.Incarnation
	Counts Counts
	// Again is after which time more moves may begin; 0: none waits for that.
	Again time.Duration
}

// Counts says what becomes of how many shards by a batch.
type Counts struct {
	Assigned int // had no owner
	Taken    int // from owners that are out
	Offered  int // a move begins
	Moved    int // and is over
	Kept     int // a move is called off
	Released int // placed objects, as somebody wants
}

// Add adds what another batch did.
func (c *Counts) Add(d Counts) {
	c.Assigned += d.Assigned
	c.Taken += d.Taken
	c.Offered += d.Offered
	c.Moved += d.Moved
	c.Kept += d.Kept
	c.Released += d.Released
}

// Plan is the next batch, given who is to own each shard; empty: there is nothing to do.
// It decides by what is known, and changes nothing of that, but that moves have begun: the
// outcome of the batch is seen like everything else. wanted may lack shards, and name incarnations that are out,
// or leave: those shards stay where they are, if they can.
//
// An epoch that is given to a shard is not below floor, the epoch of the allocator's lease:
// a rescue raises that one above all that was given in the store whose copy this is.
func (a *Assigner) Plan(now time.Duration, floor uint64, wanted map[kbroker.Shard]kbroker.Incarnation) Batch {
	if !a.complete {
		return Batch{}
	}
	p := planner{Assigner: a, now: now, floor: floor, revoked: map[kbroker.Incarnation]bool{}}
	a.pace.look(now)
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

// after is an epoch that a shard may have next, behind one that it had, or was offered. Of a
// placed object nothing may be stored any more of those that it had: each is above all that
// this allocator, and those before it, have given to any.
func (p *planner) after(n kbroker.Shard, epoch uint64) uint64 {
	if n.OfOne() && ruleNewEpochs {
		p.placed.count++
		return max(epoch+1, p.floor<<allocationBits+p.placed.count)
	}
	return max(epoch+1, p.floor)
}

// shard does what one shard needs; to is who is to have it, empty: nobody is known.
func (p *planner) shard(n kbroker.Shard, s *shardSeen, to kbroker.Incarnation) {
	switch {
	case s.Owner == "":
		if to != "" {
			p.Counts.Assigned++
			p.assign(n, s, Assignment{Owner: to, Epoch: p.after(n, s.Epoch)})
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
			p.assign(n, s, Assignment{Owner: to, Epoch: p.after(n, s.Epoch)}, s.Owner)
		}
	case to != "" && to != s.Owner && p.mayMove(s.Owner):
		p.moves++
		p.Counts.Offered++
		p.assign(n, s, Assignment{Owner: s.Owner, Epoch: s.Epoch, Next: to, NextEpoch: p.after(n, s.Epoch)})
	}
}

// mayMove reports whether one more shard of an owner may be moved now.
func (p *planner) mayMove(owner kbroker.Incarnation) bool {
	if l := p.leases[owner]; l != nil && l.Leaving {
		return p.moves < max(maxLeavingMoves, p.cfg.Moves)
	}
	if p.moves >= p.cfg.Moves {
		return false // the end of one is heard of
	}
	if !p.pace.take() {
		p.Again = p.pace.next()
		return false
	}
	return true
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
			p.assign(n, s, Assignment{Owner: elsewhere, Epoch: p.after(n, s.NextEpoch)}, out...)
		}
	case nextOut: // the owner keeps it, if it has not released it meanwhile
		p.cancel(n, s, s.Next)
	case left:
		p.Counts.Moved++
		p.assign(n, s, Assignment{Owner: s.Next, Epoch: s.NextEpoch})
	case ownerOut && !ruleForward && elsewhere != "":
		p.assign(n, s, Assignment{Owner: elsewhere, Epoch: p.after(n, s.Epoch)}, s.Owner)
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
	if next.Placed == nil {
		next.Placed = s.Placed
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
