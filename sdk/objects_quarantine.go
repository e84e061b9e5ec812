package sdk

import (
	"time"

	"github.com/kbroker/kbroker"
)

// Bounds of objects whose turns panic.
const (
	maxPanics      = 5 // within panicWindow; one more, and the object is in quarantine
	panicWindow    = time.Minute
	maxQuarantined = 10_000 // objects that are remembered
)

// quarantine are objects that this instance runs no more, as their turns have panicked too
// often: until another incarnation owns them.
type quarantine struct {
	panics map[kbroker.Object][]time.Duration // the times of the last ones, boottime
	in     map[kbroker.Object]int             // and how many it was put in quarantine for
}

func newQuarantine() quarantine {
	return quarantine{map[kbroker.Object][]time.Duration{}, map[kbroker.Object]int{}}
}

// panicked notes a panic of a turn.
func (q quarantine) panicked(now time.Duration, o kbroker.Object) {
	if len(q.panics) >= maxQuarantined && q.panics[o] == nil {
		return
	}
	q.panics[o] = append(recent(q.panics[o], now), now)
	if n := len(q.panics[o]); n > maxPanics {
		q.in[o] = n
		delete(q.panics, o)
	}
}

func recent(all []time.Duration, now time.Duration) []time.Duration {
	for len(all) > 0 && now-all[0] > panicWindow {
		all = all[1:]
	}
	return all
}

// refuse is why a call of an object is refused, or nil.
func (q quarantine) refuse(i *kbroker.InstanceFile, o kbroker.Object) *kbroker.Error {
	n := q.in[o]
	if n == 0 {
		return nil
	}
	return notRun(kbroker.Errorf(kbroker.Refused, "%s is in quarantine on %s: its turns have panicked %d times within %v", o, i.Instance, n, panicWindow).
		WithHint("the instance's log has the stacks; `kbroker objects release %s/%s` ends the quarantine", i.App, o))
}

// release ends the quarantine of a shard's objects.
func (q quarantine) release(s kbroker.Shard) {
	for o := range q.in {
		if o.Shard() == s {
			delete(q.in, o)
		}
	}
}

// sweep forgets panics that count no more.
func (q quarantine) sweep(now time.Duration) {
	for o, all := range q.panics {
		if len(recent(all, now)) == 0 {
			delete(q.panics, o)
		}
	}
}
