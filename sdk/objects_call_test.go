package sdk

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

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

// TestTurnsCallOneObjectAsOftenAsTheyLike: what it knows of their calls is forgotten when they
// are stored, also of those that changed nothing else. Of those that failed it is known.
func TestTurnsCallOneObjectAsOftenAsTheyLike(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "pass", func(_ *account, ctx context.Context, fail bool) (int64, error) {
			for range 50 {
				if _, err := Call[int64](ctx, Object("bank/account:2"), "deposit", 1); err != nil {
					return 0, err
				}
			}
			if fail {
				return 0, Errorf("again", "run me again")
			}
			return 0, nil
		})
	}))
	c := dial(t, s.URL)
	const turns = 30 // 1,500 calls: an object remembers 1,024
	for n := range turns {
		if _, err := Call[int64](within(t, 10*time.Second), c.Object("bank/account:1"), "pass", false); err != nil {
			t.Fatalf("turn %d: %v", n+1, err)
		}
	}
	for range 2 {
		_, err := Call[int64](within(t, 10*time.Second), c.Object("bank/account:1"), "pass", true, RequestID("program-7:1"))
		wantError(t, err, "again", kbroker.ExecutedYes)
	}
	if got := c.balance(t, "2"); got != 50*(turns+1) {
		t.Errorf("the other account has %d cents, want %d: the deposits of the turn that failed once", got, 50*(turns+1))
	}
	if n := len(core.record(acc("2")).Ring); n > 110 {
		t.Errorf("%d calls are remembered, want those of the last turns: 110 at most", n)
	}
}

// TestWhatATurnLeavesOfItsCalls: an OnActivate that called nobody, a call that the turn did not
// wait for, and a turn that deletes what was never there, keep nothing from being confirmed.
func TestWhatATurnLeavesOfItsCalls(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"), acc("3"))
	var hedges sync.WaitGroup
	a := bank(s.URL, "a", func(k *Kind[account]) {
		OnActivate(k, func(_ *account, ctx context.Context) error {
			if turnOf(ctx).object == acc("1") {
				over, cancel := context.WithCancel(ctx)
				cancel()
				_, err := Call[int64](over, Object("bank/account:3"), "deposit", 1)
				wantError(t, err, kbroker.Unavailable, kbroker.ExecutedNo)
			}
			return nil
		})
		Method(k, "hedge", func(a *account, ctx context.Context, _ struct{}) (int64, error) {
			began := make(chan struct{})
			hedges.Go(func() {
				close(began)
				_, _ = Call[int64](ctx, Object("bank/account:3"), "deposit", 1)
			})
			<-began
			a.Cents++
			return a.Cents, nil
		})
		Method(k, "gone", func(_ *account, ctx context.Context, _ struct{}) (int64, error) {
			Delete(ctx)
			return Call[int64](ctx, Object("bank/account:3"), "deposit", 1000)
		})
	})
	start(t, a)
	c := dial(t, s.URL)
	for _, of := range []string{"1", "1", "2"} {
		if _, err := Call[int64](within(t, patience), c.Object("bank/account:"+of), "hedge", nil); err != nil {
			t.Fatal(err)
		}
	}
	hedges.Wait()
	wait.Until(t, patience, func() error {
		w := &a.client.nested
		w.mu.Lock()
		defer w.mu.Unlock()
		if n := len(w.all) - w.head; n > 0 {
			return kbroker.Errorf(kbroker.Failed, "%d calls are not over", n)
		}
		return nil
	})
	for range 2 { // the second time it is known
		if _, err := Call[int64](within(t, patience), c.Object("bank/account:2"), "gone", nil, RequestID("program-7:1")); err != nil {
			t.Fatal(err)
		}
		if _, err := Call[int64](within(t, patience), c.Object("bank/account:1"), "hedge", nil); err != nil {
			t.Fatal(err)
		}
		hedges.Wait()
	}
	if got := c.balance(t, "3"); got/1000 != 1 {
		t.Errorf("the account has %d cents, want 1000 and some: the call of a turn that is repeated once", got)
	}
}

func TestAForeignClientCallsAnObject(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("Größe"))
	start(t, bank(s.URL, "a", nil))
	o := acc("Größe")
	if got := dial(t, s.URL).balance(t, o.ID); got != 0 { // which is sent again until the object is served
		t.Fatalf("a new account has %d cents", got)
	}
	nc := s.Connect(t)
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
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:3"}, "Kb-Age-Ms": {"55000"}}, "1", "too old", "expired"},
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:3"}, "Kb-Age-Ms": {"49000"}, "Kb-Sent-Ms": {"1000"}}, "0", "7", ""}, // no clock is read
		{map[string][]string{"Kb-Object": id, "Kb-Request-Id": {"me:4"}, "Kb-Timeout-Ms": {"0"}}, "1", "passed before its turn", "deadline_exceeded"},
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

func TestObjectsAreDiscovered(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	r := start(t, bank(s.URL, "a", nil))
	c := dial(t, s.URL)
	c.deposit(t, "1", 1)
	c.balance(t, "1")
	info := r.microInfo()
	if e := info.Endpoints[0]; e.Subject != "obj.bank.*.account.deposit" || e.Metadata["object"] != "account" || e.Metadata["durable"] != "each" || e.Metadata["idempotent"] != "false" {
		t.Errorf("the first endpoint is %+v", e)
	}
	if e := info.Endpoints[1]; e.Name != "account-balance" || e.Metadata["idempotent"] != "true" {
		t.Errorf("the second endpoint is %+v", e)
	}
	wait.Until(t, patience, func() error { // it is counted behind the answer
		requests, errs, _ := r.counted()
		if n := r.microStats().Endpoints[0].NumRequests; requests != 2 || errs != 0 || n != 1 {
			return fmt.Errorf("%d requests, %d errors, %d deposits; want 2, 0, 1", requests, errs, n)
		}
		return nil
	})
}

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
