package sdk

import (
	"container/heap"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// windowFirst is how many calls of a method may be under way when its instances begin to
	// refuse, windowMost bounds that.
	windowFirst = 32
	windowMost  = 1 << 14
	// An answer adds windowGrows to a window that is full, a refusal takes windowShrinks away:
	// where instances are full twice as many attempts are refused as are answered. That many
	// tell the app's allocator that more instances are needed, for which a third is enough
	// (allocator, need); more would only keep these busy.
	windowGrows, windowShrinks = 0.04, 0.02
	// windowOpens is how long nothing was refused before a window grows by one with each
	// answer, as TCP does in its slow start.
	windowOpens = 100 * time.Millisecond
	// windowOver is how long nothing was refused, nor waits, when the calls of a method are
	// not bounded any more.
	windowOver = time.Second
	// stalls is how long nothing was answered or refused before one more goes on: those that
	// are under way may wait, through others, for one that waits here.
	stalls = 250 * time.Millisecond
	// admittedPause is the longest pause of a refused call that is one of those under way.
	admittedPause = 16 * time.Millisecond
)

// admission bounds the calls of one method that are under way while its instances refuse some
// as they are full: the others wait here, that with the next deadline is the first to go on.
// So a call that has waited does not meet full instances again and again while younger ones
// find room, and attempts that are refused do not take what answers need. The bound follows
// what is answered and refused: additive increase, additive decrease, which settles at a share
// of refusals (D. Chiu, R. Jain, Analysis of the Increase and Decrease Algorithms for
// Congestion Avoidance, 1989, on what it does between clients); the order is that of earliest
// deadline first (C. L. Liu, J. W. Layland, 1973). Safe for concurrent use.
type admission struct {
	mu      sync.Mutex
	window  float64
	under   int // way
	waiting ticketQueue
	refused time.Time // last
	moved   time.Time // when something was answered, refused or admitted last
}

// ticket is that of a call: in the queue, or under way.
type ticket struct {
	of       *admission
	deadline time.Time
	ready    chan struct{} // closed when the call is admitted
	at       int           // in the queue; -1: it is admitted
}

// enter admits a call, or has it wait.
func (a *admission) enter(deadline time.Time) *ticket {
	t := &ticket{of: a, deadline: deadline, ready: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	heap.Push(&a.waiting, t)
	a.admit()
	return t
}

// admit lets calls go on as far as the window allows it. The caller holds mu.
func (a *admission) admit() {
	for len(a.waiting) > 0 && float64(a.under) < a.window {
		t, _ := heap.Pop(&a.waiting).(*ticket)
		t.at = -1
		a.under++
		a.moved = time.Now()
		close(t.ready)
	}
}

// leave gives the place of a call up; it was answered, or was not.
func (t *ticket) leave(answered bool) {
	a := t.of
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.at >= 0 {
		heap.Remove(&a.waiting, t.at)
		return
	}
	a.under--
	if answered {
		a.moved = time.Now()
		switch full := float64(a.under+2) > a.window; {
		case !full: // what is not used says nothing about more
		case time.Since(a.refused) > windowOpens:
			a.window = min(a.window+1, windowMost)
		default:
			a.window = min(a.window+windowGrows, windowMost)
		}
	}
	a.admit()
}

// wait is said by a call that waits, now and then: one more goes on where nothing moves.
func (t *ticket) wait() {
	a := t.of
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.at >= 0 && time.Since(a.moved) >= stalls {
		a.window = float64(a.under + 1)
		a.admit()
	}
}

// refuse takes that an attempt was refused.
func (a *admission) refuse() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused = time.Now()
	a.moved = a.refused
	a.window = max(a.window-windowShrinks, 1)
}

// over reports whether nothing needs to be bounded any more.
func (a *admission) over() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.waiting) == 0 && time.Since(a.refused) > windowOver
}

// admissions are those of a client's methods, by subject. The zero value has none. Safe for
// concurrent use.
type admissions struct {
	some atomic.Int32
	mu   sync.Mutex
	of   map[string]*admission
}

// find is that of a method; nil: its calls are not bounded. What was given out before goes on
// to count until its calls are over.
func (s *admissions) find(subject string) *admission {
	if s.some.Load() == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.of[subject]
	if a != nil && a.over() {
		delete(s.of, subject)
		s.some.Store(int32(len(s.of)))
		return nil
	}
	return a
}

// refused is find after an attempt was refused: its calls are bounded from now on.
func (s *admissions) refused(subject string) *admission {
	s.mu.Lock()
	a := s.of[subject]
	if a == nil {
		if s.of == nil {
			s.of = map[string]*admission{}
		}
		a = &admission{window: windowFirst}
		s.of[subject] = a
		s.some.Store(int32(len(s.of)))
	}
	s.mu.Unlock()
	a.refuse()
	return a
}

// ticketQueue is a heap (container/heap) of tickets by deadline.
type ticketQueue []*ticket

func (q ticketQueue) Len() int           { return len(q) }
func (q ticketQueue) Less(i, j int) bool { return q[i].deadline.Before(q[j].deadline) }
func (q ticketQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

func (q *ticketQueue) Push(x any) {
	t, _ := x.(*ticket)
	t.at = len(*q)
	*q = append(*q, t)
}

func (q *ticketQueue) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return t
}
