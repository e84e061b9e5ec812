package sdk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// account is the object of these tests.
type account struct {
	Cents  int64             `json:"cents"`
	Filler string            `json:"filler,omitempty"`
	Seen   map[string]string `json:"seen,omitempty"`
	hidden int64             // no part of the state
}

// bank is an instance of bank/ledger, with objects of kind account.
func bank(url, name string, change func(*Kind[account]), opts ...any) *App {
	i := instance(url, name)
	i.App, i.Service, i.Objects, i.ObjectStreams = "bank", "ledger", []kbroker.KindName{"account"}, testStreams
	var kind []KindOption
	of := []Option{as(url, &i), Grace(time.Second)}
	for _, o := range opts {
		switch o := o.(type) {
		case KindOption:
			kind = append(kind, o)
		case Option:
			of = append(of, o)
		}
	}
	a := New(of...)
	a.leases = func(*kbroker.InstanceFile) ownership.Times { return quick }
	k := Objects[account](a, "account", kind...)
	Method(k, "deposit", func(a *account, _ context.Context, cents int64) (int64, error) {
		a.Cents += cents
		a.hidden += cents
		if cents < 0 {
			return 0, Errorf("no_debts", "%d cents", cents)
		}
		return a.Cents, nil
	})
	ReadOnly(k, "balance", func(a *account, _ context.Context, _ struct{}) (int64, error) { return a.Cents, nil })
	ReadOnly(k, "hidden", func(a *account, _ context.Context, _ struct{}) (int64, error) { return a.hidden, nil })
	if change != nil {
		change(k)
	}
	return a
}

func incarnation(name string) kbroker.Incarnation {
	return kbroker.Incarnation(name + ".00112233aabbccdd")
}

func acc(id string) kbroker.Object { return kbroker.Object{Kind: "account", ID: id} }

// call calls an account of the bank, within 5 s.
func (c *Client) deposit(t *testing.T, id string, cents int64) int64 {
	t.Helper()
	got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:"+id), "deposit", cents)
	if err != nil {
		t.Fatalf("deposit into %s: %v", id, err)
	}
	return got
}

func (c *Client) balance(t *testing.T, id string) int64 {
	t.Helper()
	got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:"+id), "balance", nil)
	if err != nil {
		t.Fatalf("balance of %s: %v", id, err)
	}
	return got
}

func TestAnObjectIsThereWhenItIsCalled(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("alice"), acc("a.b/c:d *>é"))
	r := start(t, bank(s.URL, "a", nil, IdleAfter(100*time.Millisecond)))
	c := dial(t, s.URL)
	if got := c.balance(t, "alice"); got != 0 {
		t.Errorf("an account that was never called has %d cents", got)
	}
	if got := c.deposit(t, "alice", 5); got != 5 {
		t.Errorf("the first deposit leaves %d cents, want 5", got)
	}
	if got := c.deposit(t, "a.b/c:d *>é", 7); got != 7 {
		t.Errorf("an account with a strange id has %d cents, want 7", got)
	}
	rec := core.record(acc("alice"))
	if string(rec.State) != `{"cents":5}` || rec.Epoch != 1 || rec.Owner != incarnation("a") {
		t.Errorf("stored is %+v with %s", rec, rec.State)
	}
	hidden := func() int64 {
		t.Helper()
		got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:alice"), "hidden", nil)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := hidden(); got != 5 {
		t.Errorf("the field that is not exported is %d in memory, want 5", got)
	}
	wait.Until(t, patience, func() error { // each look keeps it in memory: so seldom
		<-time.After(300 * time.Millisecond)
		if got := hidden(); got != 0 {
			return fmt.Errorf("still in memory: %d", got)
		}
		return nil
	})
	if got := c.deposit(t, "alice", 1); got != 6 {
		t.Errorf("after it was put away it has %d cents, want 6", got)
	}
	r.stop()
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestAnErrorTakesTheStateBack(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", nil))
	c := dial(t, s.URL)
	c.deposit(t, "1", 5)
	writes := core.writes(subjects.KeyState(acc("1")))
	_, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "deposit", -3)
	wantError(t, err, "no_debts", kbroker.ExecutedYes)
	if got := c.balance(t, "1"); got != 5 {
		t.Errorf("after an error the account has %d cents, want 5", got)
	}
	if got := core.writes(subjects.KeyState(acc("1"))); got != writes {
		t.Errorf("%d writes for an error", got-writes)
	}
	if got := c.deposit(t, "1", 1); got != 6 {
		t.Errorf("the next deposit leaves %d cents, want 6", got)
	}
}

