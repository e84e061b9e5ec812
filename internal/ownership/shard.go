package ownership

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

// role of an incarnation in a shard.
type role int

const (
	none      role = iota
	waiting        // named as next: waits for the release
	owning         // serves it
	releasing      // serves no more; what runs comes to its end, then the release is written
	released       // the release is written, or may be
)

func (r role) String() string {
	return [...]string{"none", "waiting", "owning", "releasing", "released"}[r]
}

// hearing is whether the requests of a shard are heard.
type hearing int

const (
	deaf hearing = iota
	tuning
	listening
	fading
)

func (h hearing) String() string { return [...]string{"deaf", "tuning", "listening", "fading"}[h] }

// shard is one that this incarnation owns, owned, or is offered.
type shard struct {
	owner  *Owner
	number kbroker.Shard
	role   role
	epoch  uint64

	assignment Assignment // as it was seen last, at rev
	rev        kbroker.Revision
	release    Release
	releaseRev kbroker.Revision

	hearing      hearing
	subscription uint64 // of the Listen that is the current one

	// releasedEpoch is the highest that was released, or may have been: never served again.
	releasedEpoch uint64
	writing       *WriteRelease // the release under way
	// taking is since when it is to be served, and is not heard yet, leaving since when it is
	// to be left; 0: it is not.
	taking, leaving time.Duration
	backoff         time.Duration
	asked           time.Duration // when the assignment was asked for last
	dropped         time.Duration // since when there is no such placed object; 0: there is, or never was

	objects map[kbroker.Object]*object
	// calls has all objects for which calls wait, and some for which none do any more.
	calls map[*object]bool
}

const (
	// askAgain is how often a shard is looked at whose state is not clear.
	askAgain = 250 * time.Millisecond
)

// assigned takes an assignment that is not older than the one that is known.
func (s *shard) assigned(now time.Duration, a Assignment, rev kbroker.Revision) {
	me := s.owner.cfg.Incarnation
	s.assignment, s.rev = a, rev
	switch {
	case a.Owner == me && a.Epoch <= s.releasedEpoch && s.writing != nil:
		return // what became of the release is not known yet
	case a.Owner == me && a.Epoch <= s.releasedEpoch:
		// It was released: whatever the record says, the next one may serve it.
	case a.Owner == me && (s.role == none || s.role == waiting || s.role == released || s.epoch != a.Epoch):
		s.reset()
		s.writing = nil // of an earlier epoch: it holds no more
		s.role, s.epoch, s.taking = owning, a.Epoch, max(now, 1)
	case a.Owner == me:
		// It goes on; whether there is a next now is looked at below.
	case a.Next == me:
		if s.role != waiting || s.epoch != a.NextEpoch {
			if s.role == owning && s.epoch == a.NextEpoch {
				break // the release was seen before this
			}
			s.reset()
			s.writing = nil // of an earlier epoch: the record that it is guarded by is gone
			s.role, s.epoch = waiting, a.NextEpoch
		}
	case s.writing != nil:
		return // likewise
	default:
		s.reset()
	}
	s.settle(now)
}

// reset drops what is served.
func (s *shard) reset() {
	s.dropObjects()
	s.role, s.epoch, s.taking, s.leaving = none, 0, 0, 0
	s.deafen()
}

// drop is for a lease that is lost.
func (s *shard) drop() {
	s.writing = nil
	s.reset()
}

func (s *shard) dropObjects() {
	for _, x := range s.sorted() {
		x.abandon()
	}
}

func (s *shard) sorted() []*object {
	return byID(maps.Values(s.objects))
}

// queued are the objects for which calls wait: mostly few of many.
func (s *shard) queued() []*object {
	maps.DeleteFunc(s.calls, func(x *object, _ bool) bool { return x.gone || len(x.queue) == 0 })
	return byID(maps.Keys(s.calls))
}

func byID(some iter.Seq[*object]) []*object {
	return slices.SortedFunc(some, func(a, b *object) int { return cmp.Compare(a.id.String(), b.id.String()) })
}

func (s *shard) listen() {
	if s.hearing == deaf {
		s.hearing, s.subscription = tuning, s.owner.next()
		s.owner.want(Listen{s.number, s.subscription})
	}
}

func (s *shard) deafen() {
	if s.hearing == tuning || s.hearing == listening {
		s.hearing = fading
		s.owner.want(Deafen{s.number, s.subscription})
	}
}

// settle does what the shard's state asks for.
func (s *shard) settle(now time.Duration) {
	o := s.owner
	if !o.Valid(now) {
		return
	}
	switch s.role {
	case waiting:
		if s.release.isOf(s.assignment) && s.assignment.Next == o.cfg.Incarnation {
			s.role, s.taking = owning, max(now, 1)
			s.listen()
		}
	case owning:
		if s.offered() && (s.assignment.Next == Nobody || o.room(now) > 0) {
			s.role, s.taking, s.leaving = releasing, 0, max(now, 1)
			s.deafen()
			s.settle(now)
			return
		}
		s.listen()
	case releasing:
		if s.assignment.Next == "" && s.writing == nil { // it was called off
			s.role, s.leaving = owning, 0
			for _, x := range s.sorted() {
				x.relay(now)
			}
			s.settle(now)
			return
		}
		s.deafen()
		s.shutGates()
		s.saveAll(now)
		if s.hearing == deaf && !s.busy() && s.writing == nil {
			s.giveUp(now)
		}
	case none, released:
	}
}

// volatile reports whether nothing of its objects is stored.
func (s *shard) volatile() bool {
	p := s.assignment.Placed
	return p != nil && s.owner.cfg.Durable[p.Kind].Volatile
}

// busy reports whether a call is in work or waits, or a write is under way.
func (s *shard) busy() bool {
	for _, x := range s.objects {
		if x.phase != idle || x.readers > 0 || x.gate != nil && x.gate.readers() > 0 || len(x.queue) > 0 || x.unsaved.is {
			return true
		}
	}
	return false
}

// again looks at an assignment that was seen while a release was under way.
func (s *shard) again(now time.Duration) { s.assigned(now, s.assignment, s.rev) }

// ask has the shard's records read.
func (s *shard) ask(now time.Duration) {
	s.asked = now
	s.owner.want(ReadShard{s.number})
}

// tick asks again where an announcement may have been lost.
func (s *shard) tick(now time.Duration) {
	for _, x := range s.queued() {
		x.tick(now)
	}
	if s.role == releasing {
		s.settle(now)
	}
	if s.unclear() && now-s.asked >= askAgain {
		s.ask(now)
	}
}

// wake has what is due of the shard looked at again.
func (s *shard) wake() { s.owner.awake[s.number] = s }

// quiet reports whether nothing is due of it until something happens.
func (s *shard) quiet() bool {
	if s.writing != nil || len(s.calls) > 0 || s.offered() {
		return false
	}
	return s.role == owning || s.role == none && !s.unclear() || s.role == released
}

// unclear reports whether it is not known what the shard is to this incarnation.
func (s *shard) unclear() bool {
	return s.role == waiting || s.role == none && s.assignment.Owner == s.owner.cfg.Incarnation && s.assignment.Epoch > s.releasedEpoch
}

// lost is for an object whose record shows that another incarnation owns it: whatever was
// believed, the shard is not ours until the assignment says so again.
func (s *shard) lost(now time.Duration) {
	s.dropObjects()
	s.role, s.epoch = none, 0
	s.wake()
	s.deafen()
	s.ask(now)
}

func (s *shard) String() string { return fmt.Sprintf("shard %d (%s, e%d)", s.number, s.role, s.epoch) }
