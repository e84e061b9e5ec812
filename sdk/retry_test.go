package sdk

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestDecideIsTheRetryTable(t *testing.T) {
	for _, c := range []struct {
		name       string
		event      event
		method     repeatable
		unanswered int
		want       verdict
	}{
		{"nobody there is sent again, whatever the method", nobodyThere, notIdempotent, 0, backOff},
		{"overloaded is sent again, whatever the method", refusedNow, notIdempotent, 0, backOff},
		{"not connected is sent again, whatever the method", notSent, notKnown, 0, backOff},
		{"overloaded after an unanswered attempt is sent again", refusedNow, isIdempotent, 1, backOff},
		{"a timeout of an idempotent method is paid from the budget", timedOut, isIdempotent, 1, resendPaid},
		{"a timeout of another method is waited out", timedOut, notIdempotent, 1, keepWaiting},
		{"a timeout of an unknown method asks first", timedOut, notKnown, 1, askFirst},
		{"discovery that did not say does not ask in a circle", learned, notKnown, 1, keepWaiting},
		{"discovery that said idempotent resends", learned, isIdempotent, 1, resendPaid},
		{"discovery that said not idempotent waits", learned, notIdempotent, 1, keepWaiting},
		{"a reconnect resends an idempotent method", reconnected, isIdempotent, 2, resendPaid},
		{"a reconnect does not resend another method", reconnected, notIdempotent, 1, keepWaiting},
		{"a reconnect asks about an unknown method", reconnected, notKnown, 1, askFirst},
		{"a reconnect ends the pause of what certainly did not run", reconnected, notIdempotent, 0, resendNow},
		{"too many unanswered attempts are waited out", timedOut, isIdempotent, maxUnanswered, keepWaiting},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := decide(c.event, c.method, c.unanswered); got != c.want {
				t.Errorf("decide(%d, %d, %d) = %d, want %d", c.event, c.method, c.unanswered, got, c.want)
			}
		})
	}
}

// step is what happens to one attempt.
type step string

const (
	stepOK         step = "answers"
	stepSilent     step = "does not answer"
	stepLate       step = "answers 2 s later"
	stepLost       step = "the reply is lost"
	stepNobody     step = "nobody there"
	stepOverloaded step = "overloaded, executed no"
	stepFails      step = "the handler fails"
	stepUndecided  step = "an error that may have had its effect"
	stepForeign    step = "overloaded, executed not said"
)

// scripted answers the attempts of one call as a script says; the last step
// goes on for ever.
type scripted struct {
	bus        *bus
	end        *busEnd
	script     []step
	idempotent bool
	ids        map[string]int // attempts by request id
	n          int
}

func (s *scripted) header() nats.Header {
	h := nats.Header{subjects.HeaderInstance: {"echo-echo-1.0"}}
	if s.idempotent {
		h[subjects.HeaderIdempotent] = []string{"1"}
	}
	return h
}

// take consumes a step when a request arrives.
func (s *scripted) take(m *nats.Msg) {
	now := s.script[min(s.n, len(s.script)-1)]
	s.n++
	s.ids[m.Header.Get(subjects.HeaderRequestID)]++
	refuse := func(code kbroker.Code, ex kbroker.Executed) {
		e := kbroker.Errorf(code, "%s", now)
		e.Executed = ex
		_ = s.end.publish(errorReply(m.Reply, s.header(), e))
	}
	ok := &nats.Msg{Subject: m.Reply, Header: s.header(), Data: []byte(`"ok"`)}
	switch now {
	case stepOK:
		_ = s.end.publish(ok)
	case stepLate:
		time.AfterFunc(2*time.Second, func() { _ = s.end.publish(ok) })
	case stepNobody:
		_ = s.end.publish(&nats.Msg{Subject: m.Reply, Header: nats.Header{headerStatus: {noResponders}}})
	case stepOverloaded:
		refuse(kbroker.Overloaded, kbroker.ExecutedNo)
	case stepForeign:
		refuse(kbroker.Overloaded, "")
	case stepFails:
		refuse(kbroker.Conflict, kbroker.ExecutedYes)
	case stepUndecided:
		refuse(kbroker.Internal, kbroker.ExecutedUnknown)
	case stepSilent, stepLost:
	}
}

