package sdk

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// setting is what these tests ask an account for: a timer for deposit.
type setting struct {
	After  time.Duration
	Cents  int64
	Stop   bool
	Fail   bool
	Delete bool
	Method string
}

func timing(k *Kind[account]) {
	Method(k, "set", func(_ *account, ctx context.Context, in setting) (string, error) {
		if in.Stop {
			StopTimer(ctx, "deposit")
		} else if err := Timer(ctx, in.After, in.Method, in.Cents); err != nil {
			return "", err
		}
		if in.Delete {
			Delete(ctx)
		}
		if in.Fail {
			return "", Errorf("no", "not now")
		}
		return "", nil
	})
}

func (c *Client) set(t *testing.T, id string, in setting) error {
	t.Helper()
	if in.Method == "" {
		in.Method = "deposit"
	}
	_, err := Call[string](within(t, 5*time.Second), c.Object("bank/account:"+id), "set", in)
	return err
}

func (c *Client) reaches(t *testing.T, id string, cents int64) {
	t.Helper()
	wait.Until(t, patience, func() error {
		if got := c.balance(t, id); got != cents {
			return fmt.Errorf("%s has %d cents, want %d", id, got, cents)
		}
		return nil
	})
}

func TestATimerIsATurnLater(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"), acc("3"), acc("4"))
	start(t, bank(s.URL, "a", timing, IdleAfter(100*time.Millisecond)))
	c := dial(t, s.URL)
	must := func(id string, in setting) {
		t.Helper()
		if err := c.set(t, id, in); err != nil {
			t.Fatalf("set %+v: %v", in, err)
		}
	}
	began := time.Now()
	must("1", setting{After: 400 * time.Millisecond, Cents: 5}) // longer than it stays in memory without one
	// Of these none comes: one is stopped, one takes the place of another, one is of a turn
	// that fails, one of an object that is deleted.
	must("2", setting{After: 50 * time.Millisecond, Cents: 100})
	must("2", setting{Stop: true})
	must("3", setting{After: 100 * time.Millisecond, Cents: 100})
	must("3", setting{After: 200 * time.Millisecond, Cents: 1})
	wantError(t, c.set(t, "3", setting{After: 0, Cents: 1000, Fail: true}), "no", "yes")
	must("4", setting{After: 100 * time.Millisecond, Cents: 100})
	must("4", setting{After: 100 * time.Millisecond, Cents: 100, Delete: true})
	for _, in := range []setting{{Method: "nothing"}, {After: 25 * time.Hour}} {
		wantError(t, c.set(t, "2", in), Invalid, "yes")
	}
	c.reaches(t, "1", 5)
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("a timer of 400 ms came after %v", took)
	}
	for id, want := range map[string]int64{"1": 5, "2": 0, "3": 1, "4": 0} {
		if got := c.balance(t, id); got != want {
			t.Errorf("%s has %d cents, want %d", id, got, want)
		}
	}
	if rec := core.record(acc("1")); string(rec.State) != `{"cents":5}` || len(rec.Ring) > 2 {
		t.Errorf("stored is %s with %d entries", rec.State, len(rec.Ring))
	}
}

