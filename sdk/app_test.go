package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func TestADrainLosesNoRequest(t *testing.T) {
	s := natstest.Start(t)
	// Attempts of a method that is not idempotent are never repeated: a lost
	// one fails the call.
	serve := func(name string) *running {
		a := newApp(s.URL, name)
		Handle(a, "m", func(context.Context, struct{}) (string, error) {
			<-time.After(2 * time.Millisecond) // the handler's work
			return name, nil
		})
		return start(t, a)
	}
	first := serve("echo-echo-1")
	c := dial(t, s.URL)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var calls, failed atomic.Int64
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				calls.Add(1)
				if _, err := Call[string](context.Background(), c.Service("echo"), "m", struct{}{}); err != nil {
					failed.Add(1)
					t.Errorf("call during drains: %v", err)
				}
			}
		})
	}
	for _, name := range []string{"echo-echo-2", "echo-echo-3", "echo-echo-4", "echo-echo-5", "echo-echo-6"} {
		next := serve(name)
		before := calls.Load()
		wait.Until(t, patience, func() error {
			if calls.Load() < before+200 {
				return errors.New("no load")
			}
			return nil
		})
		began := time.Now()
		first.stop()
		if err := first.ended(t); err != nil {
			t.Errorf("drain: %v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("drain took %v, want well below the grace of %v", took, DefaultGrace)
		}
		first = next
	}
	stop()
	wg.Wait()
	t.Logf("%d calls over 5 drains, %d failed, %d sent again", calls.Load(), failed.Load(), c.Stats().Retried)
}

func TestADrainWaitsForHandlersWithinItsGrace(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1", Grace(200*time.Millisecond))
	entered := make(chan struct{}, 2)
	Handle(a, "obeys", func(ctx context.Context, _ struct{}) (string, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return "ended", nil
	})
	r := start(t, a)
	result := make(chan error, 1)
	c := dial(t, s.URL)
	go func() {
		_, err := Call[string](context.Background(), c.Service("echo"), "obeys", struct{}{})
		result <- err
	}()
	<-entered
	r.stop()
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v, want nil: the handler ended with its context", err)
	}
	if err := <-result; err != nil {
		t.Errorf("call: %v, want the handler's last answer", err)
	}

	stubborn := newApp(s.URL, "echo-echo-2", Grace(50*time.Millisecond))
	hold := make(chan struct{})
	defer close(hold)
	Handle(stubborn, "stays", func(context.Context, struct{}) (string, error) {
		entered <- struct{}{}
		<-hold
		return "", nil
	})
	r = start(t, stubborn)
	go func() {
		_, _ = Call[string](within(t, time.Second), c.Service("echo"), "stays", struct{}{})
	}()
	<-entered
	r.stop()
	if err := r.ended(t); !errors.Is(err, kbroker.Failed) {
		t.Errorf("Run: %v, want Failed: a handler did not finish", err)
	}
}

func TestADrainWithoutABusIsQuick(t *testing.T) {
	s := natstest.Start(t)
	p := newProxy(t, s)
	a := newApp(p.url, "echo-echo-1")
	Handle(a, "m", func(context.Context, struct{}) (string, error) { return "", nil })
	r := start(t, a)
	p.cut()
	wait.Until(t, patience, func() error {
		if err := a.client.opened.Load().transport.(*natsTransport).link.Load().conn.Status(); err == nats.CONNECTED {
			return errors.New("still connected")
		}
		return nil
	})
	began := time.Now()
	r.stop()
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v, want nil", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("leaving without a bus took %v, want below 1s", took)
	}
}

func TestAnAppSurvivesARestartedBroker(t *testing.T) {
	first := natstest.Start(t)
	p := newProxy(t, first)
	a := newApp(p.url, "echo-echo-1")
	Handle(a, "m", func(context.Context, struct{}) (string, error) { return "here", nil }, Idempotent())
	start(t, a)
	c := dial(t, p.url)
	if _, err := Call[string](t.Context(), c.Service("echo"), "m", struct{}{}); err != nil {
		t.Fatalf("call: %v", err)
	}
	p.cut()
	first.Shutdown()
	second := natstest.Start(t)
	result := make(chan error, 1)
	go func() { // begun while there is no broker at all
		_, err := Call[string](t.Context(), c.Service("echo"), "m", struct{}{})
		result <- err
	}()
	p.lead(second)
	if err := <-result; err != nil {
		t.Errorf("call across the restart: %v", err)
	}
	if _, err := Call[string](t.Context(), c.Service("echo"), "m", struct{}{}); err != nil {
		t.Errorf("call after the restart: %v", err)
	}
}

