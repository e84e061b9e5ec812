package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// listenedTo is a client on a bus on which a core answers where cache/redis listens;
// what answer returns as nil it does not answer.
func listenedTo(t *testing.T, answer func(r kbroker.EndpointsRequest) any) (c *Client, asked *atomic.Int32, refuse func(string)) {
	t.Helper()
	b := newBus()
	asked = &atomic.Int32{}
	var events connEvents
	c = newClient(slog.New(slog.DiscardHandler), func(_ context.Context, on connEvents) (transport, error) {
		events = on
		return b.connect(on), nil
	})
	t.Cleanup(c.Close)
	if _, err := c.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	core := b.connect(connEvents{})
	_, err := core.subscribe(subjects.Endpoints(kbroker.DefaultTenant, "cache", "redis"), subjects.QueueCore, func(m *nats.Msg) {
		asked.Add(1)
		var r kbroker.EndpointsRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Error(err)
		}
		reply := &nats.Msg{Subject: m.Reply}
		switch v := answer(r).(type) {
		case nil:
			return
		case *kbroker.Error:
			reply = errorReply(m.Reply, nil, v)
		default:
			reply.Data, _ = json.Marshal(v)
		}
		if err := core.publish(reply); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, asked, func(subject string) { events.refused(subject) }
}

func TestEndpointsAreAskedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, asked, _ := listenedTo(t, func(r kbroker.EndpointsRequest) any {
			return []kbroker.Endpoint{
				{Instance: "cache-redis-1", Host: "h1", Address: "10.0.0.1", Port: r.Port, Number: 20000, Ready: true},
				{Instance: "cache-redis-2", Host: "h2", Address: "10.0.0.2", Port: r.Port, Number: 20000, Ready: true},
				{Instance: "cache-redis-3", Host: "h3", Address: "10.0.0.3", Port: r.Port, Number: 20000},
			}
		})
		firsts := map[string]bool{}
		ask := func(port string) {
			t.Helper()
			rows, err := Endpoints(t.Context(), &App{client: c}, "cache/redis", port)
			if err != nil || len(rows) != 2 || rows[0].Port != port {
				t.Fatalf("endpoints: %+v, %v; want the two that are ready", rows, err)
			}
			firsts[rows[0].Addr()] = true
			rows[0] = Endpoint{} // is the caller's
		}
		var all sync.WaitGroup
		var mu sync.Mutex
		for range 50 {
			all.Go(func() { mu.Lock(); defer mu.Unlock(); ask("redis") })
		}
		all.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("50 questions at once became %d, want 1", n)
		}
		if len(firsts) != 2 {
			t.Errorf("the first is always %v, want each at times", firsts)
		}
		<-time.After(endpointsFor - time.Millisecond)
		ask("redis")
		if n := asked.Load(); n != 1 {
			t.Errorf("within a second it was asked %d times, want once", n)
		}
		<-time.After(time.Millisecond)
		ask("redis")
		ask("admin")
		if n := asked.Load(); n != 3 {
			t.Errorf("after a second, and of another port, it was asked %d times in all, want 3", n)
		}
	})
}

func TestEndpointsHaveAnErrorThatSaysWhy(t *testing.T) {
	for name, tc := range map[string]struct {
		service string
		answer  any
		code    kbroker.Code
		cause   error
	}{
		"no such service":             {"cache/redis", kbroker.Errorf(kbroker.NotFound, "there is no service cache/redis"), kbroker.NotFound, nil},
		"a name that is none":         {"Cache", nil, kbroker.Invalid, nil},
		"a core that does not answer": {"cache/redis", nil, kbroker.Unavailable, context.DeadlineExceeded},
		"a core that has no room":     {"cache/redis", kbroker.Errorf(kbroker.Overloaded, "busy"), kbroker.Unavailable, context.DeadlineExceeded},
		"no core":                     {"cache/other", nil, kbroker.Unavailable, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _, _ := listenedTo(t, func(kbroker.EndpointsRequest) any { return tc.answer })
				began := time.Now()
				_, err := c.Endpoints(t.Context(), tc.service, "")
				if e := kbroker.AsError(err); e.Code != tc.code || tc.cause != nil && !errors.Is(err, tc.cause) {
					t.Errorf("the error is %v, want %s", err, tc.code)
				}
				if took := time.Since(began); took > DefaultTimeout || tc.cause == nil && took > 0 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestEndpointsAreAskedAgainUntilACoreAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []any{nil, kbroker.Errorf(kbroker.Overloaded, "busy"), []kbroker.Endpoint{}}
		c, asked, _ := listenedTo(t, func(kbroker.EndpointsRequest) any {
			a := answers[0]
			answers = answers[1:]
			return a
		})
		if rows, err := c.Endpoints(t.Context(), "cache/redis", "redis"); err != nil || len(rows) != 0 || asked.Load() != 3 {
			t.Errorf("after %d questions: %v, %v; want none, and no error, after 3", asked.Load(), rows, err)
		}
	})
}

func TestEndpointsThatAreNotAllowedEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, refuse := listenedTo(t, func(kbroker.EndpointsRequest) any { return nil })
		began := time.Now()
		time.AfterFunc(10*time.Millisecond, func() { refuse(subjects.Endpoints(kbroker.DefaultTenant, "cache", "redis")) })
		_, err := c.Endpoints(t.Context(), "cache/redis", "redis")
		if e := kbroker.AsError(err); e.Code != kbroker.Refused || e.Hint == "" || time.Since(began) > 20*time.Millisecond {
			t.Errorf("after %v: %v, want refused at once", time.Since(began), err)
		}
	})
}

// One that gives up leaves the others their time.
func TestWhoWaitsForTheQuestionOfAnotherAsksItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var speaks atomic.Bool
		c, _, _ := listenedTo(t, func(kbroker.EndpointsRequest) any {
			if !speaks.Load() {
				return nil
			}
			return []kbroker.Endpoint{{Instance: "cache-redis-1", Ready: true}}
		})
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := c.Endpoints(short, "cache/redis", ""); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the first: %v, want that its time has passed", err)
			}
		})
		synctest.Wait()
		time.AfterFunc(50*time.Millisecond, func() { speaks.Store(true) })
		both.Go(func() {
			if rows, err := c.Endpoints(t.Context(), "cache/redis", ""); err != nil || len(rows) != 1 {
				t.Errorf("the second: %v, %v", rows, err)
			}
		})
		both.Wait()
	})
}
