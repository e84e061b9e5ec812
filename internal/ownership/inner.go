package ownership

import "time"

// Begin takes a call that begins here, as Arrived does one that was heard, and reports
// whether it did: an incarnation begins none of an object that it does not serve. One that
// waits for most of the window is TooLate, if it does not expire before: it did not run, and
// may be begun anew.
func (o *Owner) Begin(now time.Duration, c *Call) bool {
	if o.ended {
		return false
	}
	if o.look(now); o.ended {
		return false
	}
	s := o.shards[c.Object.Shard()]
	if s == nil || s.role != owning {
		return false
	}
	s.begin(now, c)
	return true
}

// begin takes a call that begins here. It waits here alone, so that its age says nothing of
// what it did: it is TooLate before it would be Expired, of which who began it concludes that
// it has taken effect.
func (s *shard) begin(now time.Duration, c *Call) {
	times := s.owner.cfg.Times
	known := now + times.Window - times.WindowMargin
	if ruleTooLate && (c.Expires == 0 || c.Expires > known) {
		c.Expires = known
	}
	s.call(now, c)
}
