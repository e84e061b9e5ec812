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
	// fullPause is the pause of a call that has all of its time left, where there is no room.
	// fullSoonest is the part of it that one has whose time is over.
	fullPause   = 400 * time.Millisecond
	fullSoonest = 0.1
	// fullForgotten is what is left of one refusal after five time constants.
	fullForgotten = 0.007
	// fullKnown is how many attempts have to be known of.
	fullKnown = 8
)

// fullness is how many attempts of calls of a method are refused, as instances are full. Safe for
// concurrent use.
type fullness struct {
	mu       sync.Mutex
	attempts float64 // answered or refused, of late
	refused  float64
	at       time.Time
}

// note takes that an attempt was answered, or refused.
func (f *fullness) note(refused bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fade(time.Now())
	f.attempts++
	if refused {
		f.refused++
	}
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
	return f.refused < fullForgotten
}

// pause is how long a call waits at least that was refused; left is the part of its time that it
// has: those whose time is over soon come again more often, so that they find room first.
func (f *fullness) pause(left float64) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fade(time.Now())
	if f.attempts < fullKnown {
		return 0
	}
	full := (f.refused/f.attempts - fullLeast) / (fullMost - fullLeast)
	return time.Duration(float64(fullPause) * min(max(full, 0), 1) * (fullSoonest + (1-fullSoonest)*left))
}

// fullnesses are those of a client's methods, by subject, of which some were refused lately. The zero
// value has none. Safe for concurrent use.
type fullnesses struct {
	some atomic.Int32
	mu   sync.Mutex
	of   map[string]*fullness
}

// answered notes that an attempt was answered.
func (s *fullnesses) answered(subject string) {
	if s.some.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.of[subject]; f != nil {
		f.note(false)
	}
	for k, f := range s.of { // also of methods that are not called any more
		if f.over() {
			delete(s.of, k)
		}
	}
	s.some.Store(int32(len(s.of)))
}

// refused notes that an attempt was refused, and what is known of its method.
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
	f.note(true)
	return f
}
