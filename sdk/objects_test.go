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

	"github.com/nats-io/nats.go"

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

func TestShardsMoveUnderLoad(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	var objects []kbroker.Object
	for n := range 4 {
		objects = append(objects, acc(fmt.Sprint(n)))
	}
	core.give(incarnation("a"), objects...)
	start(t, bank(s.URL, "a", nil))
	start(t, bank(s.URL, "b", nil))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var done [4]atomic.Int64
	var calls atomic.Int64
	for n := range 20 {
		c := dial(t, s.URL)
		wg.Go(func() {
			for i := n; ctx.Err() == nil; i++ {
				o := i % len(objects)
				if _, err := Call[int64](context.Background(), c.Object("bank/"+objects[o].String()), "deposit", 1); err != nil {
					t.Errorf("deposit during moves: %v", err)
					return
				}
				done[o].Add(1)
				calls.Add(1)
			}
		})
	}
	to := []string{"b", "a", "b", "a"}
	for n, name := range to {
		for _, o := range objects {
			core.move(incarnation(name), o)
		}
		at := calls.Load()
		wait.Until(t, patience, func() error {
			if calls.Load() < at+100 {
				return fmt.Errorf("no load after move %d", n)
			}
			return nil
		})
	}
	stop()
	wg.Wait()
	c := dial(t, s.URL)
	for n, o := range objects {
		if got := c.balance(t, o.ID); got != done[n].Load() {
			t.Errorf("%s has %d cents after %d deposits that were acknowledged", o, got, done[n].Load())
		}
	}
	t.Logf("%d calls over %d moves", calls.Load(), len(to)*len(objects))
}

func TestAnOwnerThatLeavesHandsOver(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	r := start(t, bank(s.URL, "a", nil))
	start(t, bank(s.URL, "b", nil))
	c := dial(t, s.URL)
	c.deposit(t, "1", 1)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var done atomic.Int64
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, err := Call[int64](context.Background(), c.Object("bank/account:2"), "deposit", 1); err != nil {
				t.Errorf("deposit while the owner leaves: %v", err)
				return
			}
			done.Add(1)
		}
	})
	r.stop()
	core.handOver(incarnation("a"), incarnation("b"), acc("1"), acc("2"))
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	at := done.Load()
	wait.Until(t, patience, func() error {
		if done.Load() < at+20 {
			return errors.New("no load behind the hand-over")
		}
		return nil
	})
	stop()
	wg.Wait()
	if one, two := c.balance(t, "1"), c.balance(t, "2"); one != 1 || two != done.Load() {
		t.Errorf("balances are %d and %d, want 1 and %d", one, two, done.Load())
	}
}

// An owner that moves to another server subscribes its shards there first: no request of
// an object is lost, and none runs twice.
func TestAnOwnerMovesToAnotherServer(t *testing.T) {
	cluster := natstest.StartCluster(t, 3)
	meshed(t, cluster)
	core := newCoreOn(t, cluster.Connect(t, 1))
	core.give(incarnation("a"), acc("1"), acc("2"))
	a := bank(cluster.URL(0), "a", nil, Option(func(o *options) { // home is the server that goes
		i := instance(cluster.URL(0), "a")
		i.App, i.Service, i.Objects, i.ObjectStreams = "bank", "ledger", []kbroker.KindName{"account"}, testStreams
		asOn(cluster, 0, &i)(o)
	}))
	start(t, a)
	c := dial(t, cluster.URL(2))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var done [2]atomic.Int64
	for n := range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := Call[int64](context.Background(), c.Object(fmt.Sprintf("bank/account:%d", n%2+1)), "deposit", 1); err != nil {
					t.Errorf("deposit while the owner moves: %v", err)
					return
				}
				done[n%2].Add(1)
			}
		})
	}
	load := func() {
		at := done[0].Load()
		wait.Until(t, patience, func() error {
			if done[0].Load() < at+100 {
				return errors.New("no load")
			}
			return nil
		})
	}
	load()
	<-cluster.LameDuck(t, 0)
	load()
	stop()
	wg.Wait()
	for n := range done {
		if got := c.balance(t, fmt.Sprint(n+1)); got != done[n].Load() {
			t.Errorf("account %d has %d cents after %d deposits", n+1, got, done[n].Load())
		}
	}
	if n := c.Stats().Retried; n > 0 {
		t.Logf("%d attempts were sent again", n)
	}
}

