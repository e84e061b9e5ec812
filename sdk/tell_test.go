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
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

type move struct {
	To    string
	Cents int64
}

// transfers gives accounts what a bank's transfer needs.
func transfers(k *Kind[account]) {
	Method(k, "transfer", func(a *account, ctx context.Context, m move) (int64, error) {
		if m.Cents > a.Cents {
			return 0, Errorf("overdrawn", "there are %d", a.Cents)
		}
		a.Cents -= m.Cents
		return a.Cents, Tell(ctx, Object("bank/"+m.To), "credit", m.Cents, OnFailure("refund"))
	})
	Method(k, "credit", func(a *account, _ context.Context, cents int64) (int64, error) {
		if cents == 13 {
			return 0, Errorf("unlucky", "not that many")
		}
		a.Cents += cents
		return a.Cents, nil
	})
	Method(k, "refund", func(a *account, _ context.Context, f Failure) (struct{}, error) {
		var cents int64
		if _, err := fmt.Sscan(string(f.In), &cents); err != nil || f.Error.Code != "unlucky" || f.Method != "credit" {
			return struct{}{}, fmt.Errorf("a refund of %s after %v: %v", f.In, f.Error, err)
		}
		a.Cents += cents
		return struct{}{}, nil
	})
}

// outbox is how many messages are stored.
func (c *core) outbox() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, s := range c.recs {
		if s.Exists() && subjects.ParseOwnKey(key).Table == subjects.OwnOut {
			n++
		}
	}
	return n
}

func (c *core) awaitSent(t *testing.T) {
	t.Helper()
	wait.Until(t, patience, func() error {
		if n := c.outbox(); n > 0 {
			return fmt.Errorf("%d messages wait", n)
		}
		return nil
	})
}

func TestWhatATurnTellsArrivesOnce(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	start(t, bank(s.URL, "a", transfers))
	c := dial(t, s.URL)
	for id, cents := range map[string]int64{"1": 100, "2": 50} {
		if _, err := Call[int64](within(t, patience), c.Object("bank/account:"+id), "deposit", cents); err != nil {
			t.Fatal(err)
		}
	}
	for _, cents := range []int64{5, 13, 7} {
		if _, err := Call[int64](within(t, patience), c.Object("bank/account:1"), "transfer", move{"account:2", cents}); err != nil {
			t.Fatal(err)
		}
	}
	core.awaitSent(t)
	if one, two := c.balance(t, "1"), c.balance(t, "2"); one != 88 || two != 62 {
		t.Errorf("the accounts have %d and %d, want 88 and 62: 13 came back", one, two)
	}
	_, err := Call[int64](within(t, patience), c.Object("bank/account:1"), "transfer", move{"account:2", 1000})
	wantError(t, err, "overdrawn", kbroker.ExecutedYes)
	if n := core.outbox(); n != 0 {
		t.Errorf("a turn that failed has left %d messages", n)
	}
}

// Money neither comes nor goes while shards move, answers are lost, and calls are refused.
func TestTransfersConserveMoney(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	var objects []kbroker.Object
	for n := range 8 {
		objects = append(objects, acc(fmt.Sprint(n)))
	}
	core.give(incarnation("a"), objects...)
	start(t, bank(s.URL, "a", transfers))
	start(t, bank(s.URL, "b", transfers))
	c := dial(t, s.URL)
	for _, o := range objects {
		if _, err := Call[int64](within(t, patience), c.Object("bank/"+o.String()), "deposit", 1000); err != nil {
			t.Fatal(err)
		}
	}
	var lost atomic.Int64
	core.silently(func(w []kbroker.Write) int {
		if table := subjects.ParseOwnKey(w[0].Key).Table; (table == subjects.OwnOut || table == subjects.OwnState) && lost.Add(1)%40 == 0 {
			return unanswered
		}
		return 0
	})
	ctx, stop := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer stop()
	var all sync.WaitGroup
	var done atomic.Int64
	for n := range 8 {
		all.Go(func() {
			for i := n; ctx.Err() == nil; i++ {
				from, to := objects[i%8], objects[(i*3+1)%8]
				if from == to {
					continue
				}
				if _, err := Call[int64](context.Background(), c.Object("bank/"+from.String()), "transfer", move{to.String(), int64(10 + i%5)}, Timeout(20*time.Second)); err != nil && kbroker.AsError(err).Code != "overdrawn" {
					t.Errorf("transfer: %v", err)
				}
				done.Add(1)
			}
		})
	}
	for _, to := range []string{"b", "a"} {
		for _, o := range objects[:4] {
			core.move(incarnation(to), o)
		}
	}
	all.Wait()
	core.silently(nil)
	core.awaitSent(t)
	var sum int64
	for _, o := range objects {
		sum += c.balance(t, o.ID)
	}
	if sum != 8000 {
		t.Errorf("the accounts have %d in all, want 8000, after %d transfers", sum, done.Load())
	}
	t.Logf("%d transfers", done.Load())
}

