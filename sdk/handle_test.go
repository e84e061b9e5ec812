package sdk

import (
	"context"
	"errors"
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

type greet struct {
	Name string `json:"name"`
}

type greeting struct {
	Text string `json:"text"`
}

func TestACallIsAnswered(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	Handle(a, "greet", func(_ context.Context, in greet) (greeting, error) { return greeting{"Hello, " + in.Name + "!"}, nil })
	Handle(a, "raw", func(_ context.Context, in []byte) ([]byte, error) {
		return append([]byte("<"), append(in, '>')...), nil
	})
	Handle(a, "id", func(ctx context.Context, _ struct{}) (string, error) { return RequestIDOf(ctx), nil })
	Handle(a, "left", func(ctx context.Context, _ struct{}) (time.Duration, error) {
		deadline, _ := ctx.Deadline()
		return time.Until(deadline), nil
	})
	Handle(a, "nested", func(ctx context.Context, in greet) (greeting, error) {
		return Call[greeting](ctx, Service("echo"), "greet", in) // over the app's own connection
	})
	start(t, a)
	c := dial(t, s.URL)
	ctx := t.Context()

	if out, err := Call[greeting](ctx, c.Service("echo"), "greet", greet{"Ann"}); err != nil || out.Text != "Hello, Ann!" {
		t.Errorf("greet: %+v, %v; want Hello, Ann!", out, err)
	}
	if out, err := Call[[]byte](ctx, c.Service("echo/echo"), "raw", []byte("\x00{")); err != nil || string(out) != "<\x00{>" {
		t.Errorf("raw: %q, %v; want the bytes as they are", out, err)
	}
	if out, err := Call[greeting](ctx, c.Service("echo"), "nested", greet{"Bob"}); err != nil || out.Text != "Hello, Bob!" {
		t.Errorf("nested: %+v, %v; want Hello, Bob!", out, err)
	}
	if out, err := Call[string](ctx, c.Service("echo"), "id", struct{}{}, RequestID("mine:7")); err != nil || out != "mine:7" {
		t.Errorf("id: %q, %v; want mine:7", out, err)
	}
	if out, err := Call[string](ctx, c.Service("echo"), "id", struct{}{}); err != nil || !strings.HasPrefix(out, c.session+":") {
		t.Errorf("id: %q, %v; want one of session %s", out, err, c.session)
	}
	if out, err := Call[time.Duration](within(t, 2*time.Second), c.Service("echo"), "left", struct{}{}); err != nil || out > 2*time.Second || out < time.Second {
		t.Errorf("left: %v, %v; want the caller's two seconds", out, err)
	}
	if out, err := Call[time.Duration](ctx, c.Service("echo"), "left", struct{}{}); err != nil || out > DefaultTimeout || out < DefaultTimeout/2 {
		t.Errorf("left: %v, %v; want the default of %v", out, err, DefaultTimeout)
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	Handle(a, "fail", func(_ context.Context, kind string) (string, error) {
		switch kind {
		case "typed":
			return "", Errorf("no_funds", "balance is %d", 3).WithHint("deposit first\nthen again")
		case "code":
			return "", NotFound
		case "plain":
			return "", errors.New("disk is full")
		}
		panic("bad kind " + kind)
	})
	Handle(a, "huge", func(context.Context, struct{}) ([]byte, error) { return make([]byte, 2<<20), nil })
	start(t, a)
	target := dial(t, s.URL).Service("echo")
	ctx := t.Context()

	_, err := Call[string](ctx, target, "fail", "typed")
	e := wantError(t, err, "no_funds", kbroker.ExecutedYes)
	if e.Message != "balance is 3" || e.Hint != "deposit first\nthen again" {
		t.Errorf("error %+v, want message and hint of the handler", e)
	}
	_, err = Call[string](ctx, target, "fail", "code")
	wantError(t, err, kbroker.NotFound, kbroker.ExecutedYes)
	if !errors.Is(err, kbroker.NotFound) {
		t.Errorf("errors.Is(%v, NotFound) is false", err)
	}
	_, err = Call[string](ctx, target, "fail", "plain")
	if e := wantError(t, err, kbroker.Internal, kbroker.ExecutedYes); e.Message != "disk is full" {
		t.Errorf("message %q, want that of the handler's error", e.Message)
	}
	_, err = Call[string](ctx, target, "fail", "panic")
	if e := wantError(t, err, kbroker.Internal, kbroker.ExecutedUnknown); strings.Contains(e.Message, "bad kind") {
		t.Errorf("message %q tells the caller what panicked inside", e.Message)
	}
	if _, err := Call[string](ctx, target, "fail", "code"); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("after a panic: %v, want an app that lives on", err)
	}
	_, err = Call[string](ctx, target, "fail", 42)
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedNo)
	_, err = Call[int](ctx, target, "huge", struct{}{})
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedYes)
	_, err = Call[string](ctx, target, "fail", make([]byte, 2<<20))
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedNo)
	_, err = Call[string](ctx, target, "a.b", nil)
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedNo)
	_, err = Call[string](ctx, target.client.Service("No"), "m", nil)
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedNo)
	_, err = Call[string](ctx, target, "fail", func() {})
	wantError(t, err, kbroker.Invalid, kbroker.ExecutedNo)
	_, err = Call[string](within(t, 300*time.Millisecond), target, "missing", nil)
	if e := wantError(t, err, kbroker.NotFound, kbroker.ExecutedNo); !strings.Contains(e.Hint, "fail, huge") {
		t.Errorf("hint %q, want the methods that there are", e.Hint)
	}
	_, err = Call[string](within(t, 300*time.Millisecond), target.client.Service("nobody"), "m", nil)
	wantError(t, err, kbroker.Unavailable, kbroker.ExecutedNo)

	reply, err := s.Connect(t).Request(subjects.Method("echo", "echo", "fail"), []byte(`"typed"`), time.Second)
	if err != nil {
		t.Fatalf("request: %v", err)
	}
	if got := reply.Header.Get(subjects.HeaderMicroError); got != "balance is 3" {
		t.Errorf("a micro client sees error %q, want %q", got, "balance is 3")
	}
	if got := reply.Header.Get(subjects.HeaderMicroErrorCode); got != "500" {
		t.Errorf("a micro client sees code %q, want 500", got)
	}
}

