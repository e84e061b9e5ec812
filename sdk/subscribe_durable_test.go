package sdk

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// paid is an event of the bank's topic payments.
type paid struct {
	To    string
	Cents int64
}

func sub(id string) kbroker.Object { return kbroker.Object{Kind: subscriptionKind, ID: id} }

// posting has accounts that subscribe to payments, and publish them.
func posting(opts ...DurableOption) func(*Kind[account]) {
	return func(k *Kind[account]) {
		SubscribeObject(k, "bank/payments", func(p paid) string { return p.To }, "post", opts...)
		Method(k, "post", func(a *account, _ context.Context, p paid) (int64, error) {
			if p.Cents == 13 {
				return 0, Errorf("unlucky", "not that many")
			}
			a.Cents += p.Cents
			a.Filler += fmt.Sprintf("%d ", p.Cents)
			return a.Cents, nil
		})
		ReadOnly(k, "posted", func(a *account, _ context.Context, _ struct{}) (string, error) { return a.Filler, nil })
		Method(k, "pay", func(a *account, ctx context.Context, p paid) (int64, error) {
			a.Cents -= p.Cents
			if err := PublishDurable(ctx, "payments", p); err != nil {
				return 0, err
			}
			if p.Cents == 99 {
				return 0, Errorf("failed", "after it was published")
			}
			return a.Cents, nil
		})
	}
}

// subscribing is a bank whose spec names subscriptions.
func subscribing(url, name string, change func(*Kind[account]), opts ...any) *App {
	a := bank(url, name, change, opts...)
	a.identity.Objects = append(a.identity.Objects, subscriptionKind)
	return a
}

func (c *Client) posted(t *testing.T, id string) string {
	t.Helper()
	got, err := Call[string](within(t, 5*time.Second), c.Object("bank/account:"+id), "posted", nil)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(got)
}

func (c *Client) awaitPosted(t *testing.T, id, want string) {
	t.Helper()
	wait.Until(t, patience, func() error {
		if got := c.posted(t, id); got != want {
			return fmt.Errorf("%s was posted %q, want %q", id, got, want)
		}
		return nil
	})
}

func cursorOf(t *testing.T, core *core, id string) *topicCursor {
	t.Helper()
	state, err := loadState[topicCursor](core.record(sub(id)).State)
	if err != nil {
		t.Fatal(err)
	}
	return state.(*topicCursor)
}

