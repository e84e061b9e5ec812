package sdk

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
)

// Bounds of timers.
const (
	// maxTimer is how late a timer may be due.
	maxTimer = 24 * time.Hour
	// timerAgain is how soon a turn is begun again that certainly, or maybe, did not run.
	timerAgain = time.Second
)

// Timer has a method of the object whose turn a context belongs to be called about d later,
// to the next 50 ms, by the object itself: a turn as any other, whose answer goes nowhere; an
// error is logged. There is one timer of each method: one that is set again takes its place.
// It is set when the turn has ended without an error, and is stored.
//
// Timers are in memory. They are not durable: those of an object are gone when it moves to
// another instance, when its owner ends, and when it is deleted; OnActivate is the place to
// set one that is always to be there. They outlive turns that fail. An object with a timer
// stays in memory until that is due, unless memory is short: then the timer loads it again.
//
// The error has code Invalid: there is no such method, d is more than a day, or in cannot be
// encoded. Outside of a turn it panics: that is a mistake in the program.
func Timer(ctx context.Context, d time.Duration, method string, in any) error {
	t := turnOf(ctx)
	if t == nil {
		panic("sdk: Timer outside of a turn")
	}
	data, err := encode(in)
	switch m := t.keeper.kinds[t.object.Kind].methods[method]; {
	case err != nil:
		return kbroker.Errorf(kbroker.Invalid, "the argument of a timer for %s: %v", method, err)
	case m == nil:
		return kbroker.Errorf(kbroker.Invalid, "a timer for %s, which objects of kind %s do not have", method, t.object.Kind)
	case d > maxTimer:
		return kbroker.Errorf(kbroker.Invalid, "a timer for %s is due in %v, at most %v are allowed", method, d, maxTimer).
			WithHint("timers are in memory; what is to happen that late is not one")
	default:
		t.set(timerSet{method: m, after: max(d, 0), data: data})
	}
	return nil
}

// StopTimer ends the timer of a method of the object whose turn a context belongs to, if
// there is one: when the turn has ended without an error, and is stored. A turn that it has
// begun already is not stopped. Outside of a turn it panics.
func StopTimer(ctx context.Context, method string) {
	t := turnOf(ctx)
	if t == nil {
		panic("sdk: StopTimer outside of a turn")
	}
	if m := t.keeper.kinds[t.object.Kind].methods[method]; m != nil {
		t.set(timerSet{method: m, stop: true})
	}
}

// OnActivate has fn be called with each T that is made of what is stored, before its first
// turn: when an object is called that is not in memory, and after a turn that failed. It is
// to fill what is not stored, and to set timers (one that is there already stays as it is);
// it must not change what is stored. Calls that it makes are made again with each T, under ids of their own. Its error is that of the
// call that waits for it, which is not run then. Call it before Run.
func OnActivate[T any](k *Kind[T], fn func(*T, context.Context) error) {
	k.kind.activated = func(ctx context.Context, value any) error { return fn(value.(*T), ctx) }
}

// timerSet is what a turn wants of a timer.
type timerSet struct {
	method *objectMethod
	stop   bool
	after  time.Duration
	data   []byte
}

// set notes a timer; fn may have goroutines of its own.
func (t *turn) set(s timerSet) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timers = append(t.timers, s)
}

// wanted are the timers that the turn has set.
func (t *turn) wanted() []timerSet {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.timers
}

// timer is one that waits, or whose turn is begun.
type timer struct {
	object  kbroker.Object
	method  *objectMethod
	data    []byte
	due     time.Duration
	at      int    // in the queue; -1: it is not there
	session string // of its calls
	number  uint64 // of the call
	root    root   // likewise, once it has been begun
}

// timers are those of an instance, the one that is due first in front.
type timers struct {
	queue  []*timer
	named  named[*timer] // by method
	number uint64
}

func newTimers() timers { return timers{named: named[*timer]{}} }

func (t *timers) Len() int           { return len(t.queue) }
func (t *timers) Less(i, j int) bool { return t.queue[i].due < t.queue[j].due }
func (t *timers) Swap(i, j int) {
	t.queue[i], t.queue[j] = t.queue[j], t.queue[i]
	t.queue[i].at, t.queue[j].at = i, j
}

func (t *timers) Push(x any) {
	x.(*timer).at = len(t.queue)
	t.queue = append(t.queue, x.(*timer))
}

