package sdk

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestWhoHasNothingToDoLooksRarely, and as often as ever for what is due soon, or waits.
func TestWhoHasNothingToDoLooksRarely(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	begun, end := make(chan struct{}), make(chan struct{})
	a := bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "hold", func(*account, context.Context, struct{}) (string, error) {
			close(begun)
			<-end
			return "", nil
		})
	})
	start(t, a)
	k := a.keeper
	pause := func(with func(now time.Duration) (without func())) time.Duration {
		is := make(chan time.Duration, 1)
		k.post(func(now time.Duration) {
			without := with(now)
			is <- k.pause(now)
			without()
		})
		return <-is
	}
	asIs := func(time.Duration) func() { return func() {} }
	idles := func(with func(now time.Duration) func()) {
		t.Helper()
		wait.Until(t, patience, func() error {
			if p := pause(with); p != tickIdle {
				return fmt.Errorf("it looks again after %v", p)
			}
			return nil
		})
	}
	timerIn := func(d time.Duration) func(now time.Duration) func() {
		return func(now time.Duration) func() {
			x := &timer{due: now + d}
			heap.Push(&k.timers, x)
			return func() { heap.Remove(&k.timers, x.at) }
		}
	}
	reminderIn := func(d time.Duration) func(time.Duration) func() {
		return func(time.Duration) func() {
			x := &reminder{at: time.Now().Add(d)}
			heap.Push(&k.reminders, x)
			return func() { heap.Remove(&k.reminders, x.index) }
		}
	}
	idles(asIs)
	idles(timerIn(time.Minute))
	idles(reminderIn(time.Minute))
	for what, with := range map[string]func(time.Duration) func(){"timer": timerIn(tickIdle / 2), "reminder": reminderIn(tickIdle / 2)} {
		if p := pause(with); p != tickEvery {
			t.Errorf("it looks after %v for a %s that is due after %v", p, what, tickIdle/2)
		}
	}
	c := dial(t, s.URL)
	done := make(chan error, 1)
	go func() {
		_, err := Call[string](context.Background(), c.Object("bank/account:1"), "hold", struct{}{})
		done <- err
	}()
	<-begun
	waiting := make(chan error, 1)
	go func() {
		_, err := Call[int64](context.Background(), c.Object("bank/account:1"), "deposit", 5)
		waiting <- err
	}()
	wait.Until(t, patience, func() error {
		if k.queued.Load() == 0 {
			return errors.New("no call waits")
		}
		return nil
	})
	for range 20 { // each tick could take it for quiet
		if p := pause(asIs); p != tickEvery {
			t.Fatalf("it looks after %v while a call waits for its object", p)
		}
		<-time.After(tickEvery / 4)
	}
	close(end)
	for _, ended := range []chan error{done, waiting} {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	idles(asIs)
}