func TestAnOwnerDies(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	p := newProxy(t, s)
	core.give(incarnation("a"), acc("1"))
	r := start(t, bank(p.url, "a", nil))
	start(t, bank(s.URL, "b", nil))
	var wg sync.WaitGroup
	var done, maybe atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	for range 8 {
		c := dial(t, s.URL)
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := Call[int64](within(t, 20*time.Second), c.Object("bank/account:1"), "deposit", 1); err != nil {
					t.Errorf("deposit: %v", err)
					maybe.Add(1)
					return
				}
				done.Add(1)
			}
		})
	}
	load := func() {
		at := done.Load()
		wait.Until(t, patience, func() error {
			if done.Load() < at+50 {
				return fmt.Errorf("%d deposits", done.Load()-at)
			}
			return nil
		})
	}
	load()
	p.cut()
	core.give(incarnation("b"), acc("1"))
	load()
	stop()
	wg.Wait()
	c := dial(t, s.URL)
	if got := c.balance(t, "1"); got != done.Load() {
		t.Errorf("the account has %d cents after %d deposits that were acknowledged and %d that failed", got, done.Load(), maybe.Load())
	}
	err := r.ended(t)
	if e := wantError(t, err, kbroker.Unavailable, ""); !strings.Contains(e.Message, "may own objects no more") {
		t.Errorf("Run of who died: %v, want that its lease is lost", err)
	}
}

func TestALeaseThatIsRevokedEndsTheApp(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	r := start(t, bank(s.URL, "a", nil))
	c := dial(t, s.URL)
	c.deposit(t, "1", 1)
	wait.Until(t, patience, func() error {
		l := get[ownership.Lease](core, subjects.KeyLease(incarnation("a")))
		l.Revoked = true
		core.mu.Lock()
		defer core.mu.Unlock()
		key := subjects.KeyLease(incarnation("a"))
		_, err := core.apply(kbroker.DefaultTenant, "bank", []kbroker.Write{{Key: key, Expected: core.recs[key].Revision, Value: []byte(`{"incarnation":"` + string(l.Incarnation) + `","revoked":true}`)}})
		return err
	})
	wantError(t, r.ended(t), kbroker.Unavailable, "")
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

func TestAnUnknownCommitIsResolved(t *testing.T) {
	for name, kind := range map[string]int{"it was written": unanswered, "it was not": lostBefore} {
		t.Run(name, func(t *testing.T) {
			s := natstest.Start(t)
			core := newCore(t, s)
			core.give(incarnation("a"), acc("1"))
			start(t, bank(s.URL, "a", nil))
			c := dial(t, s.URL)
			c.deposit(t, "1", 1)
			var muted atomic.Int64
			core.silently(func(w []kbroker.Write) int {
				if w[0].Key == subjects.KeyState(acc("1")) && muted.Add(1) == 1 {
					return kind
				}
				return 0
			})
			got, err := Call[int64](within(t, 20*time.Second), c.Object("bank/account:1"), "deposit", 2)
			if err != nil || got != 3 {
				t.Errorf("deposit whose commit was not answered: %d, %v; want 3", got, err)
			}
			if got := c.balance(t, "1"); got != 3 {
				t.Errorf("the account has %d cents, want 3", got)
			}
		})
	}
}

func TestATurnThatDoesNotEndDelaysNoOneForEver(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	hold, entered := make(chan struct{}), make(chan struct{}, 1)
	defer close(hold)
	r := start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "stay", func(*account, context.Context, struct{}) (int, error) {
			entered <- struct{}{}
			<-hold
			return 0, nil
		})
	}, Grace(200*time.Millisecond)))
	c := dial(t, s.URL)
	go func() { _, _ = Call[int](within(t, time.Second), c.Object("bank/account:1"), "stay", nil) }()
	<-entered
	r.stop()
	if err := r.ended(t); !errors.Is(err, kbroker.Failed) {
		t.Errorf("Run: %v, want Failed: a turn did not end", err)
	}
}

