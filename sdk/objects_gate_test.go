package sdk

import (
	"context"
	"errors"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/boottime"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestReadsByTheGateShowWhatIsStored: beside turns that are half done, that fail, that panic,
// and that delete; and that the gate is what most of them come by.
func TestReadsByTheGateShowWhatIsStored(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	var gated, all atomic.Int64
	a := bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "add", func(a *account, ctx context.Context, what string) (int64, error) {
			a.Cents++ // half
			<-time.After(time.Millisecond)
			switch what {
			case "fail":
				return 0, Errorf("no", "it is taken back")
			case "delete":
				Delete(ctx)
			}
			a.Cents++
			return a.Cents, nil
		})
		ReadOnly(k, "see", func(a *account, ctx context.Context, _ struct{}) (int64, error) {
			if all.Add(1); turnOf(ctx).apart.Load() {
				gated.Add(1)
			}
			before := a.Cents
			<-time.After(100 * time.Microsecond)
			if a.Cents != before {
				return -1, nil
			}
			return before, nil
		})
	})
	start(t, a)
	c := dial(t, s.URL)
	o := c.Object("bank/account:1")
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if n, err := Call[int64](within(t, patience), o, "see", nil); err != nil || n%2 != 0 {
					t.Errorf("a read shows %d (%v), want what is stored: even", n, err)
					return
				}
			}
		})
	}
	var stored int64
	for n := range 200 {
		what := [...]string{"", "", "fail", "", "delete"}[n%5]
		got, err := Call[int64](within(t, patience), o, "add", what)
		switch {
		case what == "fail":
			wantError(t, err, "no", kbroker.ExecutedYes)
		case err != nil:
			t.Fatal(err)
		case what == "delete":
			stored = 0
		default:
			if stored += 2; got != stored {
				t.Fatalf("turn %d made it %d, want %d", n, got, stored)
			}
		}
		seen, err := Call[int64](within(t, patience), o, "see", nil)
		if err != nil || seen != stored {
			t.Fatalf("after turn %d a read shows %d (%v), want %d", n, seen, err, stored)
		}
	}
	close(done)
	readers.Wait()
	if gated.Load() < all.Load()/10 {
		t.Errorf("%d of %d reads came by the gate", gated.Load(), all.Load())
	}
	t.Logf("%d of %d reads came by the gate", gated.Load(), all.Load())
}

// TestAReadThatPanicsCountsForTheQuarantine, though the loop does not run it.
func TestAReadThatPanicsCountsForTheQuarantine(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		ReadOnly(k, "see", func(_ *account, _ context.Context, panics bool) (int64, error) {
			if panics {
				panic("as it was told")
			}
			return 0, nil
		})
	}))
	c := dial(t, s.URL)
	see := func(panics bool) error {
		_, err := Call[int64](within(t, patience), c.Object("bank/account:1"), "see", panics)
		return err
	}
	for range 3 {
		if err := see(false); err != nil {
			t.Fatal(err)
		}
	}
	for range maxPanics + 1 {
		if err := see(true); err == nil {
			t.Error("a read that panics is answered")
		}
	}
	if err := see(false); !errors.Is(err, kbroker.Refused) {
		t.Errorf("after %d panics: %v, want that it is in quarantine", maxPanics+1, err)
	}
}

// hold has the loop do nothing until the answer is closed; what comes meanwhile waits.
func (k *keeper) hold(t *testing.T) (free chan struct{}) {
	t.Helper()
	held := make(chan struct{})
	free = make(chan struct{})
	k.post(func(time.Duration) {
		close(held)
		<-free
	})
	<-held
	return free
}

// awaitHeard returns when so many requests wait for the loop.
func (k *keeper) awaitHeard(t *testing.T, n int) {
	t.Helper()
	wait.Until(t, patience, func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.waiting < n {
			return kbroker.Errorf(kbroker.Failed, "%d requests wait, want %d", k.waiting, n)
		}
		return nil
	})
}