func TestPanicsEndInQuarantine(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	panics := func(k *Kind[account]) {
		Method(k, "break", func(a *account, _ context.Context, _ struct{}) (int64, error) {
			a.Cents = 1000
			panic("broken")
		})
		ReadOnly(k, "delete", func(_ *account, ctx context.Context, _ struct{}) (int64, error) {
			Delete(ctx) // a mistake
			return 0, nil
		})
	}
	start(t, bank(s.URL, "a", panics))
	start(t, bank(s.URL, "b", panics))
	c := dial(t, s.URL)
	c.deposit(t, "1", 5)
	for n := range maxPanics + 1 {
		method := "break"
		if n == 0 {
			method = "delete"
		}
		_, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), method, nil)
		wantError(t, err, kbroker.Internal, kbroker.ExecutedUnknown)
		if got := "5"; n < maxPanics && fmt.Sprint(c.balance(t, "1")) != got {
			t.Errorf("after a panic the account has %d cents, want 5", c.balance(t, "1"))
		}
	}
	_, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "balance", nil)
	if e := wantError(t, err, kbroker.Refused, kbroker.ExecutedNo); !strings.Contains(e.Message, "quarantine") {
		t.Errorf("the error is %q, want it to say quarantine", e.Message)
	}
	c.deposit(t, "2", 1) // others are served
	core.move(incarnation("b"), acc("1"))
	if got := c.balance(t, "1"); got != 5 {
		t.Errorf("elsewhere the account has %d cents, want 5", got)
	}
}

func TestTheMailboxHasABound(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	hold, entered := make(chan struct{}), make(chan struct{}, 10)
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "hold", func(_ *account, ctx context.Context, _ struct{}) (int64, error) {
			entered <- struct{}{}
			select {
			case <-hold:
			case <-ctx.Done():
			}
			return 0, nil
		})
	}, Mailbox(2)))
	c := dial(t, s.URL)
	var wg sync.WaitGroup
	var overloaded, held atomic.Int64
	for range 4 {
		wg.Go(func() {
			_, err := Call[int64](within(t, time.Second), c.Object("bank/account:1"), "hold", nil)
			switch {
			case err == nil:
				held.Add(1)
			case errors.Is(err, Overloaded) && kbroker.AsError(err).Executed == kbroker.ExecutedNo:
				overloaded.Add(1)
			}
		})
	}
	<-entered
	wait.Until(t, patience, func() error {
		if overloaded.Load() != 1 {
			return fmt.Errorf("%d calls were refused, want 1: one runs, two wait", overloaded.Load())
		}
		return nil
	})
	close(hold)
	wg.Wait()
}

func TestReadsRunBesideEachOther(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	all, entered := make(chan struct{}), make(chan struct{}, 2)
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		ReadOnly(k, "meet", func(a *account, ctx context.Context, _ struct{}) (int64, error) {
			entered <- struct{}{}
			<-all
			return a.Cents, nil
		})
	}))
	c := dial(t, s.URL)
	c.deposit(t, "1", 1)
	writes := core.writes(subjects.KeyState(acc("1")))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "meet", nil); err != nil || got != 1 {
				t.Errorf("read: %d, %v", got, err)
			}
		})
	}
	<-entered
	<-entered
	close(all)
	wg.Wait()
	if got := core.writes(subjects.KeyState(acc("1"))); got != writes {
		t.Errorf("%d writes for reads", got-writes)
	}
	if got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "balance", nil, Linearizable()); err != nil || got != 1 {
		t.Errorf("linearizable read: %d, %v", got, err)
	}
	if got := core.writes(subjects.KeyState(acc("1"))); got != writes+1 {
		t.Errorf("%d writes for a linearizable read, want 1", got-writes)
	}
}

