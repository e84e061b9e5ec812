package ownership

import (
	"time"

	"github.com/kbroker/kbroker"
)

// begin loads the object, when there is a place for it.
func (x *object) begin() {
	o := x.owner()
	x.phase = cold
	if x.durability().Volatile {
		return // it appears
	}
	if o.loads >= maxLoads {
		o.waiting = append(o.waiting, x)
		return
	}
	o.loads++
	x.placed = true
	x.read()
}

func (x *object) read() {
	x.phase, x.load = loading, x.owner().next()
	x.owner().want(Load{x.id, x.load})
}

// leavePlace lets others be loaded.
func (x *object) leavePlace() {
	if !x.placed {
		return
	}
	o := x.owner()
	x.placed = false
	o.loads--
	for len(o.waiting) > 0 && o.loads < maxLoads {
		x := o.waiting[0]
		o.waiting = o.waiting[1:]
		if !x.gone {
			x.begin()
		}
	}
}

// Loaded is the answer to Load: the record at a revision, 0 if there is none. ok is false
// if it could not be read, which is tried again.
func (o *Owner) Loaded(now time.Duration, id kbroker.Object, number uint64, r Record, rev kbroker.Revision, ok bool) {
	x := o.object(id)
	if o.ended || x == nil || x.phase != loading || x.load != number {
		return
	}
	if o.look(now); o.ended {
		return
	}
	if !ok {
		x.backoff = min(max(2*x.backoff, retryLeast), retryMost)
		o.later(now+x.backoff, func(time.Duration) {
			if !x.gone && x.phase == loading && x.load == number {
				x.read()
			}
		})
		return
	}
	me := o.cfg.Incarnation
	if ruleEpochLoad && rev != 0 && (r.Epoch > x.shard.epoch || r.Epoch == x.shard.epoch && r.Owner != me) {
		x.shard.lost(now)
		return
	}
	away, was := o.away[id]
	delete(o.away, id)
	x.loadedAt, x.rec, x.rev = now, r, rev
	x.activation = o.next()
	o.figures.Activations++
	if !ruleClaim || was && rev != 0 && away == (putAway{x.shard.epoch, rev}) && r.Epoch == x.shard.epoch && r.Owner == me {
		x.activate(now)
		x.openOutbox(false)
		return
	}
	x.phase = claiming
	claim := r
	claim.Epoch, claim.Owner = x.shard.epoch, me
	o.committer(x).add(now, &item{x: x, activation: x.activation, next: claim, claim: true})
}

// activate has the object run what waits.
func (x *object) activate(now time.Duration) {
	x.leavePlace()
	x.owner().want(Activate{x.id, x.activation, x.rec})
	x.rec.State = nil
	x.phase, x.backoff = idle, 0
	x.run(now)
}