// TestAReadThatPanicsTakesNoTurnBack: the turn waits for the loop while the read, which has
// come by the gate, panics.
func TestAReadThatPanicsTakesNoTurnBack(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	in, panics := make(chan bool, 1), make(chan struct{})
	a := bank(s.URL, "a", func(k *Kind[account]) {
		ReadOnly(k, "see", func(a *account, ctx context.Context, boom bool) (int64, error) {
			if boom {
				in <- turnOf(ctx).apart.Load()
				<-panics
				panic("as it was told")
			}
			return a.Cents, nil
		})
	})
	start(t, a)
	c := dial(t, s.URL)
	see := func(boom bool) int64 {
		n, err := Call[int64](within(t, patience), c.Object("bank/account:1"), "see", boom)
		if err != nil && !boom {
			t.Error(err)
		}
		return n
	}
	c.deposit(t, "1", 100)
	for range 3 {
		see(false)
	}
	var all sync.WaitGroup
	all.Go(func() { see(true) })
	if !<-in {
		t.Fatal("the read has not come by the gate")
	}
	free := a.keeper.hold(t)
	all.Go(func() { c.deposit(t, "1", 10) })
	a.keeper.awaitHeard(t, 1)
	close(panics)
	wait.Until(t, patience, func() error {
		if n := a.keeper.gates.running.Load(); n > 0 {
			return kbroker.Errorf(kbroker.Failed, "%d reads are in", n)
		}
		return nil
	})
	close(free)
	all.Wait()
	if got := see(false); got != 110 {
		t.Errorf("100 and 10 are %d", got)
	}
	if got := c.deposit(t, "1", 1); got != 111 {
		t.Errorf("and 1 are %d", got)
	}
}

// TestAReadThatIsLateAtTheGateSeesWhatIsStored: between the look at what is lent and the gate
// a turn has failed.
func TestAReadThatIsLateAtTheGateSeesWhatIsStored(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	a := bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "spoil", func(a *account, _ context.Context, _ struct{}) (int64, error) {
			a.Cents = 666
			return 0, Errorf("no", "it is taken back")
		})
	})
	var armed atomic.Bool
	at, goOn := make(chan struct{}), make(chan struct{})
	a.clock = func() time.Duration {
		if armed.Load() && strings.Contains(string(debug.Stack()), "readNow") && armed.CompareAndSwap(true, false) {
			close(at)
			<-goOn
		}
		return boottime.Now()
	}
	start(t, a)
	c, d := dial(t, s.URL), dial(t, s.URL)
	c.deposit(t, "1", 100)
	for range 3 {
		c.balance(t, "1")
	}
	free := a.keeper.hold(t)
	var all sync.WaitGroup
	failed := make(chan struct{})
	all.Go(func() {
		defer close(failed)
		_, err := Call[int64](within(t, patience), d.Object("bank/account:1"), "spoil", nil)
		wantError(t, err, "no", kbroker.ExecutedYes)
	})
	a.keeper.awaitHeard(t, 1)
	armed.Store(true)
	all.Go(func() {
		if got := c.balance(t, "1"); got != 100 {
			t.Errorf("a read shows %d, which was never stored", got)
		}
	})
	<-at
	close(free)
	<-failed
	close(goOn)
	all.Wait()
}

// TestCallsOfReadsThatAreOverAreForgotten: of a goroutine that a read has left behind.
func TestCallsOfReadsThatAreOverAreForgotten(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	var late sync.WaitGroup
	a := bank(s.URL, "a", func(k *Kind[account]) {
		ReadOnly(k, "see", func(a *account, ctx context.Context, leaves bool) (int64, error) {
			if leaves {
				late.Go(func() {
					<-ctx.Done()
					_, _ = Call[int64](ctx, Object("bank/account:2"), "balance", nil)
				})
			}
			return a.Cents, nil
		})
	})
	start(t, a)
	c := dial(t, s.URL)
	for n := range 50 {
		if _, err := Call[int64](within(t, patience), c.Object("bank/account:1"), "see", n > 3); err != nil {
			t.Fatal(err)
		}
	}
	late.Wait()
	wait.Until(t, patience, func() error {
		n := make(chan int, 1)
		a.keeper.post(func(time.Duration) { n <- len(a.keeper.crossings.runs) })
		if left := <-n; left > 0 {
			return kbroker.Errorf(kbroker.Failed, "turns of %d objects are kept that are over", left)
		}
		return nil
	})
}
