package sdk

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

const (
	// turnsMore is how many more calls than were answered go on, where less than turnsWhile of the
	// attempts are refused: instances that come are found so.
	turnsMore  = 0.5
	turnsWhile = 0.5
	// turnsKept is the part of the calls that are refused at their turn which keep it: they go again
	// within the time that an attempt takes, at random. What is answered at one time would be refused
	// at one time otherwise, and instances idle in between. With turnsMore they become more until
	// turnsWhile of the attempts are refused, where there are enough.
	turnsKept = 0.75
	// turnsSpread bounds that time: about a way there and back on a busy machine.
	turnsSpread = 8 * time.Millisecond
	// tooLate is how often as long as an attempt takes a call needs, to be answered in its time.
	tooLate = 2
	// takesWeight is how much the latest answer counts in how long an attempt takes.
	takesWeight = 1.0 / 8
)

// waiter is a call that was refused, and waits until another one is answered. Guarded by mu of its
// fullness.
type waiter struct {
	deadline time.Time
	at       int           // in waiters; -1: it is not there
	comes    chan struct{} // one at most, once it was taken out of them
}

func newWaiter(deadline time.Time) *waiter {
	return &waiter{deadline: deadline, at: -1, comes: make(chan struct{}, 1)}
}

// turn is when the call may go on; never, of one that does not wait.
func (w *waiter) turn() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.comes
}

// waiters is a heap, the next deadline first: of several to whom something is due that is the order
// in which all are in time, if they can be (Jackson's rule).
type waiters []*waiter

func (w waiters) Len() int           { return len(w) }
func (w waiters) Less(i, j int) bool { return w[i].deadline.Before(w[j].deadline) }

func (w waiters) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].at, w[j].at = i, j
}

func (w *waiters) Push(x any) {
	last := x.(*waiter)
	last.at = len(*w)
	*w = append(*w, last)
}

func (w *waiters) Pop() any {
	n := len(*w) - 1
	last := (*w)[n]
	(*w)[n], *w = nil, (*w)[:n]
	last.at = -1
	return last
}

// wait has a call wait for its turn, unless it was just given one.
func (f *fullness) wait(w *waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.at < 0 && len(w.comes) == 0 {
		heap.Push(&f.waiters, w)
	}
}

// leave has a call wait no more, as it goes on.
func (f *fullness) leave(w *waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out(w)
}

// end has a call wait no more, as it is over: a turn that it was given and has not used is the next
// one's.
func (f *fullness) end(w *waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.out(w) {
		f.next(time.Now())
	}
}

// out takes a call out of those that wait, and reports whether it was given a turn that it has not
// used. The caller holds mu.
func (f *fullness) out(w *waiter) (unused bool) {
	if w.at >= 0 {
		heap.Remove(&f.waiters, w.at)
	}
	select {
	case <-w.comes:
		return true
	default:
		return false
	}
}

// answered takes that an attempt was answered, after a time: there is room for another one.
func (f *fullness) answered(took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.fade(now)
	f.attempts, f.last = f.attempts+1, now
	f.takes += time.Duration(takesWeight * float64(took-f.takes))
	if f.turns++; f.refused < turnsWhile*f.attempts {
		f.turns += turnsMore
	}
	for ; f.turns >= 1; f.turns-- {
		f.next(now)
	}
}

// kept is after which time a call that was refused at its turn goes again; false: that turn is over.
func (f *fullness) kept(deadline time.Time) (after time.Duration, kept bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rand.Float64() >= turnsKept || !f.inTime(time.Now(), deadline) {
		return 0, false
	}
	return time.Duration(rand.Float64() * float64(min(f.takes, turnsSpread))), true
}

// inTime reports whether a call with that deadline would be answered in its time, if it went on now.
// The caller holds mu.
func (f *fullness) inTime(now, deadline time.Time) bool { return deadline.Sub(now) >= tooLate*f.takes }

// next has one call go on. Those go by themselves that would hardly be answered in their time:
// they would take the room of those who are. The caller holds mu.
func (f *fullness) next(now time.Time) {
	for len(f.waiters) > 0 {
		w := heap.Pop(&f.waiters).(*waiter)
		if f.inTime(now, w.deadline) {
			w.comes <- struct{}{}
			return
		}
	}
}