func TestAnObjectIsDeleted(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "close", func(a *account, ctx context.Context, fail bool) (int64, error) {
			Delete(ctx)
			if fail {
				return 0, Errorf(Conflict, "not now")
			}
			return a.Cents, nil
		})
	}))
	c := dial(t, s.URL)
	c.deposit(t, "1", 5)
	_, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "close", true)
	wantError(t, err, Conflict, kbroker.ExecutedYes)
	if got := c.balance(t, "1"); got != 5 {
		t.Errorf("after a deletion that failed it has %d cents", got)
	}
	if got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "close", false); err != nil || got != 5 {
		t.Errorf("close: %d, %v", got, err)
	}
	if r := core.record(acc("1")); r.Exists || len(r.State) != 0 || len(r.Ring) == 0 {
		t.Errorf("stored is %+v, want a record without a state, that knows the call", r)
	}
	if got := c.deposit(t, "1", 1); got != 1 {
		t.Errorf("after its deletion a deposit leaves %d cents, want 1", got)
	}
}

func TestWhatIsTooLargeIsSaid(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "fill", func(a *account, _ context.Context, n int) (string, error) {
			a.Filler = strings.Repeat("x", n)
			return strings.Repeat("y", min(n, 5000)), nil
		})
	}))
	c := dial(t, s.URL)
	for _, n := range []int{kbroker.MaxObjectBytes, kbroker.MaxObjectBytes - 5000} { // the state, and with its record
		_, err := Call[string](within(t, 5*time.Second), c.Object("bank/account:1"), "fill", n)
		if n == kbroker.MaxObjectBytes {
			if e := wantError(t, err, Failed, kbroker.ExecutedYes); !strings.Contains(e.Message, "more than is stored") {
				t.Errorf("the error is %q", e.Message)
			}
		}
	}
	if _, err := Call[string](within(t, 5*time.Second), c.Object("bank/account:1"), "fill", 5000, RequestID("s:1")); err != nil {
		t.Errorf("fill with what is allowed: %v", err)
	}
	_, err := Call[string](within(t, 5*time.Second), c.Object("bank/account:1"), "fill", 5000, RequestID("s:1"))
	wantError(t, err, AnswerLost, kbroker.ExecutedYes)
}

func TestSpecAndProgramAreCompared(t *testing.T) {
	s := natstest.Start(t)
	for name, c := range map[string]struct {
		change func(*App)
		want   string
	}{
		"a kind that the spec does not name":    {func(a *App) { a.identity.Objects = nil }, "objects: [account]"},
		"a kind that the program does not have": {func(a *App) { a.identity.Objects = append(a.identity.Objects, "loan") }, "kind loan"},
		"no agent":                              {func(a *App) { a.identity.Host = "" }, "kbroker deploy"},
		"an agent that knows no objects":        {func(a *App) { a.identity.ObjectStreams = 0 }, "upgrade the agent"},
		"a method twice":                        {func(a *App) { Method(&Kind[account]{a, a.kinds[0]}, "deposit", nilMethod) }, "declared twice"},
		"a kind twice":                          {func(a *App) { Objects[account](a, "account") }, "served twice"},
		"no mailbox":                            {func(a *App) { a.kinds[0].mailbox = 0 }, "mailbox of 0"},
	} {
		t.Run(name, func(t *testing.T) {
			a := bank(s.URL, "a", nil)
			c.change(a)
			err := a.Run(within(t, time.Second))
			if err == nil || !strings.Contains(err.Error()+kbroker.AsError(err).Hint, c.want) {
				t.Errorf("Run: %v (hint %q), want %q", err, kbroker.AsError(err).Hint, c.want)
			}
		})
	}
}

func nilMethod(*account, context.Context, struct{}) (struct{}, error) { return struct{}{}, nil }
