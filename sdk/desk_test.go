package sdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/natstest"
)

func TestALateAnswerIsNotTheNextCalls(t *testing.T) {
	var d desks
	c := d.get()
	c.open = append(c.open, 1, 2)
	c.deliver(2, &nats.Msg{})
	c.clear(newBus().connect(connEvents{}))
	c.deliver(1, &nats.Msg{}) // was on its way when its slot was given up
	if len(c.open) != 0 || len(c.answers) != 1 {
		t.Fatalf("after a call %d attempts are open and %d answers there, want none but the late one", len(c.open), len(c.answers))
	}
	for n := range maxUnanswered {
		c.open = append(c.open, uint64(10+n))
		c.deliver(uint64(10+n), &nats.Msg{})
	}
	if c.mine(<-c.answers) {
		t.Error("the answer to the call before counts")
	}
	for n := range maxUnanswered {
		if len(c.answers) == 0 {
			t.Fatalf("%d of %d answers were dropped for a late one", maxUnanswered-n, maxUnanswered)
		}
		if a := <-c.answers; !c.mine(a) {
			t.Errorf("the answer to slot %d does not count", a.slot)
		}
	}
}

// TestCallsThatShareDesksDoNotMix has callers give up at about the time at which
// their answers come.
func TestCallsThatShareDesksDoNotMix(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	Handle(a, "slow", func(ctx context.Context, in []byte) ([]byte, error) {
		select {
		case <-time.After(rand.N(2 * time.Millisecond)):
		case <-ctx.Done():
		}
		return append([]byte(RequestIDOf(ctx)+" "), in...), nil
	}, Idempotent())
	start(t, a)
	c := dial(t, s.URL)
	var callers sync.WaitGroup
	var answered, givenUp atomic.Int32
	for caller := range 16 {
		callers.Go(func() {
			for n := range 100 {
				id, in := fmt.Sprintf("%d:%d", caller, n), []byte(fmt.Sprintf("%d of %d", n, caller))
				out, err := Call[[]byte](t.Context(), c.Service("echo"), "slow", in, RequestID(id), Timeout(time.Millisecond+rand.N(3*time.Millisecond)))
				switch want := id + " " + string(in); {
				case errors.Is(err, context.DeadlineExceeded):
					givenUp.Add(1)
				case err != nil && !errors.Is(err, DeadlineExceeded): // the handler's side was late to begin
					t.Errorf("call %s: %v", id, err)
				case err == nil && !bytes.Equal(out, []byte(want)):
					t.Errorf("call %s was answered %q, want %q", id, out, want)
				case err == nil:
					answered.Add(1)
				}
			}
		})
	}
	callers.Wait()
	t.Logf("%d answered, %d given up", answered.Load(), givenUp.Load())
	if c.opened.Load().transport.(*natsTransport).open() != 0 {
		t.Error("slots are left open by calls that ended")
	}
}

func (t *natsTransport) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.slots)
}