// TestEveryErrorSaysWhetherItRan is the retry table of docs/protocol.md, played
// with a clock that does not run: error, executed, resent or not.
func TestEveryErrorSaysWhetherItRan(t *testing.T) {
	type outcome struct {
		code     kbroker.Code     // empty: an answer
		executed kbroker.Executed // of the error
		attempts int              // 0: more than three
		atLeast  time.Duration
		atMost   time.Duration
	}
	const deadline = 4500 * time.Millisecond // attempts of 1.5 s
	for _, c := range []struct {
		name       string
		script     []step
		idempotent bool
		known      bool // the caller has had an answer of the method before
		forced     bool // IdempotentCall
		want       outcome
	}{
		{"an answer ends the call", []step{stepOK}, false, false, false, outcome{attempts: 1}},
		{"an error of the handler is never sent again", []step{stepFails}, true, true, false, outcome{kbroker.Conflict, kbroker.ExecutedYes, 1, 0, 0}},
		{"an error that may have had its effect is never sent again", []step{stepUndecided}, true, true, false, outcome{kbroker.Internal, kbroker.ExecutedUnknown, 1, 0, 0}},
		{"overloaded without a word on execution is final and unknown", []step{stepForeign}, true, true, false, outcome{kbroker.Overloaded, kbroker.ExecutedUnknown, 1, 0, 0}},
		{"nobody there, then somebody", []step{stepNobody, stepNobody, stepOK}, false, false, false, outcome{attempts: 3, atMost: 20 * time.Millisecond}},
		{"nobody there until the deadline", []step{stepNobody}, false, true, false, outcome{kbroker.Unavailable, kbroker.ExecutedNo, 0, deadline, deadline}},
		{"overloaded, then room", []step{stepOverloaded, stepOK}, false, false, false, outcome{attempts: 2, atMost: 10 * time.Millisecond}},
		{"overloaded until the deadline", []step{stepOverloaded}, false, true, false, outcome{kbroker.Overloaded, kbroker.ExecutedNo, 0, deadline, deadline}},
		{"no answer, not idempotent: one attempt, waited out", []step{stepSilent}, false, true, false, outcome{kbroker.Unavailable, kbroker.ExecutedUnknown, 1, deadline, deadline}},
		{"no answer, idempotent: an attempt each 1.5 s", []step{stepSilent}, true, true, false, outcome{kbroker.Unavailable, kbroker.ExecutedUnknown, 3, deadline, deadline}},
		{"a slow answer of a method that is not idempotent counts", []step{stepLate}, false, true, false, outcome{attempts: 1, atLeast: 2 * time.Second, atMost: 2 * time.Second}},
		{"a slow answer counts although the attempt was repeated", []step{stepLate, stepSilent}, true, true, false, outcome{attempts: 2, atLeast: 2 * time.Second, atMost: 2 * time.Second}},
		{"a lost reply, idempotent: the second attempt's counts", []step{stepLost, stepOK}, true, true, false, outcome{attempts: 2, atLeast: 1500 * time.Millisecond, atMost: 1500 * time.Millisecond}},
		{"a lost reply, declared by the caller", []step{stepLost, stepOK}, false, true, true, outcome{attempts: 2, atLeast: 1500 * time.Millisecond, atMost: 1500 * time.Millisecond}},
		{"no answer, unknown: discovery says idempotent", []step{stepLost, stepOK}, true, false, false, outcome{attempts: 2, atLeast: 1500 * time.Millisecond, atMost: 1500 * time.Millisecond}},
		{"no answer, unknown: discovery says it is not", []step{stepLost, stepOK}, false, false, false, outcome{kbroker.Unavailable, kbroker.ExecutedUnknown, 1, deadline, deadline}},
		{"H6: unanswered, then overloaded to the end is unknown", []step{stepSilent, stepOverloaded}, true, true, false, outcome{kbroker.Unavailable, kbroker.ExecutedUnknown, 0, deadline, deadline}},
		{"H6: unanswered, then nobody there is unknown", []step{stepSilent, stepNobody}, true, true, false, outcome{kbroker.Unavailable, kbroker.ExecutedUnknown, 0, deadline, deadline}},
		{"overloaded, then unanswered is unknown", []step{stepOverloaded, stepSilent}, false, true, false, outcome{kbroker.Unavailable, kbroker.ExecutedUnknown, 2, deadline, deadline}},
		{"unanswered, then an error of the handler: it ran", []step{stepSilent, stepFails}, true, true, false, outcome{kbroker.Conflict, kbroker.ExecutedYes, 2, 1500 * time.Millisecond, 1500 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus()
				s := &scripted{bus: b, script: c.script, idempotent: c.idempotent, ids: map[string]int{}}
				i := instance("", "echo-echo-1")
				app := &App{identity: i, methods: []*method{{name: "m", idempotent: c.idempotent}}}
				app.methods[0].app = app
				s.end = b.connect(connEvents{connected: func() {}, closed: func() {}})
				if err := app.discoverable(s.end); err != nil {
					t.Fatal(err)
				}
				if _, err := s.end.subscribe(subjects.Method("echo", "echo", "m"), subjects.QueueService, s.take); err != nil {
					t.Fatal(err)
				}
				client, err := Dial(t.Context(), on(b, nil))
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				client.budget = &budget{}
				if c.known {
					client.remember(subjects.Method("echo", "echo", "m"), s.header())
				}
				opts := []CallOption{Timeout(deadline)}
				if c.forced {
					opts = append(opts, IdempotentCall())
				}
				began := time.Now()
				_, err = Call[string](t.Context(), client.Service("echo"), "m", nil, opts...)
				took := time.Since(began)
				if c.want.code == "" {
					if err != nil {
						t.Errorf("error %v, want an answer", err)
					}
				} else {
					wantError(t, err, c.want.code, c.want.executed)
				}
				if c.want.attempts == 0 && s.n <= 3 || c.want.attempts > 0 && s.n != c.want.attempts {
					t.Errorf("%d attempts, want %d (0: more than three)", s.n, c.want.attempts)
				}
				if len(s.ids) != 1 {
					t.Errorf("attempts carried %d request ids, want 1: %v", len(s.ids), s.ids)
				}
				if took < c.want.atLeast || took > c.want.atMost {
					t.Errorf("took %v, want %v to %v", took, c.want.atLeast, c.want.atMost)
				}
				if got, want := client.Stats(), (Stats{Calls: 1, Retried: uint64(s.n - 1)}); got != want {
					t.Errorf("stats %+v, want %+v", got, want)
				}
				time.Sleep(lookupTimeout) // of the bubble: a question to discovery gives its slot up
				synctest.Wait()
				for subject, subs := range b.subs {
					if len(subs) > 0 && subject[0] == 'i' {
						t.Errorf("reply subject %s is still held after the call", subject)
					}
				}
			})
		})
	}
}

