package sdk

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// fullOver is the time constant of what is known of how many attempts are refused.
	fullOver = 500 * time.Millisecond
	// fullLeast is the share of refused attempts that comes about by chance: of 8 at a time that
	// are 0.7 busy one in ten is (Erlang's loss formula), and another instance has room. Where
	// fullMost are refused, there is no room.
	fullLeast, fullMost = 0.2, 0.8
	// fullPause is the part of its time for which a call pauses that has all of it left, where
	// there is no room. fullSoonest is the part of that for which one does whose time is over.
	fullPause   = 0.08
	fullSoonest = 0.1
	// fullPauseMost bounds fullPause of a call that has much time.
	fullPauseMost = 400 * time.Millisecond
	// fullTurn is the part of its time for which a call waits for its turn at most.
	fullTurn = 0.3
	// fullFlows is for how long after an answer the next one is waited for, as the next turn comes
	// with it: attempts beside those of turns would mostly be refused.
	fullFlows = 100 * time.Millisecond
	// fullForgotten is what is left of one refusal after five time constants.
	fullForgotten = 0.007
	// fullKnown is how many attempts have to be known of.
	fullKnown = 8
)

// fullness is what is known of a method whose instances are full: how many attempts of its calls are
// refused, and which of them wait. Each answer is the turn of the call with the next deadline. Where
// few answers come, as the client has few calls or they take long, pauses end before. Safe for
// concurrent use.
type fullness struct {
	mu       sync.Mutex
	attempts float64 // answered or refused, of late
	refused  float64
	at       time.Time
	takes    time.Duration // an attempt that is answered, about
	last     time.Time     // an attempt was answered
	waiters  waiters
	turns    float64 // of waiters, less than one
}

// refuse takes that an attempt was refused.
func (f *fullness) refuse() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fade(time.Now())
	f.attempts++
	f.refused++
}

// fade forgets what was long ago. The caller holds mu.
func (f *fullness) fade(now time.Time) {
	by := math.Exp(-now.Sub(f.at).Seconds() / fullOver.Seconds())
	f.attempts, f.refused, f.at = f.attempts*by, f.refused*by, now
}

// over reports whether nothing was refused for long.
func (f *fullness) over() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fade(time.Now())
	return f.refused < fullForgotten && len(f.waiters) == 0
}

// full is how full they are, 0 to 1. The caller holds mu, and has faded it.
func (f *fullness) full() float64 {
	if f.attempts < fullKnown {
		return 0
	}
	return min(max((f.refused/f.attempts-fullLeast)/(fullMost-fullLeast), 0), 1)
}

// crowded reports whether a call that comes is behind others.
func (f *fullness) crowded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fade(time.Now())
	return len(f.waiters) > 0 && f.full() > 0
}

// flows reports whether there is no room but that of turns, and these come, to a call with that
// deadline too.
func (f *fullness) flows(deadline time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.fade(now)
	return f.full() > 0 && now.Sub(f.last) < fullFlows && f.inTime(now, deadline)
}

// pause is how long a call with that time, and that part of it left, waits before it comes again
// without a turn. Those whose time is over soon do so more often, where no turns come; where they
// do, it is as long as all who wait need for theirs.
func (f *fullness) pause(timeout time.Duration, left float64) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fade(time.Now())
	full := f.full()
	if full == 0 {
		return 0
	}
	most := min(fullPause*timeout.Seconds(), fullPauseMost.Seconds())
	p := most * full * (fullSoonest + (1-fullSoonest)*left)
	if answered := f.attempts - f.refused; answered >= 1 {
		perS := answered / fullOver.Seconds()
		p = max(p, min(float64(len(f.waiters))/perS, fullTurn*timeout.Seconds()))
	}
	return time.Duration(p * float64(time.Second))
}

// fullnesses are those of a client's methods, by subject, of which some were refused lately. The zero
// value has none. Safe for concurrent use.
type fullnesses struct {
	some atomic.Int32
	mu   sync.Mutex
	of   map[string]*fullness
}

// answered notes that an attempt was answered, after a time.
func (s *fullnesses) answered(subject string, took time.Duration) {
	if s.some.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.of[subject]; f != nil {
		f.answered(took)
	}
	for k, f := range s.of { // also of methods that are not called any more
		if f.over() {
			delete(s.of, k)
		}
	}
	s.some.Store(int32(len(s.of)))
}

// refused notes that an attempt was refused, and returns what is known of its method.
func (s *fullnesses) refused(subject string) *fullness {
	s.mu.Lock()
	f := s.of[subject]
	if f == nil {
		for k, old := range s.of {
			if old.over() {
				delete(s.of, k)
			}
		}
		if s.of == nil {
			s.of = map[string]*fullness{}
		}
		f = &fullness{at: time.Now()}
		s.of[subject] = f
		s.some.Store(int32(len(s.of)))
	}
	s.mu.Unlock()
	f.refuse()
	return f
}

// crowded is what is known of a method of which a call that comes is behind others; nil: it is not.
func (s *fullnesses) crowded(subject string) *fullness {
	if s.some.Load() == 0 {
		return nil
	}
	s.mu.Lock()
	f := s.of[subject]
	s.mu.Unlock()
	if f == nil || !f.crowded() {
		return nil
	}
	return f
}
