package sdk

import (
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
)

// Durability is when what a turn has done is stored; see Durable.
type Durability struct{ of ownership.Durability }

// Each, the default: before the call is answered. What was answered is never lost.
var Each = Durability{}

// None: never. Objects are in memory alone: they are gone when their owner ends, when they
// move to another instance, and when they are put away, for want of calls or of memory. A
// call that is sent again runs again, if that has happened in between.
var None = Durability{ownership.Durability{Volatile: true}}

// Interval: up to d after the call is answered, as soon as nothing is under way, the newest
// state alone; and before the object is put away, moves, or its instance leaves. If its
// owner dies, what was answered in the last d may be lost, with the knowledge that the
// calls were answered: one that is sent again then runs again. What was lost is always the
// end: no state is stored that leaves out an earlier turn.
func Interval(d time.Duration) Durability {
	return Durability{ownership.Durability{Interval: d}}
}

// maxInterval is how much later the state of an object may be stored: within the time in
// which calls are sent again.
const maxInterval = 30 * time.Second

// Durable has the objects of the kind be stored at another time than before each answer.
// Many updates of one object in a short time are then one write. What the cluster promises
// of objects (nothing that was answered is lost, each call takes effect once, reads show it)
// does not hold for such kinds when their owner dies; that there is one owner, who runs one
// turn at a time, does.
func Durable(d Durability) KindOption { return func(k *kind) { k.durable = d.of } }

// checkDurable reports what is wrong with it.
func (k *kind) checkDurable() error {
	if d := k.durable.Interval; d < 0 || d > maxInterval {
		return kbroker.Errorf(kbroker.Invalid, "kind %s is stored %v after the answer, want more than nothing and at most %v", k.name, d, maxInterval)
	}
	return nil
}

// durability is for people, of an object and in the metadata of a kind's methods.
func durability(d ownership.Durability) string {
	switch {
	case d.Volatile:
		return kbroker.ObjectNever
	case d.Interval > 0:
		return kbroker.ObjectInterval + d.Interval.String()
	}
	return kbroker.ObjectEach
}