func TestATimerThatSetsItselfGoesOnAndAMoveEndsIt(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	var ticks, activated [2]atomic.Int64
	for n, name := range []string{"a", "b"} {
		start(t, bank(s.URL, name, func(k *Kind[account]) {
			Method(k, "tick", func(a *account, ctx context.Context, _ struct{}) (int64, error) {
				ticks[n].Add(1)
				a.Cents++
				if a.Cents%5 == 0 { // taken back: OnActivate sets the next one
					return 0, Errorf("five", "not five")
				}
				return a.Cents, Timer(ctx, time.Millisecond, "tick", nil)
			})
			OnActivate(k, func(a *account, ctx context.Context) error {
				activated[n].Add(1)
				if Self(ctx) != acc("1") || a.hidden != 0 {
					t.Errorf("activated is %v with %d", Self(ctx), a.hidden)
				}
				a.hidden = 77
				return Timer(ctx, time.Millisecond, "tick", nil)
			})
		}))
	}
	c := dial(t, s.URL)
	c.reaches(t, "1", 4)
	hidden, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "hidden", nil)
	if err != nil || hidden != 77 {
		t.Errorf("what OnActivate has filled is %d, %v; want 77", hidden, err)
	}
	wait.Until(t, patience, func() error {
		c.balance(t, "1") // makes the T anew after a turn that has failed
		if ticks[0].Load() < 6 || activated[0].Load() < 2 {
			return fmt.Errorf("%d ticks, %d activations", ticks[0].Load(), activated[0].Load())
		}
		return nil
	})
	core.move(incarnation("b"), acc("1"))
	at := ticks[0].Load()
	<-time.After(3 * tickEvery)
	if n := ticks[0].Load(); n != at || activated[1].Load() != 0 {
		t.Errorf("after the move: %d ticks, then %d; %d activations there", at, n, activated[1].Load())
	}
	c.balance(t, "1")
	wait.Until(t, patience, func() error {
		if ticks[1].Load() == 0 {
			return fmt.Errorf("no tick at the new owner")
		}
		return nil
	})
	if rec := core.record(acc("1")); len(rec.Ring) > 1 || string(rec.State) != `{"cents":4}` {
		t.Errorf("stored is %s, with %d calls that are known; want one of the timer at most", rec.State, len(rec.Ring))
	}
}

func TestATimersTurnTakesEffectOnceWhateverIsLost(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", timing))
	c := dial(t, s.URL)
	c.deposit(t, "1", 1)
	if err := c.set(t, "1", setting{Cents: 5}); err != nil {
		t.Fatal(err)
	}
	var lost atomic.Bool
	core.silently(func(writes []kbroker.Write) int {
		if writes[0].Key == subjects.KeyState(acc("1")) && !lost.Swap(true) {
			return unanswered
		}
		return 0
	})
	c.reaches(t, "1", 6)
	if err := c.set(t, "1", setting{Cents: 1}); err != nil {
		t.Fatal(err)
	}
	c.reaches(t, "1", 7)
	if !lost.Load() {
		t.Error("nothing was lost")
	}
}

func TestTimersOfManyObjectsInOrder(t *testing.T) {
	q := newTimers()
	m := &objectMethod{name: "m"}
	dues := []time.Duration{5, 1, 4, 2, 3}
	for _, d := range dues {
		q.apply(0, acc(fmt.Sprint(d)), "a.1", []timerSet{{method: m, after: d}}, false)
	}
	q.apply(0, acc("1ns"), "a.1", []timerSet{{method: m, after: 9}}, true) // there is one
	q.drop(acc("4ns"), "m")
	q.release(acc("2ns").Shard())
	var got []time.Duration
	for len(q.queue) > 0 {
		x := q.queue[0]
		got = append(got, x.due)
		q.drop(x.object, "m")
	}
	if want := []time.Duration{1, 3, 5}; !slices.Equal(got, want) || len(q.named) != 0 {
		t.Errorf("the order is %v with %d left, want %v", got, len(q.named), want)
	}
}

func TestOnActivateThatFailsIsTheErrorOfTheCall(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	var mu sync.Mutex
	fails := "panic"
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		OnActivate(k, func(*account, context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			switch fails {
			case "panic":
				panic("no")
			case "error":
				return Errorf("no_table", "not yet")
			}
			return nil
		})
	}))
	c := dial(t, s.URL)
	_, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "deposit", 5)
	wantError(t, err, Internal, "unknown")
	mu.Lock()
	fails = "error"
	mu.Unlock()
	_, err = Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "deposit", 5)
	wantError(t, err, "no_table", "no")
	mu.Lock()
	fails = ""
	mu.Unlock()
	if got := c.deposit(t, "1", 5); got != 5 {
		t.Errorf("then the first deposit leaves %d cents", got)
	}
}
