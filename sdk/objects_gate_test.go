package sdk

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
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