func TestAnInstanceWaitsForItsBroker(t *testing.T) {
	s := natstest.Start(t)
	p := newProxy(t, s)
	p.cut()
	a := newApp(p.url, "echo-echo-1")
	Handle(a, "m", func(context.Context, struct{}) (string, error) { return "here", nil })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	p.lead(s)
	wait.Until(t, patience, func() error {
		if a.phase.Load() != phaseReady {
			return errors.New("not ready")
		}
		return nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestPing(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	entered, hold := make(chan struct{}), make(chan struct{})
	Handle(a, "m", func(context.Context, struct{}) (string, error) { close(entered); <-hold; return "", nil })
	Handle(a, "fail", func(context.Context, struct{}) (string, error) { return "", Refused })
	r := start(t, a)
	nc := s.Connect(t)
	var requests, errs uint64
	ping := func() kbroker.PingReply {
		t.Helper()
		m, err := nc.Request(subjects.Ping(a.identity.Tenant, a.identity.Incarnation), nil, patience)
		if err != nil {
			t.Fatalf("ping: %v", err)
		}
		var p kbroker.PingReply
		if err := json.Unmarshal(m.Data, &p); err != nil || p.Requests == nil || p.Errors == nil {
			t.Fatalf("ping: %s, %v; want it to say how many requests and errors there were", m.Data, err)
		}
		requests, errs = *p.Requests, *p.Errors
		p.Requests, p.Errors = nil, nil
		return p
	}
	want := kbroker.PingReply{Incarnation: a.identity.Incarnation, Ready: true}
	if got := ping(); got != want {
		t.Errorf("ping says %+v, want %+v", got, want)
	}
	c := dial(t, s.URL)
	for range 3 {
		_, _ = Call[string](t.Context(), c.Service("echo"), "fail", struct{}{})
	}
	wait.Until(t, patience, func() error { // an answer leaves before it is counted
		if ping(); requests != 3 || errs != 3 {
			return fmt.Errorf("ping counts %d requests and %d errors, want 3 and 3", requests, errs)
		}
		return nil
	})
	go func() { _ = nc.PublishRequest(subjects.Method("echo", "echo", "m"), "nowhere", nil) }()
	<-entered
	r.stop()
	want = kbroker.PingReply{Incarnation: a.identity.Incarnation, Draining: true}
	wait.Until(t, patience, func() error {
		if got := ping(); got != want {
			return kbroker.Errorf(kbroker.Conflict, "ping says %+v, want %+v", got, want)
		}
		return nil
	})
	close(hold)
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestMicroDiscovery(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	Handle(a, "greet", func(_ context.Context, in greet) (greeting, error) { return greeting{in.Name}, nil }, Idempotent())
	Handle(a, "spend", func(context.Context, struct{}) (string, error) { return "", Refused })
	start(t, a)
	c := dial(t, s.URL)
	_, _ = Call[greeting](t.Context(), c.Service("echo"), "greet", greet{})
	_, _ = Call[string](t.Context(), c.Service("echo"), "spend", struct{}{})

	nc := s.Connect(t)
	ask := func(subject string, into any) {
		t.Helper()
		m, err := nc.Request(subject, nil, patience)
		if err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		if err := json.Unmarshal(m.Data, into); err != nil {
			t.Fatalf("%s: %v in %s", subject, err, m.Data)
		}
	}
	for _, subject := range []string{"$SRV.PING", "$SRV.PING.echo_echo", "$SRV.PING.echo_echo.echo-echo-1_00112233aabbccdd"} {
		var p micro.Ping
		ask(subject, &p)
		if p.Type != micro.PingResponseType || p.Name != "echo_echo" || p.ID != "echo-echo-1_00112233aabbccdd" || p.Version != "3.0.0" || p.Metadata["host"] != "h1" {
			t.Errorf("%s answers %+v", subject, p)
		}
	}
	var info micro.Info
	ask("$SRV.INFO.echo_echo", &info)
	if info.Type != micro.InfoResponseType || len(info.Endpoints) != 2 {
		t.Fatalf("info is %+v, want two endpoints", info)
	}
	if e := info.Endpoints[0]; e.Name != "greet" || e.Subject != "svc.echo.echo.greet" || e.QueueGroup != "svc" || e.Metadata["idempotent"] != "true" {
		t.Errorf("endpoint %+v, want greet, idempotent", e)
	}
	if e := info.Endpoints[1]; e.Metadata["idempotent"] != "false" {
		t.Errorf("endpoint %+v, want spend, not idempotent", e)
	}
	var stats micro.Stats
	wait.Until(t, patience, func() error { // counted after the reply left
		ask("$SRV.STATS.echo_echo", &stats)
		if len(stats.Endpoints) != 2 || stats.Endpoints[0].NumRequests != 1 || stats.Endpoints[1].NumErrors != 1 {
			return kbroker.Errorf(kbroker.Conflict, "stats are %+v %+v", stats.Endpoints[0], stats.Endpoints[1])
		}
		return nil
	})
	if stats.Type != micro.StatsResponseType || stats.Endpoints[1].LastError != "refused" || stats.Started.IsZero() {
		t.Errorf("stats are %+v", stats)
	}
}

func TestMistakesAreReturnedByRun(t *testing.T) {
	nop := func(context.Context, struct{}) (string, error) { return "", nil }
	for name, declare := range map[string]func(*App){
		"a method with a dot":    func(a *App) { Handle(a, "a.b", nop) },
		"a method twice":         func(a *App) { Handle(a, "m", nop); Handle(a, "m", nop) },
		"no concurrency at all":  func(a *App) { Handle(a, "m", nop, Concurrency(0)) },
		"a method without name":  func(a *App) { Handle(a, "", nop) },
		"a method that is a '*'": func(a *App) { Handle(a, "*", nop) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp("nats://127.0.0.1:1", "echo-echo-1")
			declare(a)
			if err := a.Run(t.Context()); !errors.Is(err, kbroker.Invalid) {
				t.Errorf("Run: %v, want Invalid", err)
			}
		})
	}
}

// TestAServiceCallsAnother over the one connection that it has.
func TestAServiceCallsAnother(t *testing.T) {
	s := natstest.Start(t)
	inner := newApp(s.URL, "echo-echo-1")
	Handle(inner, "twice", func(_ context.Context, in string) (string, error) { return in + in, nil })
	start(t, inner)
	outer := newApp(s.URL, "echo-echo-2")
	Handle(outer, "four", func(ctx context.Context, in string) (string, error) {
		half, err := Call[string](ctx, outer.Service("echo"), "twice", in)
		return half + half, err
	})
	start(t, outer)
	got, err := Call[string](within(t, patience), dial(t, s.URL).Service("echo"), "four", "a")
	if err != nil || got != "aaaa" {
		t.Errorf("four times a is %q, %v", got, err)
	}
	if outer.Client().Stats().Calls != 1 {
		t.Errorf("the app's client made %d calls, want 1", outer.Client().Stats().Calls)
	}
}

// TestAnAnswerGoesToAnInboxOnly: who may ask a service could else have it ask another one,
// with its rights.
func TestAnAnswerGoesToAnInboxOnly(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	Handle(a, "say", func(_ context.Context, in string) (string, error) { return in, nil })
	start(t, a)
	nc := s.Connect(t)
	elsewhere, err := nc.SubscribeSync("svc.bank.ledger.pay")
	if err != nil {
		t.Fatal(err)
	}
	pong, err := nc.SubscribeSync(subjects.Pong(a.identity.Tenant, a.identity.Host, "q"))
	if err != nil {
		t.Fatal(err)
	}
	for _, asked := range []string{subjects.Method("echo", "echo", "say"), subjects.Ping(a.identity.Tenant, a.identity.Incarnation), "$SRV.PING.echo_echo"} {
		if err := nc.PublishRequest(asked, elsewhere.Subject, []byte(`"x"`)); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.PublishRequest(subjects.Ping(a.identity.Tenant, a.identity.Incarnation), pong.Subject, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := pong.NextMsg(patience); err != nil { // asked last: what comes before it has come
		t.Fatalf("the agent's ping: %v", err)
	}
	if m, err := elsewhere.NextMsg(100 * time.Millisecond); err == nil {
		t.Errorf("an answer, %q, went to another service", m.Data)
	}
}
