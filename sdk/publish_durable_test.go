package sdk

import (
	"context"
	"encoding/json"
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

// What a core has not answered, or not taken, is published again, and there once.
func TestAnEventIsStoredOnce(t *testing.T) {
	s := natstest.Start(t)
	core, topics := newCore(t, s), newTopics(t, s.Connect(t))
	core.give(incarnation("a"), acc("1"), acc("2"), acc("3"), sub("bank/payments"))
	var n atomic.Int64
	topics.silently(func(verb string) int {
		if verb != subjects.VerbTopicPublish {
			return 0
		}
		return map[int64]int{1: unanswered, 2: lostBefore}[n.Add(1)]
	})
	start(t, subscribing(s.URL, "a", posting()))
	c := dial(t, s.URL)
	for _, p := range []struct {
		id    string
		cents int64
	}{{"1", 1}, {"3", 30}, {"1", 2}, {"3", 40}} {
		if _, err := Call[int64](within(t, patience), c.Object("bank/account:"+p.id), "pay", paid{"2", p.cents}); err != nil {
			t.Fatal(err)
		}
	}
	core.awaitSent(t)
	wait.Until(t, patience, func() error {
		if got := c.balance(t, "2"); got != 73 {
			return fmt.Errorf("the account has %d, want 73", got)
		}
		return nil
	})
	all := strings.Fields(c.posted(t, "2"))
	if slices.Index(all, "1") > slices.Index(all, "2") || slices.Index(all, "30") > slices.Index(all, "40") {
		t.Errorf("posted are %s: those of one account are not in their order", all)
	}
	if n := topics.count("bank.payments"); n != 4 {
		t.Errorf("%d events are stored, want 4", n)
	}
}

func TestPublishDurableFromOutside(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	topics := newTopics(t, s.Connect(t))
	a := newApp(s.URL, "echo-echo-1")
	var failed atomic.Pointer[error]
	Handle(a, "sell", func(ctx context.Context, n int) (int, error) {
		err := PublishDurable(ctx, "orders", n)
		if err != nil {
			failed.Store(&err)
		}
		return n, err
	})
	var heard listener
	Subscribe(a, "echo/orders", heard.hear)
	start(t, a)
	c := dial(t, s.URL)
	var n atomic.Int64
	topics.silently(func(string) int {
		if n.Add(1)%10 == 0 {
			return unanswered
		}
		return 0
	})
	done := make(chan error, 40)
	for i := range 40 {
		go func() {
			_, err := Call[int](within(t, patience), c.Service("echo"), "sell", i, Timeout(patience))
			done <- err
		}()
	}
	for range 40 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if n := topics.count("echo.orders"); n != 40 {
		t.Errorf("%d events are stored, want 40", n)
	}
	topics.mu.Lock()
	senders := len(topics.of)
	topics.mu.Unlock()
	if senders > maxSenders {
		t.Errorf("one process is %d senders, want %d at most", senders, maxSenders)
	}
	wait.Until(t, patience, func() error {
		if got := heard.heard(); len(got) != 40 {
			return fmt.Errorf("%d were heard", len(got))
		}
		return nil
	})
	topics.silently(func(string) int { return lostBefore })
	_, _ = Call[int](within(t, patience), c.Service("echo"), "sell", 1, Timeout(300*time.Millisecond)) // its error, or none in time
	wait.Until(t, patience, func() error {
		if failed.Load() == nil {
			return fmt.Errorf("no error of what no core has stored")
		}
		return nil
	})
	wantError(t, *failed.Load(), kbroker.Unavailable, kbroker.ExecutedUnknown)
}

// A build that knows no topics cannot read a message to one: otherwise it would take it for the
// call of a service without a name, and refuse it.
func TestAnOlderBuildLeavesEventsInTheOutbox(t *testing.T) {
	m := &tell{To: receiver{topic: "payments"}, At: time.Now(), data: []byte("1")}
	head, _, _ := strings.Cut(string(m.encode()), "\n")
	var older struct {
		To     string `json:"to"`
		Method string `json:"method"`
	}
	if err := json.Unmarshal([]byte(head), &older); err == nil {
		t.Errorf("it reads %s as %+v", head, older)
	}
	if got, err := decodeTell(m.encode()); err != nil || got.To != m.To || string(got.data) != "1" {
		t.Errorf("this one reads %+v, %v", got, err)
	}
	call := &tell{To: receiver{name: "bank/account:1"}, Method: "deposit"}
	if got, err := decodeTell(call.encode()); err != nil || got.To != call.To {
		t.Errorf("of a call it reads %+v, %v", got, err)
	}
}
