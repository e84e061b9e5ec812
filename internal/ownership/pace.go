package ownership

import "time"

// pace bounds moves by their number in a second: each costs its objects a time in which nobody
// serves them, their activation, and the callers a second attempt. It is a bucket of tokens. Not
// safe for concurrent use.
type pace struct {
	perS   float64
	most   float64 // that begin at once
	tokens float64
	at     time.Duration // when they were counted
}

// look counts what has come in.
func (p *pace) look(now time.Duration) {
	p.tokens, p.at = min(p.most, p.tokens+p.perS*(now-p.at).Seconds()), now
}

// take takes one, if there is one.
func (p *pace) take() bool {
	if p.tokens < 1 {
		return false
	}
	p.tokens--
	return true
}

// next is when there will be some again, from when it was looked at last: one batch for each would
// be many.
func (p *pace) next() time.Duration {
	return time.Duration((max(p.most/4, 1) - p.tokens) / p.perS * float64(time.Second))
}
