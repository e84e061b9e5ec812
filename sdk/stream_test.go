package sdk

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// count serves the numbers from 0 up to the one asked for, negative: for ever.
func count(sent *atomic.Int64, why chan<- error) func(context.Context, int, func(int) error) error {
	return func(ctx context.Context, n int, send func(int) error) error {
		for i := 0; i != n; i++ {
			if err := send(i); err != nil {
				if why != nil {
					why <- err
				}
				return err
			}
			sent.Add(1)
		}
		return nil
	}
}

func TestAStreamComesWholeAndInOrder(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	var sent atomic.Int64
	HandleStream(a, "count", count(&sent, nil))
	HandleStream(a, "half", func(_ context.Context, n int, send func(int) error) error {
		return errors.Join(send(n), Errorf("no_more", "only %d", n))
	})
	HandleStream(a, "panic", func(context.Context, int, func(int) error) error { panic("bad") })
	HandleStream(a, "large", func(_ context.Context, n int, send func([]byte) error) error {
		for range n {
			if err := send(make([]byte, 900<<10)); err != nil {
				return err
			}
		}
		return send(make([]byte, 2<<20))
	})
	Handle(a, "once", func(context.Context, struct{}) (int, error) { return 1, nil })
	start(t, a)
	echo := dial(t, s.URL).Service("echo")
	ctx := t.Context()

	next := 0
	for n, err := range Stream[int](ctx, echo, "count", 5000) {
		if err != nil || n != next {
			t.Fatalf("item %d, %v; want %d", n, err, next)
		}
		next++
	}
	if next != 5000 {
		t.Errorf("%d items, want 5000", next)
	}
	for range Stream[int](ctx, echo, "count", 0) {
		t.Error("an empty stream has an item")
	}
	items, err := collectStream(Stream[int](ctx, echo, "half", 7))
	if e := wantError(t, err, "no_more", kbroker.ExecutedYes); len(items) != 1 || items[0] != 7 || !strings.Contains(e.Message, "only 7") {
		t.Errorf("items %v and %v, want 7 and then the handler's error", items, e)
	}
	_, err = collectStream(Stream[int](ctx, echo, "panic", 7))
	wantError(t, err, kbroker.Internal, kbroker.ExecutedUnknown)
	large, err := collectStream(Stream[[]byte](ctx, echo, "large", 12))
	if wantError(t, err, kbroker.Invalid, kbroker.ExecutedUnknown); len(large) > 12 {
		t.Errorf("%d large items, want at most those before the one that is too large", len(large))
	}

	_, err = collectStream(Stream[int](ctx, echo, "count", "x"))
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedNo)
	_, err = collectStream(Stream[int](ctx, echo, "once", nil))
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedYes)
	_, err = Call[int](ctx, echo, "count", 3)
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedNo)
	_, err = collectStream(Stream[string](ctx, echo, "count", 3))
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedUnknown)
	_, err = collectStream(Stream[int](ctx, echo.client.Object("bank/account:a"), "count", 3))
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedNo)
	_, err = collectStream(Stream[int](within(t, 100*time.Millisecond), echo, "missing", 3))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stream that nobody serves: %v, want the deadline", err)
	}
}

// collectStream takes all of a stream.
func collectStream[T any](seq func(func(T, error) bool)) (items []T, err error) {
	seq(func(item T, e error) bool {
		if err = e; e == nil {
			items = append(items, item)
		}
		return true
	})
	return items, err
}

func TestASlowCallerSlowsAStream(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	var sent atomic.Int64
	why := make(chan error, 1)
	HandleStream(a, "count", count(&sent, why))
	start(t, a)

	taken := 0
	for _, err := range Stream[int](t.Context(), dial(t, s.URL).Service("echo"), "count", -1) {
		if err != nil {
			t.Fatal(err)
		}
		if taken++; taken < 100 {
			continue
		}
		wait.Until(t, patience, func() error { // until it has sent what it may
			if n := sent.Load(); n < 100 {
				return kbroker.Errorf(kbroker.Failed, "%d sent", n)
			}
			return nil
		})
		if n := sent.Load(); n > 100+streamWindow {
			t.Errorf("%d items sent, 100 taken: more than %d on their way", n, streamWindow)
		}
		break
	}
	select {
	case err := <-why:
		if !errors.Is(err, errStreamUnwanted) {
			t.Errorf("the handler's send says %v, want that the caller left", err)
		}
	case <-time.After(patience):
		t.Error("the handler was not told that the caller left")
	}
}

func TestAStreamEndsWithItsInstance(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1", Grace(50*time.Millisecond))
	HandleStream(a, "tail", func(ctx context.Context, _ struct{}, send func(int) error) error {
		if err := send(1); err != nil {
			return err
		}
		<-ctx.Done()
		return nil // a handler that takes it for a good end
	})
	r := start(t, a)
	var items []int
	for item, err := range Stream[int](t.Context(), dial(t, s.URL).Service("echo"), "tail", nil) {
		if err != nil {
			wantError(t, err, kbroker.Unavailable, kbroker.ExecutedUnknown)
			break
		}
		items = append(items, item)
		r.stop()
	}
	if err := r.ended(t); err != nil || len(items) != 1 {
		t.Errorf("Run: %v, items %v; want a drain and one item", err, items)
	}
}

