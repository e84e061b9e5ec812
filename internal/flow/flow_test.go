package flow

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kbroker/kbroker"
)

// pair are two ends between which messages are lost as lose says.
func pair(lose func() bool) (a, b *End) {
	to := func(e **End) func(kbroker.ExecFrame) {
		return func(f kbroker.ExecFrame) {
			if !lose() {
				(*e).Arrive(f)
			}
		}
	}
	a, b = New(to(&b)), New(to(&a))
	return a, b
}

// TestContentArrivesOnceAndInOrder, both ways, whatever is lost.
func TestContentArrivesOnceAndInOrder(t *testing.T) {
	for name, share := range map[string]float64{"nothing is lost": 0, "each fifth is lost": 0.2, "every second one is lost": 0.5} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				var mu sync.Mutex
				r := rand.New(rand.NewPCG(seed, 1))
				a, b := pair(func() bool {
					mu.Lock()
					defer mu.Unlock()
					return r.Float64() < share
				})
				ctx, cancel := context.WithCancel(t.Context())
				var parts, done sync.WaitGroup
				const n = 500
				for _, ends := range [][2]*End{{a, b}, {b, a}} {
					from, to := ends[0], ends[1]
					parts.Go(func() {
						if err := from.Run(ctx); err != nil {
							t.Error(err)
						}
					})
					parts.Go(func() {
						for i := range n {
							from.Put(ctx, kbroker.ExecFrame{Data: []byte{byte(i), byte(i >> 8)}})
						}
					})
					done.Go(func() {
						for i := range n {
							f, ok := to.Next(ctx)
							if !ok || !bytes.Equal(f.Data, []byte{byte(i), byte(i >> 8)}) {
								t.Errorf("number %d is %v, %t", i, f.Data, ok)
								return
							}
							to.Took()
						}
					})
				}
				done.Wait()
				cancel()
				parts.Wait()
			})
		})
	}
}

// TestWhoIsSlowIsWaitedFor: no more than the window is under way, and it is not sent again
// and again.
func TestWhoIsSlowIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := 0
		var b *End
		a := New(func(f kbroker.ExecFrame) {
			if f.Number > 0 {
				sent++
			}
			b.Arrive(f)
		})
		b = New(a.Arrive)
		ctx, cancel := context.WithCancel(t.Context())
		var parts sync.WaitGroup
		parts.Go(func() { _ = a.Run(ctx) })
		parts.Go(func() { _ = b.Run(ctx) })
		put := 0
		parts.Go(func() {
			for a.Put(ctx, kbroker.ExecFrame{Data: []byte{1}}) {
				put++
			}
		})
		time.Sleep(time.Minute) // of the bubble: nobody takes anything
		synctest.Wait()
		if put != kbroker.ExecWindow {
			t.Errorf("%d were taken off, want the window of %d", put, kbroker.ExecWindow)
		}
		if sent > 2*kbroker.ExecWindow {
			t.Errorf("%d frames were sent for %d", sent, put)
		}
		f, _ := b.Next(ctx)
		b.Took()
		time.Sleep(2 * Every)
		synctest.Wait()
		if put != kbroker.ExecWindow+1 || f.Number != 1 {
			t.Errorf("when one was taken %d were taken off, want one more", put)
		}
		cancel()
		parts.Wait()
	})
}

func TestSilenceEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := New(func(kbroker.ExecFrame) {}).Run(t.Context()); !errors.Is(err, ErrSilent) {
			t.Errorf("it ended with %v", err)
		}
		if d := time.Since(began); d != Silence {
			t.Errorf("it ended after %v, want %v", d, Silence)
		}
	})
}

// TestWhatNobodyCanHaveGotIsNotBelieved: who lies about what it got takes no room and
// loses nothing of others.
func TestWhatNobodyCanHaveGotIsNotBelieved(t *testing.T) {
	var n numbers
	for range kbroker.ExecWindow {
		n.number(kbroker.ExecFrame{})
	}
	n.hear(kbroker.ExecFrame{Got: 1000, Taken: 1000})
	n.hear(kbroker.ExecFrame{Got: 3, Taken: 30})
	if len(n.sent) != kbroker.ExecWindow-3 || n.room() {
		t.Errorf("%d are kept, room is %t", len(n.sent), n.room())
	}
	for i := range 2 * kbroker.ExecWindow {
		if next := n.hear(kbroker.ExecFrame{Number: uint64(i + 1)}); next != (i < kbroker.ExecWindow) {
			t.Errorf("number %d is the next: %t", i+1, next)
		}
	}
}
