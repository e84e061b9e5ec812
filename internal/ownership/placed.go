package ownership

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// allocationBits is how many placed objects an allocator can allocate under one epoch before
// its numbers are those of the next.
const allocationBits = 34

// placedSeen are the placed objects of an app, each a shard of its own. There may be many: what
// is to be done about some is found without a look at all.
type placedSeen struct {
	of      map[kbroker.Shard]*shardSeen
	on      map[kbroker.Incarnation]map[kbroker.Shard]bool // that they are on, or on their way to
	moving  map[kbroker.Shard]bool
	removed map[kbroker.Shard]time.Duration // since when there is no record
	count   uint64                          // of epochs that were given to new ones
}

func newPlacedSeen() placedSeen {
	return placedSeen{
		of: map[kbroker.Shard]*shardSeen{}, on: map[kbroker.Incarnation]map[kbroker.Shard]bool{},
		moving: map[kbroker.Shard]bool{}, removed: map[kbroker.Shard]time.Duration{},
	}
}

// saw takes another assignment of one.
func (p *placedSeen) saw(now time.Duration, n kbroker.Shard, was, is Assignment) {
	for _, i := range []kbroker.Incarnation{was.Owner, was.Next} {
		if delete(p.on[i], n); len(p.on[i]) == 0 {
			delete(p.on, i)
		}
	}
	for _, i := range []kbroker.Incarnation{is.Owner, is.Next} {
		if i == "" || i == Nobody {
			continue
		}
		if p.on[i] == nil {
			p.on[i] = map[kbroker.Shard]bool{}
		}
		p.on[i][n] = true
	}
	delete(p.moving, n)
	delete(p.removed, n)
	switch {
	case is.Next != "":
		p.moving[n] = true
	case is.Owner == "":
		p.removed[n] = now
	}
}

// forget drops what was removed for long: what is late is of then.
func (p *placedSeen) forget(before time.Duration) {
	for n, at := range p.removed {
		if at < before {
			delete(p.removed, n)
			delete(p.of, n)
		}
	}
}

// Placed is what is stored of a placed object; its Owner is empty if there is none.
func (a *Assigner) Placed(n kbroker.Shard) Assignment {
	if s := a.placed.of[n]; s != nil {
		return s.Assignment
	}
	return Assignment{}
}

// PlacedOn are the placed objects that are on an incarnation, or on their way to it, sorted.
func (a *Assigner) PlacedOn(i kbroker.Incarnation) []kbroker.Shard {
	return slices.Sorted(maps.Keys(a.placed.on[i]))
}

// CountOn is how many they are.
func (a *Assigner) CountOn(i kbroker.Incarnation) int { return len(a.placed.on[i]) }

// MovingFrom are the placed objects that an incarnation is to leave, sorted.
func (a *Assigner) MovingFrom(i kbroker.Incarnation) []kbroker.Shard {
	var all []kbroker.Shard
	for n := range a.placed.moving {
		if a.placed.of[n].Owner == i {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all
}

// AllPlaced are the placed objects that there are, in no order.
func (a *Assigner) AllPlaced() []kbroker.Shard {
	var all []kbroker.Shard
	for n, s := range a.placed.of {
		if s.Owner != "" {
			all = append(all, n)
		}
	}
	return all
}

// PlacedRecord is the record of one, as it was seen last.
func (a *Assigner) PlacedRecord(n kbroker.Shard) kbroker.Stored {
	s := a.shard(n)
	return kbroker.Stored{Key: subjects.KeyAssign(n), Revision: s.rev, Value: encode(s.Assignment)}
}

// HostOf is where an incarnation runs, by its lease.
func (a *Assigner) HostOf(i kbroker.Incarnation) kbroker.HostID {
	if l := a.leases[i]; l != nil {
		return l.Host
	}
	return ""
}

// Homeless reports whether a placed object needs another owner: who has it, or is to have it, is
// out, or leaves.
func (a *Assigner) Homeless(now time.Duration, n kbroker.Shard) bool {
	is := a.Placed(n)
	to := cmp.Or(is.Next, is.Owner)
	return to != "" && to != Nobody && !a.takes(now, to)
}

// Unplaced are the placed objects whose owner is out, or leaves, and those that move, sorted.
func (a *Assigner) Unplaced(now time.Duration) []kbroker.Shard {
	all := maps.Clone(a.placed.moving)
	for i, of := range a.placed.on {
		if !a.takes(now, i) {
			maps.Copy(all, of)
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// PlacedPlan is what is to become of a placed object.
type PlacedPlan struct {
	Shard kbroker.Shard
	To    kbroker.Incarnation // empty: nobody is known
	New   *Placed             // it is allocated, if it is not
	Gone  bool                // it is to be released
}

// PlanPlaced is the next batch for placed objects, as Plan is for shards.
func (a *Assigner) PlanPlaced(now time.Duration, floor uint64, plans []PlacedPlan) Batch {
	if !a.complete {
		return Batch{}
	}
	p := planner{Assigner: a, now: now, floor: floor, revoked: map[kbroker.Incarnation]bool{}, moves: len(a.placed.moving)}
	for _, x := range plans {
		if len(p.Writes)+maxShardWrites > maxBatchWrites {
			break
		}
		s, to := a.shard(x.Shard), x.To
		if !a.takes(now, to) {
			to = ""
		}
		switch {
		case s.Owner != "" && (s.Next == Nobody || s.Next == "" && x.Gone):
			p.gone(x.Shard, s)
		case s.Owner != "" && x.New == nil: // else it has a place by now
			p.shard(x.Shard, s, to)
		case s.Owner == "" && x.New != nil && to != "":
			p.Counts.Assigned++
			p.assign(x.Shard, s, Assignment{Owner: to, Epoch: p.after(x.Shard, s.Epoch), Placed: x.New})
		}
	}
	return p.Batch
}

// gone is a placed object that is to be released: its owner leaves it, and then its records are
// taken away. Its epochs do not begin again: those of an allocation are above all that were
// given before; see planner.after.
func (p *planner) gone(n kbroker.Shard, s *shardSeen) {
	ownerOut := p.out(p.now, s.Owner)
	switch {
	case ownerOut || s.Next == Nobody && s.release.isOf(s.Assignment):
		if ownerOut {
			p.revoke(s.Owner)
		}
		p.Counts.Released++
		p.Writes = append(p.Writes, kbroker.Write{Key: subjects.KeyAssign(n), Expected: s.rev})
		if s.releaseRev != 0 && s.release.Epoch != 0 {
			p.Writes = append(p.Writes, kbroker.Write{Key: subjects.KeyRelease(n), Expected: s.releaseRev})
		}
		p.Shards = append(p.Shards, n)
	case s.Next == "":
		p.assign(n, s, Assignment{Owner: s.Owner, Epoch: s.Epoch, Next: Nobody, NextEpoch: p.after(n, s.Epoch)})
	}
}
