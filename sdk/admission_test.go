package sdk

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// crowd are instances of a service of which each runs bound requests at a time, 20 ms each; a
// request comes to any of them.
type crowd struct {
	end   *busEnd
	bound int

	mu      sync.Mutex
	busy    []int
	rand    *rand.Rand
	ran     int
	refused int
}

func (s *crowd) take(m *nats.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.rand.IntN(len(s.busy))
	if s.busy[n] == s.bound {
		s.refused++
		e := notRun(kbroker.Errorf(kbroker.Overloaded, "it is full"))
		_ = s.end.publish(errorReply(m.Reply, nats.Header{}, e))
		return
	}
	s.busy[n]++
	reply := m.Reply
	time.AfterFunc(20*time.Millisecond, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ran++
		s.busy[n]--
		_ = s.end.publish(&nats.Msg{Subject: reply, Header: nats.Header{}, Data: []byte(`"ok"`)})
	})
}

func (s *crowd) grow(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = append(s.busy, make([]int, n)...)
}

// newCrowd is a crowd of n, and a client of it.
func newCrowd(t *testing.T, n int, seed uint64) (*crowd, *Client) {
	t.Helper()
	b := newBus()
	s := &crowd{bound: 8, busy: make([]int, n), rand: rand.New(rand.NewPCG(seed, 1))}
	s.end = b.connect(connEvents{connected: func() {}, closed: func() {}})
	if _, err := s.end.subscribe(subjects.Method("echo", "echo", "m"), subjects.QueueService, s.take); err != nil {
		t.Fatal(err)
	}
	client, err := Dial(t.Context(), on(b, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return s, client
}

// TestWhatIsRefusedIsServedInItsTurn: two instances have half of what comes for 2.5 s, then
// there are four. Nothing fails, nothing waits for much longer than that takes, and there are
// not many more attempts than calls.
func TestWhatIsRefusedIsServedInItsTurn(t *testing.T) {
	for seed := range uint64(5) {
		synctest.Test(t, func(t *testing.T) {
			s, client := newCrowd(t, 2, seed)
			var calls sync.WaitGroup
			var failed, all atomic.Int64
			var slowest atomic.Int64
			call := func() {
				began := time.Now()
				all.Add(1)
				if _, err := Call[string](context.Background(), client.Service("echo"), "m", nil); err != nil {
					failed.Add(1)
				}
				if took := int64(time.Since(began)); took > slowest.Load() {
					slowest.Store(took)
				}
			}
			at := func(perS int, lasts time.Duration) {
				for range int(lasts.Seconds() * float64(perS)) {
					calls.Go(call)
					<-time.After(time.Second / time.Duration(perS))
				}
			}
			at(530, time.Second)
			before := s.refused
			at(1060, 2500*time.Millisecond)
			s.grow(2)
			at(1060, 5*time.Second)
			calls.Wait()
			t.Logf("seed %d: %d calls, %d failed, %d refused (%d of them before), slowest %v", seed, all.Load(), failed.Load(), s.refused, before, time.Duration(slowest.Load()))
			if failed.Load() > 0 || time.Duration(slowest.Load()) > 2*time.Second || s.refused > 2*int(all.Load()) {
				t.Errorf("of %d calls %d failed, %d attempts were refused, the slowest took %v", all.Load(), failed.Load(), s.refused, time.Duration(slowest.Load()))
			}
		})
	}
}

// TestAnAdmission: whatever comes and goes, no more are admitted than the window allows, those
// first whose deadlines are next, and nobody waits while there is room.
func TestAnAdmission(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := &admission{window: float64(rapid.IntRange(1, 5).Draw(t, "window")), refused: time.Now(), moved: time.Now()}
		var all []*ticket
		is := func(k *ticket) bool {
			select {
			case <-k.ready:
				return true
			default:
				return false
			}
		}
		began := time.Now()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			before := a.under
			switch step := rapid.IntRange(0, 3).Draw(t, "step"); {
			case step < 2:
				all = append(all, a.enter(began.Add(time.Duration(rapid.IntRange(1, 1000).Draw(t, "deadline"))*time.Hour)))
			case step == 2 && len(all) > 0:
				n := rapid.IntRange(0, len(all)-1).Draw(t, "who")
				all[n].leave(rapid.Bool().Draw(t, "answered"))
				all = slices.Delete(all, n, n+1)
			case step == 3:
				a.refuse()
			}
			under, last, first := 0, time.Time{}, time.Time{}
			for _, k := range all {
				switch {
				case is(k):
					under++
					if last.Before(k.deadline) {
						last = k.deadline
					}
				case first.IsZero() || k.deadline.Before(first):
					first = k.deadline
				}
			}
			if under != a.under || len(all) != under+len(a.waiting) {
				t.Fatalf("%d are under way and %d wait, it says %d and %d", under, len(all)-under, a.under, len(a.waiting))
			}
			if under > before && float64(under) > a.window+1 {
				t.Errorf("%d are admitted, the window is %.2f", under, a.window)
			}
			if len(a.waiting) > 0 && float64(under) < a.window && under <= before {
				t.Errorf("%d wait, %d are under way, the window is %.2f", len(a.waiting), under, a.window)
			}
			if !first.IsZero() && a.waiting[0].deadline != first {
				t.Errorf("the next one is that of %v, want %v", a.waiting[0].deadline, first)
			}
		}
		for _, k := range all {
			k.leave(false)
		}
		if a.under != 0 || len(a.waiting) != 0 {
			t.Errorf("%d are left under way, %d wait", a.under, len(a.waiting))
		}
	})
}

// Calls that hold all places may wait, through others, for one that waits for a place: it is
// not kept from it.
func TestACallThatOthersWaitForGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := newCrowd(t, 1, 1)
		a := client.admissions.refused(subjects.Method("echo", "echo", "m"))
		a.window = 1
		outer := a.enter(time.Now().Add(time.Second))
		began := time.Now()
		if _, err := Call[string](t.Context(), client.Service("echo"), "m", nil); err != nil || time.Since(began) > 2*stalls {
			t.Errorf("it ran after %v: %v", time.Since(began), err)
		}
		if outer.leave(true); s.ran != 1 || a.under != 0 {
			t.Errorf("%d ran, %d are left under way", s.ran, a.under)
		}
	})
}

// A call whose turn does not come says why, and has not run; one that is cancelled leaves, and
// when nothing is refused any more calls are not bounded.
func TestATurnThatDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := newCrowd(t, 1, 1)
		a := client.admissions.refused(subjects.Method("echo", "echo", "m"))
		a.window = 1
		outer := a.enter(time.Now())
		_, err := Call[string](t.Context(), client.Service("echo"), "m", nil, Timeout(stalls/2))
		wantError(t, err, kbroker.Overloaded, kbroker.ExecutedNo)
		if kbroker.AsError(err).Hint == "" || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it says %v, without a hint", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), stalls/2)
		defer cancel()
		if _, err = Call[string](ctx, client.Service("echo"), "m", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it was given up with %v", err)
		}
		if outer.leave(false); len(a.waiting) > 0 || a.under > 0 || s.ran > 0 {
			t.Errorf("%d wait, %d are under way, %d ran", len(a.waiting), a.under, s.ran)
		}
		<-time.After(2 * windowOver)
		if client.admissions.find(subjects.Method("echo", "echo", "m")) != nil || client.admissions.some.Load() != 0 {
			t.Error("calls are bounded a second after the last refusal")
		}
	})
}
