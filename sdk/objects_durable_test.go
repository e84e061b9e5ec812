package sdk

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func (c *core) reaches(o kbroker.Object, state string) {
	c.t.Helper()
	wait.Until(c.t, patience, func() error {
		if r := c.record(o); string(r.State) != state {
			return fmt.Errorf("stored of %s is %s, want %s", o, r.State, state)
		}
		return nil
	})
}

func TestAnIntervalIsOneWriteOfManyTurns(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", nil, Durable(Interval(300*time.Millisecond))))
	c := dial(t, s.URL)
	for n := range int64(50) {
		if got := c.deposit(t, "1", 1); got != n+1 {
			t.Fatalf("deposit %d leaves %d cents", n, got)
		}
	}
	// What fails takes back itself, not what was answered before it.
	_, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "deposit", -3)
	wantError(t, err, "no_debts", kbroker.ExecutedYes)
	if got := c.balance(t, "1"); got != 50 {
		t.Errorf("after an error there are %d cents, want 50", got)
	}
	for range 2 { // the same call takes effect once, stored or not
		if got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "deposit", 1, RequestID("program:1")); err != nil || got != 51 {
			t.Errorf("a call that is sent again: %d, %v; want 51", got, err)
		}
		core.reaches(acc("1"), `{"cents":51}`)
	}
	if n := core.writes(subjects.KeyState(acc("1"))); n > 10 {
		t.Errorf("51 turns were %d writes", n)
	}
	if r := core.record(acc("1")); len(r.Ring) == 0 {
		t.Error("what was answered is not stored with the state")
	}
}

func TestAnIntervalIsStoredBeforeAMoveAndALeave(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"), acc("3"))
	late := Durable(Interval(maxInterval))
	a := start(t, bank(s.URL, "a", nil, late, IdleAfter(time.Hour)))
	start(t, bank(s.URL, "b", nil, late))
	c := dial(t, s.URL)
	for n, id := range []string{"1", "2", "3"} {
		c.deposit(t, id, int64(n)+1)
	}
	if n := core.record(acc("1")); n.Exists {
		t.Errorf("the object is stored at once: %s", n.State)
	}
	core.move(incarnation("b"), acc("1"))
	core.reaches(acc("1"), `{"cents":1}`)
	a.keeper.post(func(time.Duration) { a.keeper.owner.PutAway(acc("2")) })
	core.reaches(acc("2"), `{"cents":2}`)
	wait.Until(t, patience, func() error {
		if n := inMemory(a.App); n != 1 {
			return fmt.Errorf("%d objects are in memory, want the third alone", n)
		}
		return nil
	})
	a.stop() // nobody takes its shards over
	if err := a.ended(t); err != nil {
		t.Error(err)
	}
	core.reaches(acc("3"), `{"cents":3}`)
	if got := c.deposit(t, "1", 1); got != 2 {
		t.Errorf("the next owner has %d cents, want 2", got)
	}
}

func TestAnIntervalOfAnOwnerThatDies(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", nil, Durable(Interval(maxInterval))))
	start(t, bank(s.URL, "b", nil, Durable(Interval(time.Millisecond))))
	c := dial(t, s.URL)
	pay := func(want int64) {
		t.Helper()
		got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "deposit", 5, RequestID("program:1"))
		if err != nil || got != want {
			t.Errorf("the call leaves %d, %v; want %d", got, err, want)
		}
	}
	pay(5)
	pay(5)
	core.give(incarnation("b"), acc("1")) // by force: the owner is out
	wait.Until(t, patience, func() error {
		if got := c.balance(t, "1"); got != 0 {
			return fmt.Errorf("%d cents: it was not stored", got)
		}
		return nil
	})
	pay(5) // it was lost with what was known of it: so once again
	core.reaches(acc("1"), `{"cents":5}`)
}

func TestNoneIsNeverStored(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	var panics atomic.Bool
	a := start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "slip", func(a *account, _ context.Context, _ struct{}) (int64, error) {
			a.Cents = 1000
			panics.Store(true)
			panic("slipped")
		})
	}, Durable(None)))
	start(t, bank(s.URL, "b", nil, Durable(None)))
	c := dial(t, s.URL)
	for n := range int64(20) {
		if got := c.deposit(t, "1", 1); got != n+1 {
			t.Fatalf("deposit %d leaves %d cents", n, got)
		}
	}
	for range 2 {
		if got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "deposit", 1, RequestID("program:1")); err != nil || got != 21 {
			t.Errorf("a call that is sent again: %d, %v; want 21", got, err)
		}
	}
	_, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "slip", nil)
	wantError(t, err, Internal, kbroker.ExecutedUnknown)
	if got := c.balance(t, "1"); got != 21 || !panics.Load() {
		t.Errorf("after a panic there are %d cents, want 21", got)
	}
	if got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "balance", nil, Linearizable()); err != nil || got != 21 {
		t.Errorf("a linearizable read: %d, %v; want 21", got, err)
	}
	if n := core.writes(subjects.KeyState(acc("1"))); n != 0 {
		t.Errorf("%d writes, want none", n)
	}
	a.keeper.post(func(time.Duration) { a.keeper.owner.PutAway(acc("1")) })
	if got := c.balance(t, "1"); got != 0 {
		t.Errorf("after it was put away there are %d cents, want none", got)
	}
	c.deposit(t, "1", 3)
	core.move(incarnation("b"), acc("1"))
	if got := c.deposit(t, "1", 1); got != 1 {
		t.Errorf("the next owner has %d cents, want 1: it begins anew", got)
	}
}

func TestAnIntervalThatIsTooLong(t *testing.T) {
	s := natstest.Start(t)
	err := bank(s.URL, "a", nil, Durable(Interval(time.Hour))).Run(t.Context())
	if e := wantError(t, err, Invalid, ""); !strings.Contains(e.Message, "at most 30s") {
		t.Errorf("the error is %q", e.Message)
	}
}