func TestForeignMicroErrorsAreUnderstood(t *testing.T) {
	s := natstest.Start(t)
	raw(t, s, "m", func(m *nats.Msg) {
		_ = m.RespondMsg(&nats.Msg{Header: nats.Header{subjects.HeaderMicroError: {"no such row"}, subjects.HeaderMicroErrorCode: {"404"}}})
	})
	_, err := Call[string](t.Context(), dial(t, s.URL).Service("echo"), "m", nil)
	if e := wantError(t, err, kbroker.NotFound, kbroker.ExecutedUnknown); e.Message != "no such row" {
		t.Errorf("message %q, want that of the service", e.Message)
	}
}

func TestBeyondItsBoundAMethodRefusesAtOnce(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	hold := make(chan struct{})
	var running atomic.Int32
	Handle(a, "wait", func(context.Context, struct{}) (string, error) {
		running.Add(1)
		<-hold
		return "done", nil
	}, Concurrency(2))
	start(t, a)
	c := dial(t, s.URL)
	results := make(chan error, 3)
	ask := func() {
		_, err := Call[string](t.Context(), c.Service("echo"), "wait", struct{}{})
		results <- err
	}
	go ask()
	go ask()
	wait.Until(t, patience, func() error {
		if n := running.Load(); n != 2 {
			return kbroker.Errorf(kbroker.Conflict, "%d handlers run, want 2", n)
		}
		return nil
	})
	began := time.Now()
	reply, err := s.Connect(t).Request(subjects.Method("echo", "echo", "wait"), nil, patience)
	if err != nil {
		t.Fatalf("request beyond the bound: %v", err)
	}
	e, _ := answerOf(reply)
	wantError(t, e, kbroker.Overloaded, kbroker.ExecutedNo)
	if took := time.Since(began); took > time.Second {
		t.Errorf("refused after %v, want at once", took)
	}
	wait.Until(t, patience, func() error {
		_, err := Call[string](within(t, 200*time.Millisecond), c.Service("echo"), "wait", struct{}{})
		if e := kbroker.AsError(err); e.Code == kbroker.Unavailable && e.Executed == kbroker.ExecutedUnknown {
			return err // at the deadline one more attempt was on its way
		}
		wantError(t, err, kbroker.Overloaded, kbroker.ExecutedNo)
		return nil
	})

	retried := c.Stats().Retried
	go ask() // is refused, tries again, and finds room
	wait.Until(t, patience, func() error {
		if c.Stats().Retried == retried {
			return errors.New("nothing was sent again")
		}
		return nil
	})
	close(hold)
	for range 3 {
		if err := <-results; err != nil {
			t.Errorf("call: %v, want done", err)
		}
	}
}

