package ownership

import "time"

// Begin takes a call that begins here, as Arrived does one that was heard, and reports
// whether it did: an incarnation begins none of an object that it does not serve.
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
	s.call(now, c)
	return true
}
