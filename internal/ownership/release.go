package ownership

import (
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// A shard that is to go to another is served until its turn comes: nobody answers its calls
// from when its owner has it heard no more until the next one hears it, and releases are
// written one batch after another. So few are silent at a time, and each of them briefly.
const (
	// maxSilent bounds the shards that are being released at a time.
	maxSilent = 24
	// silentFor is how long one counts whose turns come to their end: those that take long do
	// not hold up the others. One whose release is under way counts until that is answered: while
	// the store is away no more fall silent.
	silentFor = 200 * time.Millisecond
)

// offered reports whether the shard's owner is to leave it to another.
func (s *shard) offered() bool {
	return s.assignment.Owner == s.owner.cfg.Incarnation && s.assignment.Next != ""
}

// room is how many more shards may fall silent.
func (o *Owner) room(now time.Duration) int {
	n := 0
	for _, s := range o.awake {
		if s.assignment.Next == Nobody {
			continue // nobody waits for it
		}
		if s.writing != nil || s.role == releasing && now-s.leaving < silentFor {
			n++
		}
	}
	return maxSilent - n
}

// releaseMore goes on with those that wait for their turn, at first with those that are idle.
func (o *Owner) releaseMore(now time.Duration) {
	room := o.room(now)
	var busy []*shard
	for _, s := range sorted(o.awake) {
		switch {
		case room <= 0:
			return
		case s.role != owning || !s.offered():
		case s.busy():
			busy = append(busy, s)
		default:
			s.settle(now)
			room--
		}
	}
	for _, s := range busy[:min(room, len(busy))] {
		s.settle(now)
	}
}

// giveUp writes the release of a shard that is at rest.
func (s *shard) giveUp(now time.Duration) {
	s.dropObjects()
	a := s.assignment
	w := kbroker.Write{
		Key: subjects.KeyRelease(s.number), Value: encode(Release{Epoch: s.epoch, To: a.Next, ToEpoch: a.NextEpoch}),
		Guard: subjects.KeyAssign(s.number), GuardAt: s.rev,
	}
	if !ruleReleaseGuard {
		w.Guard, w.GuardAt, w.Expected = "", 0, s.releaseRev
	}
	s.role, s.releasedEpoch = released, s.epoch
	s.writing, s.backoff = &WriteRelease{s.number, s.owner.next(), w}, retryLeast
	s.owner.want(*s.writing)
}

func (s *shard) releaseWritten(now time.Duration, w Written) {
	switch w {
	case Accepted:
		s.writing = nil
		s.wake()
		s.left(now)
		s.again(now)
		s.owner.releaseMore(now)
	case Refused:
		// The assignment has changed. If it still names this incarnation at this epoch,
		// the release is not there and never will be.
		s.writing = nil
		s.releasedEpoch--
		s.role, s.epoch = none, 0
		s.wake()
		s.ask(now)
	case NotKnown, NotAttempted:
		again, write := s.backoff, s.writing
		s.backoff = min(2*s.backoff, retryMost)
		s.owner.later(now+again, func(time.Duration) {
			if s.writing == write {
				s.owner.want(*write)
			}
		})
	}
}
