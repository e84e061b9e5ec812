package ownership

import (
	"time"
)

// Durability is when what the turns of a kind do is stored. The zero value: before it is
// answered.
type Durability struct {
	// Interval, if not 0: it is answered at once, and stored so much later at most, as soon
	// as nothing is under way; and before the object is put away, its shard released, or its
	// owner leaves. What was answered and not stored is lost with the owner: its state and
	// that it is known, both; so a call that is sent again then runs again. Turns with Writes
	// are stored before they are answered.
	Interval time.Duration
	// Volatile: it is never stored, nor is the object loaded: it begins anew with each owner
	// and each time that it comes into memory. Its turns must not have Writes.
	Volatile bool
}

// durability is that of the object.
func (x *object) durability() Durability { return x.owner().cfg.Durable[x.id.Kind] }

// unsaved is what an object has to store that was answered already.
type unsaved struct {
	is    bool
	due   time.Duration
	state []byte // of what is never stored as well
	away  bool   // it is to be put away then
}

// appear is for an object that is never stored: there is nothing to load.
func (x *object) appear(now time.Duration) {
	if !x.durability().Volatile || x.phase != cold {
		return
	}
	x.loadedAt, x.activation = now, x.owner().next()
	x.owner().figures.Activations++
	x.activate(now)
	x.out.known = true
}

// answersEarly reports whether a turn is answered before it is stored.
func (x *object) answersEarly(t Turn) bool {
	d := x.durability()
	return d.Volatile || d.Interval > 0 && len(t.Writes)+len(t.After)+len(t.Sends) == 0 && !x.running.leavesMark() && !x.running.Linearizable && !x.owner().lease.Leaving
}

// keep ends a turn that is stored later, or never.
func (x *object) keep(now time.Duration, next Record, reply Reply) {
	c, d := x.running, x.durability()
	if !d.Volatile && !x.unsaved.is {
		x.unsaved = unsaved{is: true, due: now + d.Interval}
		x.owner().later(x.unsaved.due, x.run)
	}
	x.unsaved.state = next.State
	x.rec, x.loadedAt = next, now
	x.rec.State = nil
	x.phase, x.running = idle, nil
	x.answer(now, c, reply)
	x.run(now)
}

// takeBack has an object go on as it was before a turn that failed: as it is stored, or as
// it was answered since.
func (x *object) takeBack(now time.Duration) {
	if !x.unsaved.is && !x.durability().Volatile {
		x.reload(now, Unknown, "")
		return
	}
	o := x.owner()
	o.want(Put{x.id, x.activation})
	x.activation = o.next()
	x.rec.State = x.unsaved.state
	x.activate(now)
}

// save has what is not stored be so, and reports whether there was something.
func (x *object) save(now time.Duration) bool {
	if !x.unsaved.is || x.phase != idle || x.gone {
		return false
	}
	next := x.rec
	next.State, next.Age = x.unsaved.state, x.age(now)
	next.Epoch, next.Owner = x.shard.epoch, x.owner().cfg.Incarnation
	x.unsaved = unsaved{away: x.unsaved.away}
	x.phase = committing
	x.owner().committer(x).add(now, &item{x: x, activation: x.activation, next: next})
	return true
}

// saved is the end of it.
func (x *object) saved(now time.Duration) {
	away := x.unsaved.away && !x.unsaved.is
	x.unsaved.away = false
	x.run(now)
	if away {
		x.owner().PutAway(x.id)
	}
}

// saveAll is for a shard that is to be released, and for an owner that leaves.
func (s *shard) saveAll(now time.Duration) {
	for _, x := range s.unsaved() {
		x.save(now)
	}
}

func (s *shard) unsaved() (all []*object) {
	if len(s.owner.cfg.Durable) == 0 {
		return nil
	}
	for _, x := range s.sorted() {
		if x.unsaved.is {
			all = append(all, x)
		}
	}
	return all
}