func TestTellsThatCannotBe(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		tell := func(ctx context.Context, what string) error {
			switch what {
			case "name":
				return Tell(ctx, Object("bank/Account"), "deposit", 1)
			case "method":
				return Tell(ctx, Object("bank/account:2"), "de posit", 1)
			case "follow":
				return Tell(ctx, Object("bank/account:2"), "deposit", 1, OnFailure("nothing"))
			case "large":
				return Tell(ctx, Object("bank/account:2"), "deposit", make([]byte, maxTellBytes+1))
			}
			for range maxTells + 1 {
				if err := Tell(ctx, Object("bank/account:2"), "deposit", 1); err != nil {
					return err
				}
			}
			return nil
		}
		Method(k, "tell", func(_ *account, ctx context.Context, what string) (struct{}, error) {
			return struct{}{}, tell(ctx, what)
		})
		ReadOnly(k, "look", func(_ *account, ctx context.Context, what string) (struct{}, error) {
			return struct{}{}, tell(ctx, what)
		})
	}))
	c := dial(t, s.URL)
	for _, what := range []string{"name", "method", "follow", "large", "many"} {
		_, err := Call[struct{}](within(t, patience), c.Object("bank/account:1"), "tell", what)
		wantError(t, err, Invalid, kbroker.ExecutedYes)
	}
	_, err := Call[struct{}](within(t, patience), c.Object("bank/account:1"), "look", "many")
	wantError(t, err, Invalid, kbroker.ExecutedYes)
	if err := Tell(within(t, patience), c.Object("bank/account:1"), "deposit", 1, OnFailure("x")); err == nil {
		t.Error("OnFailure outside of a turn is no error")
	}
	if err := Tell(within(t, patience), c.Object("bank/account:1"), "deposit", 1); err != nil {
		t.Errorf("Tell from outside: %v", err)
	}
	if n := core.outbox(); n != 0 {
		t.Errorf("%d messages are stored", n)
	}
}

// A turn that fails behind its method has told nothing, and set nothing.
func TestATurnThatIsTooLargeTellsNothing(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "grow", func(a *account, ctx context.Context, _ struct{}) (struct{}, error) {
			a.Filler = strings.Repeat("x", kbroker.MaxObjectBytes+1)
			return struct{}{}, errors.Join(Tell(ctx, Object("bank/account:2"), "deposit", 1),
				SetReminder(ctx, "x", Reminder{Method: "deposit", In: 1, After: time.Hour}))
		})
	}))
	c := dial(t, s.URL)
	_, err := Call[struct{}](within(t, patience), c.Object("bank/account:1"), "grow", nil)
	wantError(t, err, kbroker.Failed, kbroker.ExecutedYes)
	if out, due, two := core.outbox(), core.dues(), c.balance(t, "2"); out != 0 || due != 0 || two != 0 {
		t.Errorf("%d messages, %d reminders, and the other account has %d: want nothing of a turn that was taken back", out, due, two)
	}
}

// Any error of the receiver's method is a refusal, and comes back once; a panic is not.
func TestAPlainErrorComesBack(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	var panicked atomic.Bool
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "send", func(_ *account, ctx context.Context, method string) (struct{}, error) {
			return struct{}{}, Tell(ctx, Object("bank/account:2"), method, 5, OnFailure("back"))
		})
		Method(k, "plain", func(*account, context.Context, int64) (struct{}, error) { return struct{}{}, fmt.Errorf("no") })
		Method(k, "panics", func(a *account, _ context.Context, cents int64) (struct{}, error) {
			if !panicked.Swap(true) {
				panic("once")
			}
			a.Cents += cents
			return struct{}{}, nil
		})
		Method(k, "back", func(a *account, _ context.Context, _ Failure) (struct{}, error) {
			a.Cents++
			return struct{}{}, nil
		})
	}))
	c := dial(t, s.URL)
	for _, method := range []string{"plain", "panics"} {
		if _, err := Call[struct{}](within(t, patience), c.Object("bank/account:1"), "send", method); err != nil {
			t.Fatal(err)
		}
	}
	core.awaitSent(t)
	if one, two := c.balance(t, "1"), c.balance(t, "2"); one != 1 || two != 5 {
		t.Errorf("the accounts have %d and %d, want 1: one came back, and 5: the other was tried again", one, two)
	}
}