func TestTurnsThatWaitForTurnsLeaveThemPlaces(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	var objects []kbroker.Object
	for n := range maxTurns + 1 {
		objects = append(objects, acc(fmt.Sprint(n)))
	}
	for _, some := range [][]kbroker.Object{objects[:200], objects[200:]} { // a batch has 256 records at most
		core.give(incarnation("a"), some...)
	}
	var waiting atomic.Int64
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "through", func(_ *account, ctx context.Context, _ struct{}) (int64, error) {
			for waiting.Add(1); waiting.Load() < maxTurns; { // all places are taken
				select {
				case <-ctx.Done():
					return 0, ctx.Err()
				case <-time.After(time.Millisecond):
				}
			}
			return Call[int64](ctx, Object("bank/"+objects[maxTurns].String()), "deposit", 1)
		})
	}))
	c := dial(t, s.URL)
	var wg sync.WaitGroup
	for _, o := range objects[:maxTurns] {
		wg.Go(func() {
			if _, err := Call[int64](within(t, 10*time.Second), c.Object("bank/"+o.String()), "through", nil); err != nil {
				t.Errorf("through %s: %v", o, err)
			}
		})
	}
	wg.Wait()
	if got := c.balance(t, objects[maxTurns].ID); got != maxTurns {
		t.Errorf("%d deposits, want %d", got, maxTurns)
	}
}

func TestACircleIsRefusedAtOnce(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "pass", func(_ *account, ctx context.Context, to []string) (string, error) {
			if len(to) == 0 {
				return Self(ctx).String(), nil
			}
			if to[0] == "echo" {
				return Call[string](ctx, Service("echo"), "pass", to[1:])
			}
			return Call[string](ctx, Object("bank/"+to[0]), "pass", to[1:])
		})
	}))
	echo := newApp(s.URL, "echo-echo-1") // a service on the way is part of the circle
	Handle(echo, "pass", func(ctx context.Context, to []string) (string, error) {
		return Call[string](ctx, echo.Object("bank/"+to[0]), "pass", to[1:])
	})
	start(t, echo)
	c := dial(t, s.URL)
	if got, err := Call[string](within(t, 5*time.Second), c.Object("bank/account:1"), "pass", []string{"account:2"}); err != nil || got != "account:2" {
		t.Fatalf("a call that is passed on: %q, %v", got, err)
	}
	for _, way := range [][]string{{"account:2", "account:1"}, {"account:1"}, {"echo", "account:1"}, {"account:2", "echo", "account:1"}} {
		quickest := time.Hour
		for range 5 {
			began := time.Now()
			_, err := Call[string](within(t, 5*time.Second), c.Object("bank/account:1"), "pass", way)
			quickest = min(quickest, time.Since(began))
			e := wantError(t, err, Deadlock, kbroker.ExecutedYes)
			if !strings.Contains(e.Message, "bank/account:1 -> ") || !strings.HasSuffix(e.Message, " -> bank/account:1") {
				t.Errorf("%v: the error is %q, want it to name the circle", way, e.Message)
			}
		}
		if quickest > 10*time.Millisecond {
			t.Errorf("%v: the circle was refused after %v at best", way, quickest)
		}
	}
}

func TestCallsOfATurnHaveTheSameIDsAgain(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	echo := newApp(s.URL, "echo-echo-1")
	var mu sync.Mutex
	var ids []string
	Handle(echo, "note", func(ctx context.Context, _ int64) (int64, error) {
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, RequestIDOf(ctx))
		return int64(len(ids)), nil
	})
	start(t, echo)
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "move", func(a *account, ctx context.Context, fail bool) (uint64, error) {
			if _, err := Call[int64](ctx, Object("bank/account:2"), "deposit", 1); err != nil {
				return 0, err
			}
			for range 2 {
				if _, err := Call[int64](ctx, Service("echo"), "note", 1); err != nil {
					return 0, err
				}
			}
			return Epoch(ctx), Errorf("again", "run me again")
		})
	}))
	c := dial(t, s.URL)
	for range 2 { // an error is not remembered: the same call runs again
		_, err := Call[uint64](within(t, 5*time.Second), c.Object("bank/account:1"), "move", false, RequestID("program-7:1"))
		wantError(t, err, "again", kbroker.ExecutedYes)
	}
	if got := c.balance(t, "2"); got != 1 {
		t.Errorf("the other account has %d cents, want 1: the same deposit twice", got)
	}
	if len(ids) != 4 || ids[0] != ids[2] || ids[1] != ids[3] || ids[0] == ids[1] {
		t.Errorf("the ids of the turn's calls are %q, want two, again", ids)
	}
}

