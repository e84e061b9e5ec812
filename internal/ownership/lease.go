package ownership

import (
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// end ends the incarnation if its term is over.
func (o *Owner) end(now time.Duration) {
	if o.term.over(now) {
		o.lose("the lease was not renewed in time")
	}
}

// look does so before a call is taken, or an object loaded; lookBack before what follows
// from what was done.
func (o *Owner) look(now time.Duration) {
	if ruleTurnLease {
		o.end(now)
	}
}

func (o *Owner) lookBack(now time.Duration) {
	if ruleReplyLease {
		o.end(now)
	}
}

// lose ends everything: the incarnation owns nothing any more.
func (o *Owner) lose(reason string) {
	o.term.lost = true
	for _, s := range o.sorted() {
		s.drop()
	}
	o.want(Over{reason})
	o.ended = true
}

// Leave says, by the lease, that the incarnation is to leave: the allocator moves what it
// owns to others, and gives it nothing more. It serves until then; when it owns nothing it
// may end. It may be called again.
func (o *Owner) Leave(now time.Duration) {
	if o.ended {
		return
	}
	o.lease.Leaving = true
	for _, s := range o.sorted() {
		s.saveAll(now)
	}
	o.tellLeaving(now)
}

// tellLeaving renews at once for as long as the lease that is stored does not say that the
// incarnation leaves; behind what is under way.
func (o *Owner) tellLeaving(now time.Duration) {
	if o.ended || !o.begun || !o.lease.Leaving || o.told || o.sent != 0 || o.reading != 0 {
		return
	}
	o.lease.Number++
	o.renew(now)
}

// patience is how long an attempt to renew is waited for before it is made again: the second one
// soon, as the first may be lost with a core, later ones half as often. What is only slow gets
// slower by all of them.
func (o *Owner) patience() time.Duration {
	if o.attempts > 1 {
		return 2 * o.cfg.Times.RenewAttempt
	}
	return o.cfg.Times.RenewAttempt
}

func (o *Owner) renew(now time.Duration) {
	o.begun = true
	o.attempts++
	o.sent = max(now, 1)
	if o.lease.Leaving && o.leaving == 0 {
		o.leaving = o.sent
	}
	if _, ok := o.renewal[o.lease.Number]; !ok {
		o.renewal[o.lease.Number] = now
	}
	o.want(Renew{kbroker.Write{Key: subjects.KeyLease(o.cfg.Incarnation), Expected: o.rev, Value: encode(o.lease)}, now})
}

func (o *Owner) readLease(now time.Duration) {
	o.reading = max(now, 1)
	o.want(ReadLease{now})
}

// LeaseWritten is what became of a Renew.
func (o *Owner) LeaseWritten(now, sent time.Duration, w Written, rev kbroker.Revision) {
	if o.ended {
		return
	}
	if o.look(now); o.ended {
		return
	}
	switch w {
	case Accepted:
		if rev <= o.rev {
			return
		}
		o.rev, o.known = rev, now
		o.sent, o.attempts, o.reading = 0, 0, 0
		o.told = o.told || o.leaving != 0 && sent >= o.leaving
		o.accept(now, sent)
		o.tellLeaving(now)
	case Refused:
		if sent >= o.known { // else it was sent on a revision that was left behind since
			o.readLease(now) // an earlier attempt, whose answer was lost, or a revocation
		}
	case NotKnown, NotAttempted: // Tick tries again
	}
}

func (o *Owner) accept(now, sent time.Duration) {
	fresh := !o.term.held
	o.term.accepted(sent, now)
	clear(o.renewal)
	if fresh {
		for _, s := range o.sorted() {
			s.settle(now)
		}
	}
}

// LeaseRead is what a leader read of the own lease has found; revision 0: there is none.
func (o *Owner) LeaseRead(now time.Duration, l Lease, rev kbroker.Revision) {
	if o.ended || o.reading == 0 {
		return
	}
	if o.look(now); o.ended || rev < o.rev {
		return
	}
	o.reading = 0
	if l.Revoked {
		o.lose("the lease was revoked")
		return
	}
	if sent, ok := o.renewal[l.Number]; rev > o.rev && ok && l.Incarnation == o.cfg.Incarnation {
		o.rev, o.known, o.told = rev, now, l.Leaving
		o.sent, o.attempts = 0, 0
		o.accept(now, sent) // it was accepted, as it is there
		o.tellLeaving(now)
		return
	}
	o.rev, o.known = rev, now
	o.renew(now)
}
