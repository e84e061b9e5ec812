package sdk

import (
	"container/list"
	"time"

	"github.com/kbroker/kbroker"
)

// maxPutAway bounds the objects that are put away at a time.
const maxPutAway = 1000

// idling are the objects in memory of each kind, the one that was used last in front.
type idling map[*kind]*list.List

// use is when and how an object was used.
type use struct {
	object kbroker.Object
	at     time.Duration
	// What is counted since it came into memory, and its last error.
	turns    uint64
	rate     rate
	failure  string
	failedAt time.Duration
}

// use notes that an object is used.
func (i idling) use(a *active, now time.Duration) {
	all := i[a.kind]
	if all == nil {
		all = list.New()
		i[a.kind] = all
	}
	if a.used == nil {
		a.used = all.PushFront(&use{object: a.object, at: now})
		return
	}
	a.used.Value.(*use).at = now
	all.MoveToFront(a.used)
}

func (i idling) forget(a *active) {
	if a.used != nil {
		i[a.kind].Remove(a.used)
	}
}

// sweep puts away what was not used for long. What is busy counts as used.
func (k *keeper) sweep(now time.Duration) {
	k.quarantine.sweep(now)
	for kind, all := range k.idle {
		for range maxPutAway {
			last := all.Back()
			if last == nil || now-last.Value.(*use).at < kind.idle {
				break
			}
			object := last.Value.(*use).object
			if a := k.active[object]; a != nil && k.timers.has(object) {
				k.idle.use(a, now)
				continue
			}
			k.putAway(now, last)
		}
	}
}