// TestAnObjectsLostAttemptIsSoonSentAgain: once, then as patiently as any other.
func TestAnObjectsLostAttemptIsSoonSentAgain(t *testing.T) {
	for _, c := range []struct {
		name     string
		script   []step
		deadline time.Duration
		took     time.Duration
		attempts int
	}{
		{"one is lost", []step{stepLost, stepOK}, DefaultTimeout, 500 * time.Millisecond, 2},
		{"two are", []step{stepLost, stepLost, stepOK}, DefaultTimeout, 2 * time.Second, 3},
		{"a tenth of a short deadline", []step{stepLost, stepOK}, time.Second, 100 * time.Millisecond, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus()
				s := &scripted{bus: b, script: c.script, ids: map[string]int{}}
				s.end = b.connect(connEvents{connected: func() {}, closed: func() {}})
				to := Object("echo/thing:one")
				if _, err := s.end.subscribe(subjects.ObjectMethod("echo", to.object.Shard(), "thing", "m"), "", s.take); err != nil {
					t.Fatal(err)
				}
				client, err := Dial(t.Context(), on(b, nil))
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				client.budget = &budget{}
				began := time.Now()
				if _, err := Call[string](t.Context(), client.Object("echo/thing:one"), "m", nil, Timeout(c.deadline)); err != nil {
					t.Errorf("error %v, want an answer", err)
				}
				if took := time.Since(began); took != c.took || s.n != c.attempts {
					t.Errorf("%d attempts in %v, want %d in %v", s.n, took, c.attempts, c.took)
				}
			})
		})
	}
}

func TestACallThatCannotBeSentWaitsForTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		server := b.connect(connEvents{connected: func() {}, closed: func() {}})
		got := 0
		if _, err := server.subscribe(subjects.Method("echo", "echo", "m"), subjects.QueueService, func(m *nats.Msg) {
			got++
			_ = server.publish(&nats.Msg{Subject: m.Reply, Data: []byte(`"ok"`)})
		}); err != nil {
			t.Fatal(err)
		}
		client, err := Dial(t.Context(), on(b, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		end := b.ends[1]
		end.cut()
		time.AfterFunc(time.Second, end.restore)
		began := time.Now()
		if _, err := Call[string](t.Context(), client.Service("echo"), "m", nil); err != nil {
			t.Fatalf("call over a connection that came back: %v", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v, want the second that the connection was away", took)
		}
		if got != 1 {
			t.Errorf("the handler was reached %d times, want once", got)
		}

		end.cut()
		_, err = Call[string](t.Context(), client.Service("echo"), "m", nil, Timeout(time.Second))
		wantError(t, err, kbroker.Unavailable, kbroker.ExecutedNo)
	})
}

func TestAReconnectResendsIdempotentCallsAtOnce(t *testing.T) {
	for _, c := range []struct {
		name       string
		idempotent bool
		attempts   int
		took       time.Duration
	}{
		{"idempotent: the moment the connection is back", true, 2, 200 * time.Millisecond},
		{"not idempotent: never", false, 1, DefaultTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus()
				s := &scripted{bus: b, script: []step{stepSilent, stepOK}, idempotent: c.idempotent, ids: map[string]int{}}
				s.end = b.connect(connEvents{connected: func() {}, closed: func() {}})
				if _, err := s.end.subscribe(subjects.Method("echo", "echo", "m"), subjects.QueueService, s.take); err != nil {
					t.Fatal(err)
				}
				client, err := Dial(t.Context(), on(b, nil))
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				client.budget = &budget{}
				client.remember(subjects.Method("echo", "echo", "m"), s.header())
				end := b.ends[1]
				time.AfterFunc(100*time.Millisecond, end.cut)
				time.AfterFunc(200*time.Millisecond, end.restore)
				began := time.Now()
				_, err = Call[string](t.Context(), client.Service("echo"), "m", nil)
				if took := time.Since(began); took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
				if s.n != c.attempts {
					t.Errorf("%d attempts, want %d", s.n, c.attempts)
				}
				if c.idempotent && err != nil {
					t.Errorf("error %v, want an answer", err)
				}
				if !c.idempotent {
					wantError(t, err, kbroker.Unavailable, kbroker.ExecutedUnknown)
				}
			})
		})
	}
}

func TestTheBudgetBoundsResendsNotCalls(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	takeAll := func(b *budget, now time.Time) int {
		n := 0
		for n < 1_000_000 && b.take(now) {
			n++
		}
		return n
	}
	t.Run("an idle process has the floor", func(t *testing.T) {
		if n := takeAll(&budget{}, now); n != resendFloor {
			t.Errorf("%d resends, want %d", n, resendFloor)
		}
	})
	t.Run("a busy process has a fifth of its calls", func(t *testing.T) {
		b := &budget{}
		for i := range 10_000 {
			b.call(now.Add(time.Duration(i) * time.Millisecond)) // 10 s
		}
		if n := takeAll(b, now.Add(9999*time.Millisecond)); n != 2000 {
			t.Errorf("%d resends, want 2000", n)
		}
	})
	t.Run("calls and resends are forgotten after the window", func(t *testing.T) {
		b := &budget{}
		for range 10_000 {
			b.call(now)
		}
		takeAll(b, now)
		if n := takeAll(b, now.Add(budgetWindow-time.Second)); n != 0 {
			t.Errorf("%d resends within the window, want 0", n)
		}
		if n := takeAll(b, now.Add(budgetWindow+time.Second)); n != resendFloor {
			t.Errorf("%d resends after the window, want %d", n, resendFloor)
		}
	})
}

