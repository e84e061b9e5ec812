package sdk

import (
	"testing"
	"testing/synctest"
	"time"
)

// With each answer that one goes on whose deadline is next, of those that can be answered in time.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		f := &fullness{at: began}
		waits := func(left time.Duration) *waiter {
			w := newWaiter(began.Add(left))
			f.wait(w)
			return w
		}
		given := func(w *waiter) bool {
			select {
			case <-w.turn():
				return true
			default:
				return false
			}
		}
		answered := func(n int) {
			for range n {
				f.refuse() // as many are refused as answered: none goes on more
				f.answered(100 * time.Millisecond)
			}
		}
		answered(40) // nobody waits: these are nobody's turns
		if f.takes < 99*time.Millisecond || f.takes > 100*time.Millisecond || f.turns >= 1 {
			t.Fatalf("an attempt takes about %v, %v turns are left", f.takes, f.turns)
		}
		third, first, late, second := waits(3*time.Second), waits(time.Second), waits(150*time.Millisecond), waits(2*time.Second)
		gone := waits(500 * time.Millisecond)
		f.leave(gone)
		for n, want := range []*waiter{first, second, third} {
			if answered(1); !given(want) {
				t.Errorf("the answer %d was not the turn of who was next", n+1)
			}
		}
		if given(late) || given(gone) || late.at >= 0 || len(f.waiters) > 0 {
			t.Error("one had a turn that was over before, or had left")
		}

		f.wait(first)
		answered(1)
		f.wait(first) // woken up by something else, it has its turn still
		if len(f.waiters) > 0 || !given(first) {
			t.Error("one that was given its turn waits for another one")
		}
		f.wait(first)
		answered(1)
		if f.leave(first); given(first) {
			t.Error("one that has gone on by itself has its turn still")
		}

		f.wait(first)
		f.wait(second)
		answered(1)
		if f.end(first); !given(second) {
			t.Error("the turn of one that has given up is nobody's")
		}

		var all []*waiter
		for range 50 {
			all = append(all, waits(time.Minute))
		}
		<-time.After(10 * fullOver) // nothing is refused any more
		for range 40 {
			f.answered(100 * time.Millisecond)
		}
		for n, w := range all {
			if !given(w) {
				t.Errorf("with 40 answers %d go on, want 50 where nothing is refused", n)
				break
			}
		}
	})
}

// What was known of a method may be forgotten while an attempt is under way: the call waits where
// others do from then on, and is taken out there alone.
func TestACallWaitsAtOnePlace(t *testing.T) {
	old, is := &fullness{at: time.Now()}, &fullness{at: time.Now()}
	c := &call{full: old, waiter: newWaiter(time.Now().Add(time.Second))}
	old.wait(c.waiter)
	other := newWaiter(time.Now().Add(time.Minute))
	is.wait(other)
	c.waitsAt(is)
	c.full.wait(c.waiter)
	if c.leave(); len(old.waiters) != 0 || len(is.waiters) != 1 || is.waiters[0] != other {
		t.Errorf("%d wait at the old place, %d at the new one, want the other call alone", len(old.waiters), len(is.waiters))
	}
}

// What wakes a call up that waits, and says nothing, does not have it go before its turn.
func TestACallThatWaitsGoesOnToWait(t *testing.T) {
	f := &fullness{at: time.Now()}
	for range 200 {
		f.refuse()
	}
	c := &call{timeout: DefaultTimeout, deadline: time.Now().Add(DefaultTimeout), full: f, paused: true}
	if pause, err := c.act(nil, keepWaiting, time.Now()); err != nil || pause < fullPauseMost/3 || len(f.waiters) != 1 {
		t.Errorf("it goes on after %v (%v), and %d wait; want it to wait", pause, err, len(f.waiters))
	}
}
