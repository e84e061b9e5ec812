package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestWhichSubjectWasRefused(t *testing.T) {
	for text, want := range map[string]string{
		`Permissions Violation for Publish to "svc.shop.web.get"`: "svc.shop.web.get",
		`Permissions Violation for Subscription to "svc.>"`:       "",
		"something else": "",
	} {
		got, ok := refusedSubject(fmt.Errorf("%w: %s", nats.ErrPermissionViolation, text))
		if got != want || ok != (want != "") {
			t.Errorf("%s: %q, %t; want %q", text, got, ok, want)
		}
	}
	if _, ok := refusedSubject(errors.New(`Permissions Violation for Publish to "svc.a.b.c"`)); ok {
		t.Error("an error of another kind is a refusal")
	}
}

// TestACallThatIsNotAllowedEndsAtOnce, and no other.
func TestACallThatIsNotAllowedEndsAtOnce(t *testing.T) {
	b := newBus()
	refused := make(chan func(string), 1)
	client := newClient(slog.New(slog.DiscardHandler), func(_ context.Context, events connEvents) (transport, error) {
		refused <- events.refused
		return b.connect(events), nil
	})
	t.Cleanup(client.Close)
	server := b.connect(connEvents{})
	for _, method := range []string{"a", "b"} { // which answer nothing
		if _, err := server.subscribe(subjects.Method("shop", "web", method), "", func(*nats.Msg) {}); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	ended := make(chan error, 1)
	go func() {
		_, err := Call[string](t.Context(), client.Service("shop/web"), "b", "x", Timeout(300*time.Millisecond))
		ended <- err
	}()
	go func() {
		for client.Stats().Calls < 2 {
			<-time.After(time.Millisecond)
		}
		<-time.After(20 * time.Millisecond) // both are sent
		(<-refused)(subjects.Method("shop", "web", "a"))
	}()
	_, err := Call[string](t.Context(), client.Service("shop/web"), "a", "x", Timeout(10*time.Second))
	if e := kbroker.AsError(err); e.Code != kbroker.Refused || e.Executed != kbroker.ExecutedNo || e.Hint == "" || time.Since(began) > 2*time.Second {
		t.Errorf("after %v: %v, executed %s", time.Since(began), err, e.Executed)
	}
	if e := kbroker.AsError(<-ended); e.Code != kbroker.Unavailable {
		t.Errorf("the call that is allowed: %v", e)
	}
}

// TestWhatAnEarlierAttemptHasDoneIsNotKnown: an allocator that refuses an allocation has not
// executed that, but one before it was not answered.
func TestWhatAnEarlierAttemptHasDoneIsNotKnown(t *testing.T) {
	for _, silent := range []bool{false, true} {
		b := newBus()
		client := newClient(slog.New(slog.DiscardHandler), func(_ context.Context, events connEvents) (transport, error) {
			return b.connect(events), nil
		})
		t.Cleanup(client.Close)
		asked, wire := 0, b.connect(connEvents{})
		if _, err := wire.subscribe(subjects.Placing(kbroker.DefaultTenant, "rooms", subjects.VerbAllocate), "", func(m *nats.Msg) {
			if asked++; silent && asked == 1 {
				return
			}
			e := kbroker.Errorf(kbroker.Overloaded, "too many wait")
			e.Executed = kbroker.ExecutedNo
			if err := wire.publish(errorReply(m.Reply, nil, e)); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*allocateAttempt)
		_, err := client.Allocate(ctx, "rooms/room:1")
		cancel()
		want := map[bool]kbroker.Executed{false: kbroker.ExecutedNo, true: kbroker.ExecutedUnknown}[silent]
		if e := kbroker.AsError(err); e.Code != kbroker.Overloaded || e.Executed != want {
			t.Errorf("%v, executed %s, want %s", err, e.Executed, want)
		}
	}
}

// TestAnAllocationThatIsNotAllowedEndsAtOnce, and says what would allow it.
func TestAnAllocationThatIsNotAllowedEndsAtOnce(t *testing.T) {
	b := newBus()
	refused := make(chan func(string), 1)
	client := newClient(slog.New(slog.DiscardHandler), func(_ context.Context, events connEvents) (transport, error) {
		refused <- events.refused
		return b.connect(events), nil
	})
	t.Cleanup(client.Close)
	subject := subjects.Placing(kbroker.DefaultTenant, "rooms", subjects.VerbAllocate)
	asked := make(chan struct{}, 10)
	if _, err := b.connect(connEvents{}).subscribe(subject, "", func(*nats.Msg) { asked <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	go func() {
		refuse := <-refused
		<-asked
		refuse(subjects.Method("shop", "web", "a")) // of another one
		<-asked
		refuse(subject)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := client.Allocate(ctx, "rooms/room:1")
	if e := kbroker.AsError(err); !errors.Is(err, kbroker.Refused) || e.Executed != kbroker.ExecutedUnknown || e.Hint == "" || ctx.Err() != nil {
		t.Errorf("%v, want Refused with a hint, at once; the first attempt was not answered", err)
	}
}