func TestAStreamWithoutASDK(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	var sent atomic.Int64
	why := make(chan error, 1)
	HandleStream(a, "count", count(&sent, why))
	start(t, a)
	nc := s.Connect(t)
	ask := func(n string) *nats.Subscription {
		inbox := nc.NewInbox()
		sub, err := nc.SubscribeSync(inbox)
		if err != nil {
			t.Fatal(err)
		}
		m := &nats.Msg{Subject: subjects.Method("echo", "echo", "count"), Reply: inbox, Header: nats.Header{subjects.HeaderStream: {"2"}}, Data: []byte(n)}
		if err := nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		return sub
	}

	sub := ask("20")
	var items []string
	for {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatalf("after %v: %v", items, err)
		}
		what := m.Header.Get(subjects.HeaderStream)
		if strings.HasPrefix(what, "item ") {
			items = append(items, string(m.Data))
		}
		if what == "end 20" {
			break
		}
		if err := m.Respond(nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(items) != 20 || items[19] != "19" {
		t.Errorf("items %v, want 0 to 19", items)
	}

	ask("-1") // and never say anything
	wait.Until(t, patience, func() error {
		st := a.methods[0].streams
		st.mu.Lock()
		defer st.mu.Unlock()
		for _, p := range st.running {
			p.mu.Lock()
			p.heard = p.heard.Add(-time.Minute) // rather than wait
			p.mu.Unlock()
			return nil
		}
		return kbroker.Errorf(kbroker.Failed, "no stream runs")
	})
	select {
	case err := <-why:
		if !errors.Is(err, errStreamSilent) {
			t.Errorf("send says %v, want that the caller is silent", err)
		}
	case <-time.After(patience):
		t.Error("a stream of a dead caller goes on")
	}
	if n := sent.Load(); n != 22 {
		t.Errorf("%d items sent, want 20 and 2 that were not taken", n)
	}
}

// TestWhatAStreamLacks plays messages to a caller's side.
func TestWhatAStreamLacks(t *testing.T) {
	const prefix = "svc.echo.echo.count."
	message := func(what, data string) *nats.Msg {
		return &nats.Msg{Header: nats.Header{subjects.HeaderStream: {what}}, Reply: prefix + "p.s.0", Data: []byte(data)}
	}
	soon, late := time.Now(), time.Now().Add(2*streamBeat)
	for _, tt := range []struct {
		name string
		in   []*nats.Msg
		want string // items
		code kbroker.Code
	}{
		{"in order", []*nats.Msg{message("alive 0", ""), message("item 1", "a"), message("item 2", "b"), message("end 2", "")}, "ab", ""},
		{"twice and out of order", []*nats.Msg{message("item 2", "b"), message("end 3", ""), message("item 1", "a"), message("item 2", "b"), message("item 3", "c"), message("item 1", "a")}, "abc", ""},
		{"a gap", []*nats.Msg{message("item 1", "a"), message("item 3", "c"), message("end 3", "")}, "a", kbroker.Unavailable},
		{"the last item is lost", []*nats.Msg{message("item 1", "a"), message("alive 2", "")}, "a", kbroker.Unavailable},
		{"the last is lost before the end", []*nats.Msg{message("item 1", "a"), message("end 2", "")}, "a", kbroker.Unavailable},
		{"too many", []*nats.Msg{message("item 65", "x")}, "", kbroker.Internal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := &published{}
			b := newStreamBuffer(Service("echo"), "count", prefix, out)
			for _, m := range tt.in {
				b.deliver(1, m)
			}
			var got bytes.Buffer
			var err error
			for now, over := soon, false; !over; {
				var item *nats.Msg
				if item, over, err = b.next(now); item != nil {
					got.Write(item.Data)
					continue
				}
				if !over && now.Equal(late) {
					t.Fatal("it is not over")
				}
				now = late
			}
			if got.String() != tt.want {
				t.Errorf("items %q, want %q", got.String(), tt.want)
			}
			if tt.code == "" && err != nil || tt.code != "" && !errors.Is(err, tt.code) {
				t.Errorf("error %v, want %q", err, tt.code)
			}
		})
	}

	b := newStreamBuffer(Service("echo"), "count", prefix, &published{})
	b.deliver(1, message("item 1", "a"))
	if item, _, err := b.next(soon); item == nil || err != nil {
		t.Fatalf("%v, %v; want an item", item, err)
	}
	if _, over, err := b.next(time.Now().Add(streamSilence + time.Second)); !over || !errors.Is(err, kbroker.Unavailable) {
		t.Errorf("after the silence of who serves it: %v, %v; want Unavailable", over, err)
	}

	out := &published{}
	b = newStreamBuffer(Service("echo"), "count", prefix, out)
	m := message("alive 0", "")
	m.Reply = "svc.bank.bank.withdraw.p.s.0"
	b.deliver(1, m)
	if len(out.all) != 0 {
		t.Errorf("%q was sent: who serves a stream has its caller speak to others", out.all[0].Subject)
	}
}

// published is a transport that keeps what is published.
type published struct {
	transport
	all []*nats.Msg
}

func (p *published) publish(m *nats.Msg) error {
	p.all = append(p.all, m)
	return nil
}
