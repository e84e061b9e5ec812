package sdk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// listener keeps what was heard.
type listener struct {
	mu  sync.Mutex
	all []int
}

func (e *listener) hear(_ context.Context, n int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, n)
	return nil
}

func (e *listener) heard() []int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.all)
}

func TestEventsAreHeard(t *testing.T) {
	s := natstest.Start(t)
	var each, shared [2]listener
	var apps [2]*running
	for i := range apps {
		a := newApp(s.URL, fmt.Sprintf("echo-echo-%d", i+1))
		Subscribe(a, "echo/orders", each[i].hear)
		Subscribe(a, "echo/payments", shared[i].hear, Shared())
		Subscribe(a, "echo/odd", func(_ context.Context, n int) error { panic(n) })
		Handle(a, "sell", func(ctx context.Context, n int) (int, error) {
			return n, errors.Join(Publish(ctx, "odd", n), Publish(ctx, "odd", "no number"), Publish(ctx, "orders", n), Publish(ctx, "payments", n))
		})
		apps[i] = start(t, a)
	}
	c := dial(t, s.URL)
	var want []int
	for n := range 50 {
		if _, err := Call[int](t.Context(), c.Service("echo"), "sell", n); err != nil {
			t.Fatal(err)
		}
		want = append(want, n)
	}
	wait.Until(t, patience, func() error {
		all := append(shared[0].heard(), shared[1].heard()...)
		slices.Sort(all)
		for i := range each {
			got := each[i].heard() // of two publishers
			slices.Sort(got)
			if !slices.Equal(got, want) || !slices.Equal(all, want) {
				return kbroker.Errorf(kbroker.Failed, "heard %v and, shared, %v", got, all)
			}
		}
		return nil
	})
}

func TestEventsOfASlowHandlerWaitOrAreDropped(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1", Grace(5*time.Second))
	begun, free := make(chan struct{}), make(chan struct{})
	var all listener
	Subscribe(a, "echo/orders", func(ctx context.Context, n int) error {
		if n == 0 {
			close(begun)
			<-free
		}
		return all.hear(ctx, n)
	})
	r := start(t, a)
	nc := s.Connect(t)
	for n := range maxWaitingEvents + 100 {
		if err := nc.PublishMsg(&nats.Msg{Subject: subjects.Topic("echo", "orders"), Data: fmt.Append(nil, n)}); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			<-begun
		}
	}
	wait.Until(t, patience, func() error {
		a.topics[0].mu.Lock()
		defer a.topics[0].mu.Unlock()
		if a.topics[0].dropped != 99 {
			return kbroker.Errorf(kbroker.Failed, "%d events dropped, want 99", a.topics[0].dropped)
		}
		return nil
	})
	r.stop()
	close(free)
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	got := all.heard()
	if len(got) != maxWaitingEvents+1 || !slices.IsSorted(got) {
		t.Errorf("%d events in order %t, want the first %d, as what waits is done before the app ends", len(got), slices.IsSorted(got), maxWaitingEvents+1)
	}
}

func TestEventsThatCannotBe(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	Handle(a, "say", func(ctx context.Context, topic string) (int, error) {
		event := any(1)
		switch topic {
		case "large":
			event = make([]byte, maxEventBytes+1)
		case "odd":
			event = func() {}
		}
		return 0, Publish(ctx, topic, event)
	})
	start(t, a)
	c := dial(t, s.URL)
	for topic, want := range map[string]string{"No Name": "topic name", "": "topic name", "large": "at most", "odd": "odd"} {
		_, err := Call[int](t.Context(), c.Service("echo"), "say", topic)
		if !errors.Is(err, Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("topic %q: %v, want an invalid one with %q", topic, err, want)
		}
	}
	for _, name := range []string{"orders", "echo/", "/x", "echo/a/b", "echo/*"} {
		b := newApp(s.URL, "echo-echo-2")
		Subscribe(b, name, new(listener).hear)
		if err := b.Run(t.Context()); !errors.Is(err, Invalid) {
			t.Errorf("subscription of %q: Run says %v, want Invalid", name, err)
		}
	}
	b := newApp(s.URL, "echo-echo-2")
	Subscribe(b, "echo/orders", new(listener).hear)
	Subscribe(b, "echo/orders", new(listener).hear)
	if err := b.Run(t.Context()); !errors.Is(err, Invalid) || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a topic twice: %v", err)
	}
}

func TestATopicThatMustNotBeHeardEndsTheApp(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	Subscribe(a, "shop/orders", new(listener).hear)
	r := start(t, a)
	subject, ok := refusedSubscription(fmt.Errorf("%w: %s", nats.ErrPermissionViolation, `Permissions Violation for Subscription to "evt.shop.orders" using queue "echo_echo"`))
	if !ok {
		t.Fatal("it is no refusal")
	}
	a.client.refuse(subject)
	err := r.ended(t)
	if e := kbroker.AsError(err); e.Code != Refused || !strings.Contains(e.Hint, "subscribes: [shop/orders]") {
		t.Errorf("Run: %v (hint %q), want Refused, and what to write", err, e.Hint)
	}
}

func TestEventsOfATurnLeaveWhenItIsStored(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	heard := make(chan string, 10)
	nc := s.Connect(t)
	if _, err := nc.Subscribe(subjects.Topic("bank", "*"), func(m *nats.Msg) { heard <- string(m.Data) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "say", func(a *account, ctx context.Context, n int) (int, error) {
			for i := range max(n, 1) {
				if err := Publish(ctx, "said", n+i); err != nil {
					return 0, err
				}
			}
			if n < 0 {
				return 0, Errorf("no", "not now")
			}
			return n, nil
		})
	}))
	c := dial(t, s.URL)
	say := func(n int) error {
		_, err := Call[int](within(t, patience), c.Object("bank/account:1"), "say", n)
		return err
	}
	wantError(t, say(-1), "no", kbroker.ExecutedYes)
	wantError(t, say(maxTurnEvents+1), Invalid, kbroker.ExecutedYes)
	if err := say(2); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2", "3"} {
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("event %s, want %s: turns that failed say nothing", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("event %s was not heard", want)
		}
	}
}