func TestARequestWhoseDeadlinePassedIsNotRun(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	var ran atomic.Bool
	Handle(a, "m", func(context.Context, struct{}) (string, error) { ran.Store(true); return "", nil })
	start(t, a)
	m := nats.NewMsg(subjects.Method("echo", "echo", "m"))
	m.Header.Set(subjects.HeaderTimeout, "0")
	reply, err := s.Connect(t).RequestMsg(m, patience)
	if err != nil {
		t.Fatalf("request: %v", err)
	}
	e, _ := answerOf(reply)
	wantError(t, e, kbroker.DeadlineExceeded, kbroker.ExecutedNo)
	if ran.Load() {
		t.Error("the handler ran although nobody waits")
	}
}

// TestAFrozenInstanceFailsOnlyWhatMayNotBeRepeated has one instance that takes
// requests and never answers, as on a host that is stopped, beside a live one.
func TestAFrozenInstanceFailsOnlyWhatMayNotBeRepeated(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	Handle(a, "safe", func(context.Context, struct{}) (string, error) { return "live", nil }, Idempotent())
	Handle(a, "once", func(context.Context, struct{}) (string, error) { return "live", nil })
	start(t, a)
	const swallows = 5
	frozen := s.Connect(t)
	safe, err := frozen.QueueSubscribe(subjects.Method("echo", "echo", "safe"), subjects.QueueService, func(*nats.Msg) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := safe.AutoUnsubscribe(swallows); err != nil {
		t.Fatal(err)
	}
	if err := frozen.Flush(); err != nil {
		t.Fatal(err)
	}
	raw(t, s, "once", func(*nats.Msg) {})
	c := dial(t, s.URL)

	var wg sync.WaitGroup
	for range 8 * swallows {
		wg.Go(func() {
			if _, err := Call[string](t.Context(), c.Service("echo"), "safe", struct{}{}, Timeout(1200*time.Millisecond)); err != nil {
				t.Errorf("an idempotent call beside a frozen instance: %v", err)
			}
		})
	}
	wg.Wait()
	if got := c.Stats().Retried; got < swallows {
		t.Errorf("%d attempts sent again, want the %d that were swallowed at least", got, swallows)
	}
	answered, unknown := 0, 0
	for range 20 {
		_, err := Call[string](t.Context(), c.Service("echo"), "once", struct{}{}, Timeout(50*time.Millisecond))
		if err == nil {
			answered++
			continue
		}
		wantError(t, err, kbroker.Unavailable, kbroker.ExecutedUnknown)
		unknown++
	}
	if answered == 0 || unknown == 0 {
		t.Errorf("%d answered, %d unknown; want both", answered, unknown)
	}
}

// TestAMethodThatDoesNotExistIsNotWaitedFor until the deadline.
func TestAMethodThatDoesNotExistIsNotWaitedFor(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	Handle(a, "twice", func(_ context.Context, in string) (string, error) { return in + in, nil })
	start(t, a)
	began := time.Now()
	_, err := Call[string](t.Context(), dial(t, s.URL).Service("echo"), "thrice", "a", Timeout(30*time.Second))
	e := wantError(t, err, kbroker.NotFound, kbroker.ExecutedNo)
	if !strings.Contains(e.Hint, "twice") {
		t.Errorf("hint %q, want the methods that there are", e.Hint)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v of 30 s", took)
	}
}