func TestAnEmptyBudgetWaitsInsteadOfResending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		s := &scripted{bus: b, script: []step{stepSilent}, idempotent: true, ids: map[string]int{}}
		s.end = b.connect(connEvents{connected: func() {}, closed: func() {}})
		if _, err := s.end.subscribe(subjects.Method("echo", "echo", "m"), subjects.QueueService, s.take); err != nil {
			t.Fatal(err)
		}
		client, err := Dial(t.Context(), on(b, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		client.budget = &budget{}
		for client.budget.take(time.Now()) {
		}
		_, err = Call[string](t.Context(), client.Service("echo"), "m", nil, IdempotentCall())
		wantError(t, err, kbroker.Unavailable, kbroker.ExecutedUnknown)
		if s.n != 1 {
			t.Errorf("%d attempts with an empty budget, want 1", s.n)
		}
	})
}

func TestBackoffDoublesToItsBound(t *testing.T) {
	for n, want := range []time.Duration{2, 4, 8, 16, 32, 64, 128, 200, 200} {
		want *= time.Millisecond
		for range 100 {
			if got := backoff(n); got < want/2 || got > want+1 {
				t.Fatalf("backoff(%d) = %v, want %v to %v", n, got, want/2, want)
			}
		}
	}
	if got := backoff(1_000_000); got > backoffMax+1 {
		t.Errorf("backoff(1000000) = %v, want at most %v", got, backoffMax)
	}
}

func TestACancelledCallSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		server := b.connect(connEvents{connected: func() {}, closed: func() {}})
		if _, err := server.subscribe(subjects.Method("echo", "echo", "m"), subjects.QueueService, func(*nats.Msg) {}); err != nil {
			t.Fatal(err)
		}
		client, err := Dial(t.Context(), on(b, nil))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err = Call[string](ctx, client.Service("echo"), "m", nil)
		wantError(t, err, kbroker.Unavailable, kbroker.ExecutedUnknown)
		if got := context.Canceled; !errors.Is(err, got) {
			t.Errorf("error %v is not %v", err, got)
		}
		_, err = Call[string](ctx, client.Service("echo"), "m", nil)
		wantError(t, err, kbroker.Unavailable, kbroker.ExecutedNo)

		time.AfterFunc(time.Second, client.Close)
		began := time.Now()
		_, err = Call[string](t.Context(), client.Service("echo"), "m", nil)
		wantError(t, err, kbroker.Unavailable, kbroker.ExecutedUnknown)
		if took := time.Since(began); took != time.Second {
			t.Errorf("a call over a client that was closed took %v, want 1s", took)
		}
	})
}

// TestTheLastAttemptMayBeOnItsWay: nobody took the ones before, so the call says that nobody
// serves the method, though what became of the last nobody knows.
func TestTheLastAttemptMayBeOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		server := b.connect(connEvents{connected: func() {}, closed: func() {}})
		took := 0
		if _, err := server.subscribe(subjects.Method("echo", "echo", "m"), subjects.QueueService, func(m *nats.Msg) {
			if took++; took < 4 {
				_ = server.publish(&nats.Msg{Subject: m.Reply, Header: nats.Header{headerStatus: {noResponders}}})
			}
		}); err != nil {
			t.Fatal(err)
		}
		client, err := Dial(t.Context(), on(b, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		_, err = Call[string](t.Context(), client.Service("echo"), "m", nil, Timeout(100*time.Millisecond))
		wantError(t, err, kbroker.Unavailable, kbroker.ExecutedUnknown)
		if said := kbroker.AsError(err); !strings.HasPrefix(said.Message, "nobody serves echo/echo m") || !strings.Contains(said.Hint, "last of 4 attempts") {
			t.Errorf("error %q, hint %q, want that nobody serves it and of the last of 4 attempts", said.Message, said.Hint)
		}
	})
}