// Events that turns publish, and others, come to the objects of their keys once, in order; one
// that is refused, or is no such event, is passed by, and the state of the subscription says so.
func TestEventsComeToTheObjectsOfTheirKeys(t *testing.T) {
	s := natstest.Start(t)
	core, topics := newCore(t, s), newTopics(t, s.Connect(t))
	core.give(incarnation("a"), acc("1"), acc("2"), sub("bank/payments"))
	topics.publishAll("bank.payments", paid{"2", 1}, "no payment", paid{"", 5})
	topics.publishAll("bank.other", 1, 2, 3)
	start(t, subscribing(s.URL, "a", posting()))
	c := dial(t, s.URL)
	for _, cents := range []int64{2, 13, 3, 99, 4} {
		_, err := Call[int64](within(t, patience), c.Object("bank/account:1"), "pay", paid{"2", cents})
		if cents == 99 {
			wantError(t, err, "failed", kbroker.ExecutedYes)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	c.awaitPosted(t, "2", "1 2 3 4")
	core.awaitSent(t)
	if n := topics.count("bank.payments"); n != 7 {
		t.Errorf("%d events are stored, want 7: none of a turn that failed", n)
	}
	topics.mu.Lock()
	if topics.told != 3 {
		t.Errorf("of %d events the sender has said where its last one is, want 3: all but the first", topics.told)
	}
	topics.mu.Unlock()
	if is := cursorOf(t, core, "bank/payments"); is.Events != 7 || is.PassedBy != 2 || is.After != 10 || is.Missed != 0 {
		t.Errorf("the subscription is %+v, want 7 events, 2 passed by, up to 10", is)
	}
}

// Whoever owns the subscription, nobody has to call it; and what one owner has read, the next
// does not read again: not if the answer to a batch with it is lost either.
func TestASubscriptionGoesOnWithItsOwner(t *testing.T) {
	s := natstest.Start(t)
	core, topics := newCore(t, s), newTopics(t, s.Connect(t))
	core.give(incarnation("a"), acc("2"), sub("bank/payments"))
	var batches atomic.Int64
	core.silently(func(w []kbroker.Write) int {
		if key := subjects.ParseOwnKey(w[0].Key); key.Table == subjects.OwnOut && w[0].Value != nil && key.Object.Kind == subscriptionKind && batches.Add(1) == 2 {
			return unanswered
		}
		return 0
	})
	start(t, subscribing(s.URL, "a", posting()))
	start(t, subscribing(s.URL, "b", posting()))
	c := dial(t, s.URL)
	var want []string
	for n := range 60 {
		topics.publishAll("bank.payments", paid{"2", int64(100 + n)})
		topics.announce("bank", "payments")
		want = append(want, fmt.Sprint(100+n))
		switch n {
		case 20:
			core.move(incarnation("b"), sub("bank/payments"))
		case 40:
			core.give(incarnation("a"), sub("bank/payments"))
			core.give(incarnation("a"), acc("2"))
		}
	}
	c.awaitPosted(t, "2", strings.Join(want, " "))
}

func TestASubscriptionThatIsBehindSaysSo(t *testing.T) {
	s := natstest.Start(t)
	core, topics := newCore(t, s), newTopics(t, s.Connect(t))
	core.give(incarnation("a"), acc("2"), sub("bank/payments"), sub("bank/payments/now"))
	topics.publishAll("bank.payments", paid{"2", 1}, paid{"2", 2}, paid{"2", 3})
	topics.drop(1)
	with := func(k *Kind[account]) {
		posting()(k)
		SubscribeObject(k, "bank/payments", func(p paid) string { return "now" }, "post", FromNow(), Named("now"))
	}
	core.give(incarnation("a"), acc("now"))
	first := start(t, subscribing(s.URL, "a", with))
	c := dial(t, s.URL)
	c.awaitPosted(t, "2", "2 3")
	wait.Until(t, patience, func() error {
		if is := cursorOf(t, core, "bank/payments/now"); !is.Begun {
			return fmt.Errorf("not begun: %+v", is)
		}
		return nil
	})
	topics.publishAll("bank.payments", paid{"2", 4})
	topics.announce("bank", "payments")
	c.awaitPosted(t, "2", "2 3 4")
	c.awaitPosted(t, "now", "4")
	if is := cursorOf(t, core, "bank/payments"); is.Missed != 0 {
		t.Errorf("a new subscription has missed %d events", is.Missed)
	}
	first.stop()
	topics.publishAll("bank.payments", paid{"2", 5}, paid{"2", 6})
	topics.drop(5)
	core.give(incarnation("b"), acc("2"), acc("now"), sub("bank/payments"), sub("bank/payments/now"))
	start(t, subscribing(s.URL, "b", with))
	c.awaitPosted(t, "2", "2 3 4 6")
	c.awaitPosted(t, "now", "4 6")
	if is := cursorOf(t, core, "bank/payments"); is.Missed != 1 {
		t.Errorf("the subscription has missed %d events, want 1", is.Missed)
	}
	topics.publishAll("bank.other", 7, 8, 9)
	topics.drop(8)
	looked := func() { // by both
		t.Helper()
		before := topics.reads()
		topics.announce("bank", "payments")
		wait.Until(t, patience, func() error {
			if n := topics.reads() - before; n < 2 {
				return fmt.Errorf("%d looks", n)
			}
			return nil
		})
	}
	looked()
	looked() // what is missed is counted once
	if is := cursorOf(t, core, "bank/payments"); is.Missed != 3 || is.After != 8 {
		t.Errorf("the subscription is %+v, want one that has missed 3 at most, up to 8", is)
	}
	topics.begin()
	looked()
	topics.publishAll("bank.payments", paid{"2", 7}) // which nobody is told: it looks all the same
	c.awaitPosted(t, "2", "2 3 4 6 7")
}

// A handler is called until it has taken an event, or refuses it for good.
func TestADurableHandlerIsCalledUntilItTakesTheEvent(t *testing.T) {
	s := natstest.Start(t)
	core, topics := newCore(t, s), newTopics(t, s.Connect(t))
	core.give(incarnation("a"), sub("bank/payments"))
	var handled listener
	var failed, most, now atomic.Int64
	serve := func(a *App) *App {
		SubscribeDurable(a, "bank/payments", func(ctx context.Context, p paid) error {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			switch {
			case p.Cents == 13:
				return Errorf(Invalid, "not that many")
			case p.Cents%7 == 0 && failed.Add(1) < 5:
				return fmt.Errorf("not now")
			case p.Cents%11 == 0 && failed.Add(1) == 7:
				panic("not now")
			}
			return handled.hear(ctx, int(p.Cents))
		}, AtOnce(3))
		a.identity.Objects = append(a.identity.Objects, subscriptionKind)
		return a
	}
	var want []int
	for n := range 100 {
		topics.publishAll("bank.payments", paid{"x", int64(n)})
		if n != 13 {
			want = append(want, n)
		}
	}
	start(t, serve(bank(s.URL, "a", nil)))
	start(t, serve(bank(s.URL, "b", nil)))
	wait.Until(t, patience, func() error {
		got := handled.heard()
		if slices.Sort(got); !slices.Equal(slices.Compact(got), want) {
			return fmt.Errorf("handled are %v", got)
		}
		return nil
	})
	core.awaitSent(t)
	if is := cursorOf(t, core, "bank/payments"); is.Events != 100 || is.PassedBy != 1 {
		t.Errorf("the subscription is %+v, want 100 events and 1 passed by", is)
	}
	if most.Load() > 3 {
		t.Errorf("%d events were handled at a time, want 3 at most", most.Load())
	}
}

// A subscription whose receivers do not take events reads no more of them than it may hold.
func TestASubscriptionWaitsForItsReceivers(t *testing.T) {
	s := natstest.Start(t)
	core, topics := newCore(t, s), newTopics(t, s.Connect(t))
	core.give(incarnation("a"), acc("2"), sub("bank/payments"))
	const all = maxForwarded + 5*lookEvents
	for range all {
		topics.publishAll("bank.payments", paid{"2", 1})
	}
	var open atomic.Bool
	start(t, subscribing(s.URL, "a", func(k *Kind[account]) {
		SubscribeObject(k, "bank/payments", func(p paid) string { return p.To }, "take")
		Method(k, "take", func(a *account, _ context.Context, _ paid) (struct{}, error) {
			if !open.Load() {
				return struct{}{}, Errorf(kbroker.Unavailable, "not now")
			}
			a.Cents++
			return struct{}{}, nil
		})
	}))
	c := dial(t, s.URL)
	wait.Until(t, patience, func() error {
		if n := core.outbox(); n < maxForwarded {
			return fmt.Errorf("%d messages wait, want %d or some more", n, maxForwarded)
		}
		return nil
	})
	<-time.After(3 * tickEvery)
	if n := core.outbox(); n >= maxForwarded+lookEvents {
		t.Errorf("%d messages wait, want less than %d", n, maxForwarded+lookEvents)
	}
	open.Store(true)
	wait.Until(t, 6*patience, func() error {
		if got := c.balance(t, "2"); got != all {
			return fmt.Errorf("%d events were taken, want %d", got, all)
		}
		return nil
	})
}

func TestDurableSubscriptionsThatCannotBe(t *testing.T) {
	s := natstest.Start(t)
	for what, c := range map[string]struct {
		declare func(*App, *Kind[account])
		want    string
	}{
		"a name without a slash": {func(_ *App, k *Kind[account]) {
			SubscribeObject(k, "payments", func(p paid) string { return p.To }, "deposit")
		}, "app/topic"},
		"a method that there is not": {func(_ *App, k *Kind[account]) {
			SubscribeObject(k, "bank/payments", func(p paid) string { return p.To }, "missing")
		}, "no Method"},
		"a method that only reads": {func(_ *App, k *Kind[account]) {
			SubscribeObject(k, "bank/payments", func(p paid) string { return p.To }, "balance")
		}, "no Method"},
		"two of one name": {func(a *App, k *Kind[account]) {
			SubscribeObject(k, "bank/payments", func(p paid) string { return p.To }, "deposit")
			SubscribeDurable(a, "bank/payments", func(context.Context, paid) error { return nil })
		}, "two durable subscriptions"},
		"none at once": {func(a *App, _ *Kind[account]) {
			SubscribeDurable(a, "bank/payments", func(context.Context, paid) error { return nil }, AtOnce(0))
		}, "0 events at once"},
		"the kind of subscriptions": {func(a *App, _ *Kind[account]) { Objects[account](a, "subscription") }, "durable subscriptions"},
	} {
		t.Run(what, func(t *testing.T) {
			var k *Kind[account]
			a := subscribing(s.URL, "a", func(of *Kind[account]) { k = of })
			c.declare(a, k)
			wantMessage(t, a.Run(t.Context()), c.want)
		})
	}
	undeclared := bank(s.URL, "a", posting())
	wantMessage(t, undeclared.Run(t.Context()), "its spec does not name")
}

func wantMessage(t *testing.T, err error, part string) {
	t.Helper()
	e := kbroker.AsError(err)
	if err == nil || !strings.Contains(e.Message+e.Hint, part) {
		t.Errorf("Run returns %v, want %q", err, part)
	}
}
