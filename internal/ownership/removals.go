package ownership

import (
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// removals are messages that were taken, on their way out of a stream.
type removals struct {
	wait    []kbroker.Write
	flight  []kbroker.Write
	number  uint64
	alone   int // of wait, those that go one at a time, as they were refused with others
	backoff time.Duration
}

// remove removes a message that was taken. That it was removed already, by a later owner,
// does no harm, nor that one is late: it is not needed any more.
func (o *Owner) remove(now time.Duration, id kbroker.Object, m Message) {
	stream := int(id.Shard()) % o.cfg.Streams
	r := &o.removals[stream]
	r.wait = append(r.wait, kbroker.Write{Key: subjects.KeyOut(id, m.Number), Expected: m.Revision})
	o.removeNext(now, stream)
}

func (o *Owner) removeNext(now time.Duration, stream int) {
	r := &o.removals[stream]
	if len(r.flight) > 0 || len(r.wait) == 0 || !o.Valid(now) {
		return
	}
	n := min(len(r.wait), maxRemovals)
	if r.alone > 0 {
		n = 1
		r.alone--
	}
	r.flight, r.wait = slices.Clone(r.wait[:n]), r.wait[n:]
	r.number, r.backoff = o.next(), retryLeast
	o.want(Remove{stream, r.number, r.flight})
}

// Removed is what became of a Remove.
func (o *Owner) Removed(now time.Duration, stream int, number uint64, w Written) {
	r := &o.removals[stream]
	if o.ended || r.number != number || len(r.flight) == 0 {
		return
	}
	switch w {
	case Accepted:
		r.flight = nil
	case Refused:
		if len(r.flight) > 1 { // which of them is gone already nobody says
			r.wait, r.alone = append(r.flight, r.wait...), r.alone+len(r.flight)
		}
		r.flight = nil
	case NotKnown, NotAttempted:
		again := r.backoff
		r.backoff = min(2*r.backoff, retryMost)
		o.later(now+again, func(time.Duration) {
			if r.number == number && len(r.flight) > 0 {
				o.want(Remove{stream, number, r.flight})
			}
		})
		return
	}
	o.removeNext(now, stream)
}