func (t *timers) Pop() any {
	last := len(t.queue) - 1
	x := t.queue[last]
	t.queue[last] = nil
	t.queue, x.at = t.queue[:last], -1
	return x
}

// apply does what a turn wanted; keep: timers that are there are left alone.
func (t *timers) apply(now time.Duration, o kbroker.Object, i kbroker.Incarnation, sets []timerSet, keep bool) {
	for _, s := range sets {
		if keep && t.named.of(o)[s.method.name] != nil {
			continue
		}
		t.drop(o, s.method.name)
		if s.stop {
			continue
		}
		t.number++
		x := &timer{object: o, method: s.method, data: s.data, due: now + s.after, session: timerSession(i, o, s.method.name), number: t.number}
		t.named.put(o, s.method.name, x)
		heap.Push(t, x)
	}
}

// timerSession is that of the calls of a timer: each confirms those before it, so that the
// object has to know one of them.
func timerSession(i kbroker.Incarnation, o kbroker.Object, method string) string {
	sum := sha256.Sum256([]byte(string(i) + "\x00" + o.String() + "\x00" + method))
	return "timer-" + hex.EncodeToString(sum[:16])
}

// drop ends a timer.
func (t *timers) drop(o kbroker.Object, method string) {
	x := t.named.of(o)[method]
	if x == nil {
		return
	}
	if x.at >= 0 {
		heap.Remove(t, x.at)
	}
	t.named.drop(o, method)
}

// dropAll ends those of an object.
func (t *timers) dropAll(o kbroker.Object) {
	for method := range t.named.of(o) {
		t.drop(o, method)
	}
}

// release ends those of a shard.
func (t *timers) release(s kbroker.Shard) {
	for o := range t.named[s] {
		t.dropAll(o)
	}
}

// has reports whether an object has a timer that waits.
func (t *timers) has(o kbroker.Object) bool { return len(t.named.of(o)) > 0 }

// turnedWell is for a turn that has ended without an error, and is stored.
func (k *keeper) turnedWell(now time.Duration, o kbroker.Object, t *turn) {
	for _, event := range t.said() {
		if err := k.t.publish(event); err != nil {
			k.log.Warn("event not sent", "object", o, "err", err)
		}
	}
	if t.deleted.Load() {
		k.timers.dropAll(o)
		return
	}
	k.timers.apply(now, o, k.own.Incarnation, t.wanted(), false)
}

// dueWithin reports whether one is due in that time.
func (t *timers) dueWithin(now, within time.Duration) bool {
	return len(t.queue) > 0 && t.queue[0].due <= now+within
}

// fire begins the turns that are due.
func (k *keeper) fire(now time.Duration) {
	for len(k.timers.queue) > 0 && k.timers.queue[0].due <= now {
		x := heap.Pop(&k.timers).(*timer)
		id := x.session + ":" + strconv.FormatUint(x.number, 10)
		if x.root.id == "" {
			x.root = root{time.Now().UnixMicro(), id}
		}
		c := &heard{id: id, method: x.method, data: x.data, deadline: time.Now().Add(DefaultTimeout), root: x.root, timer: x}
		if !k.owner.Begin(now, &ownership.Call{
			Object: x.object, Session: x.session, Sequence: x.number, Hash: hashOf(x.method.name, x.data), Confirmed: x.number,
			ReadOnly: x.method.readOnly, Expires: now + DefaultTimeout, Data: c,
		}) {
			k.timers.drop(x.object, x.method.name)
		}
		k.settle(now)
	}
}

// fired is the end of a call that a timer has begun. One that did not run, or of which
// nobody knows, is begun again under its id, unless the timer was set anew: it takes effect
// once.
func (k *keeper) fired(now time.Duration, c *heard, o ownership.Outcome, e *kbroker.Error) {
	x := c.timer
	if k.timers.named.of(x.object)[x.method.name] != x {
		return
	}
	crossed := c.crossed && e != nil && e.Code == kbroker.Deadlock
	if crossed || o == ownership.Overloaded || o == ownership.TooLate || o == ownership.Unknown {
		x.due = now + timerAgain
		heap.Push(&k.timers, x)
		return
	}
	k.timers.drop(x.object, x.method.name)
	if e != nil {
		k.log.Warn("turn of a timer failed", "object", x.object, "method", x.method.name, "err", e)
	}
}