func TestAForeignClientCallsAnObject(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("Größe"))
	start(t, bank(s.URL, "a", nil))
	nc := s.Connect(t)
	o := acc("Größe")
	ask := func(header map[string][]string, data string) (string, string) {
		t.Helper()
		m, err := nc.RequestMsg(&nats.Msg{Subject: subjects.ObjectMethod("bank", o.Shard(), "account", "deposit"), Header: header, Data: []byte(data)}, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return string(m.Data), m.Header.Get(subjects.HeaderCode)
	}
	id := []string{"Gr%C3%B6%C3%9Fe"}
	for n, c := range []struct {
		header     map[string][]string
		data       string
		want, code string
	}{
		{map[string][]string{"Kb-Object": id}, "1", "1", ""},
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:1"}}, "2", "3", ""},
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:1"}}, "2", "3", ""}, // again
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:1"}}, "4", "another call", "invalid"},
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:2"}, "Kb-Confirmed": {"2"}}, "4", "7", ""},
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:1"}}, "2", "too old", "expired"}, // it was confirmed
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:3"}, "Kb-Sent-Ms": {"1000"}}, "1", "too old", "expired"},
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:3"}, "Kb-Timeout-Ms": {"0"}}, "1", "passed before its turn", "deadline_exceeded"},
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"nonsense"}}, "1", "Kb-Request-Id", "invalid"},
		{map[string][]string{"Kb-Object": {"Größe"}}, "1", "escaped", "invalid"},
		{map[string][]string{"Kb-Object": {"other"}}, "1", "is in shard", "invalid"},
		{map[string][]string{"Kb-Object": id}, "no number", "argument", "invalid"},
	} {
		if got, code := ask(c.header, c.data); !strings.Contains(got, c.want) || code != c.code {
			t.Errorf("request %d, %v with %s: %s (code %q), want %s (%q)", n, c.header, c.data, got, code, c.want, c.code)
		}
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

func TestObjectsAreDiscovered(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	r := start(t, bank(s.URL, "a", nil))
	c := dial(t, s.URL)
	c.deposit(t, "1", 1)
	c.balance(t, "1")
	info := r.microInfo()
	if e := info.Endpoints[0]; e.Subject != "obj.bank.*.account.deposit" || e.Metadata["object"] != "account" || e.Metadata["idempotent"] != "false" {
		t.Errorf("the first endpoint is %+v", e)
	}
	if e := info.Endpoints[1]; e.Name != "account-balance" || e.Metadata["idempotent"] != "true" {
		t.Errorf("the second endpoint is %+v", e)
	}
	wait.Until(t, patience, func() error { // it is counted behind the answer
		requests, errs := r.counted()
		if n := r.microStats().Endpoints[0].NumRequests; requests != 2 || errs != 0 || n != 1 {
			return fmt.Errorf("%d requests, %d errors, %d deposits; want 2, 0, 1", requests, errs, n)
		}
		return nil
	})
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
		"a method twice":                        {func(a *App) { Method(&Kind[account]{a.kinds[0]}, "deposit", nilMethod) }, "declared twice"},
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

func TestLowWaterMark(t *testing.T) {
	var w inWork
	var next atomic.Uint64
	first, confirmed := w.begin(&next)
	if first != 1 || confirmed != 1 {
		t.Errorf("the first call is %d with %d confirmed", first, confirmed)
	}
	for n := uint64(2); n <= 1000; n++ {
		s, confirmed := w.begin(&next)
		if s != n || confirmed != 1 {
			t.Fatalf("call %d has %d confirmed below it, while the first is in work", s, confirmed)
		}
		w.end(s)
	}
	w.end(first)
	next.Add(5) // calls of services
	if s, confirmed := w.begin(&next); s != 1006 || confirmed != s {
		t.Errorf("call %d has %d confirmed below it, with none in work; want its own", s, confirmed)
	}
}
