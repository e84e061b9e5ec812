package ownership

import (
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

// Waiting are the calls of an object that wait for their turn, in order.
func (o *Owner) Waiting(id kbroker.Object) []*Call {
	if x := o.object(id); x != nil {
		return slices.Clone(x.queue)
	}
	return nil
}

// Refuse answers a call that waits for its turn as Crossed, and reports whether it did: one
// that does not wait runs, or is over. As with every refusal nothing is said without a
// lease.
func (o *Owner) Refuse(now time.Duration, c *Call, reason string) bool {
	x := o.object(c.Object)
	if o.ended || x == nil {
		return false
	}
	i := slices.Index(x.queue, c)
	if i < 0 {
		return false
	}
	if o.look(now); o.ended {
		return false
	}
	x.setQueue(slices.Delete(slices.Clone(x.queue), i, i+1))
	x.answer(now, c, Reply{Outcome: Crossed, Reason: reason})
	x.run(now)
	return true
}
