package state

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// ownWrites is a core that does as it is told.
func (s *Store) ownWrites(ctx context.Context, r kbroker.OwnWriteRequest) (kbroker.OwnWriteReply, error) {
	return s.OwnWrite(ctx, shopKey, shopStreams, r)
}

// holds takes the lease of one allocator, and writes through a core.
func holds(t testing.TB, s *Store, clock *fakeClock, n int, write func(context.Context, kbroker.OwnWriteRequest) (kbroker.OwnWriteReply, error)) *AllocatorHolding {
	t.Helper()
	return &AllocatorHolding{held: mustTake(t, allocatorAt(s.ask, clock, n)), write: write}
}

func assigns(n kbroker.Shard, rev kbroker.Revision, owner string) kbroker.Write {
	return kbroker.Write{Key: subjects.KeyAssign(n), Expected: rev, Value: []byte(owner)}
}

func TestABatchBehindAnAllocatorsLease(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	clock := &fakeClock{}
	h := holds(t, s, clock, 1, s.ownWrites)
	clock.advance(Tuned.LeaseRenew)
	first, err := h.Write(testContext(t, 5*time.Second), []kbroker.Write{assigns(1, 0, "a"), assigns(2, 0, "b")})
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	for i, n := range []kbroker.Shard{1, 2} {
		if rev, value := at(t, s, subjects.KeyAssign(n)); rev != first.At(i) || value == "" {
			t.Errorf("shard %d is %q at %d, the answer says %d", n, value, rev, first.At(i))
		}
	}
	if h.held.sinceSent() != 0 {
		t.Errorf("the batch has not renewed the lease: its term counts since %v", h.held.sinceSent())
	}
	if _, err := h.Write(testContext(t, 5*time.Second), []kbroker.Write{assigns(1, first.At(0), "c"), assigns(2, 0, "c")}); !errors.Is(err, kbroker.Conflict) || kbroker.AsError(err).Executed != kbroker.ExecutedNo {
		t.Errorf("a batch that expects something else: %v, want a conflict, executed no", err)
	}
	if rev, value := at(t, s, subjects.KeyAssign(1)); rev != first.At(0) || value != "a" {
		t.Errorf("a refused batch has written %q at %d", value, rev)
	}
	if h.held.over() {
		t.Fatal("a refused batch has ended the holding, whose lease nobody took")
	}
	if _, err := h.Write(testContext(t, 5*time.Second), []kbroker.Write{assigns(1, first.At(0), "c")}); err != nil {
		t.Errorf("the next batch: %v", err)
	}
}

func TestABatchOfADeposedAllocatorIsRefusedWhole(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	clock := &fakeClock{}
	old := holds(t, s, clock, 1, s.ownWrites)
	next := allocatorAt(s.ask, clock, 2)
	record, rev, err := next.store.read(testContext(t, 5*time.Second))
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if next.acquire(testContext(t, 5*time.Second), record, rev, Tuned.RenewAttempt) == nil {
		t.Fatal("the lease was not taken over")
	}
	if _, err := old.Write(testContext(t, 5*time.Second), []kbroker.Write{assigns(1, 0, "a"), assigns(2, 0, "a")}); !errors.Is(err, kbroker.Refused) {
		t.Fatalf("a deposed allocator's batch: %v, want refused", err)
	}
	for _, n := range []kbroker.Shard{1, 2} {
		if rev, _ := at(t, s, subjects.KeyAssign(n)); rev != 0 {
			t.Errorf("a part of it is at %d", rev)
		}
	}
	if !old.held.over() {
		t.Error("the holding goes on")
	}
	written := false
	old.write = func(context.Context, kbroker.OwnWriteRequest) (kbroker.OwnWriteReply, error) {
		written = true
		return kbroker.OwnWriteReply{}, nil
	}
	if _, err := old.Write(testContext(t, 5*time.Second), []kbroker.Write{assigns(1, 0, "a")}); !errors.Is(err, kbroker.Refused) || written {
		t.Errorf("a lease that was lost is regained: %v, sent %t", err, written)
	}
}

// The answer to a batch is lost: the holding reads where its lease is, and goes on.
func TestABatchOfUnknownOutcome(t *testing.T) {
	for name, applied := range map[string]bool{"that was written": true, "that was not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, s := ownedObjects(t)
			clock, lost := &fakeClock{}, false
			h := holds(t, s, clock, 1, func(ctx context.Context, r kbroker.OwnWriteRequest) (kbroker.OwnWriteReply, error) {
				if lost {
					return s.ownWrites(ctx, r)
				}
				if lost = true; applied {
					if _, err := s.ownWrites(ctx, r); err != nil {
						return kbroker.OwnWriteReply{}, err
					}
				}
				return kbroker.OwnWriteReply{}, kbroker.Unavailable
			})
			before := h.held.rev
			clock.advance(Tuned.LeaseRenew)
			_, err := h.Write(testContext(t, 5*time.Second), []kbroker.Write{assigns(1, 0, "a")})
			if !errors.Is(err, kbroker.Unavailable) || kbroker.AsError(err).Executed == kbroker.ExecutedNo {
				t.Fatalf("a batch without an answer: %v, want unavailable, executed unknown", err)
			}
			since := Tuned.LeaseRenew
			if applied { // it has renewed the lease
				since = 0
			}
			if h.held.over() || h.held.sinceSent() != since || h.held.rev > before != applied {
				t.Fatalf("over %t, term since %v, lease at %d after %d: want it held at the revision that is stored, from when that was sent", h.held.over(), h.held.sinceSent(), h.held.rev, before)
			}
			rev, _ := at(t, s, subjects.KeyAssign(1))
			if rev != 0 != applied {
				t.Fatalf("the shard is at %d", rev)
			}
			if _, err := h.Write(testContext(t, 5*time.Second), []kbroker.Write{assigns(1, rev, "b")}); err != nil {
				t.Errorf("the next batch: %v", err)
			}
		})
	}
}

// A core is paused with a batch in its hands, of which nobody waits for an answer any more.
func TestALateBatchIsFencedByARenewal(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	var late *kbroker.OwnWriteRequest
	h := holds(t, s, &fakeClock{}, 1, func(_ context.Context, r kbroker.OwnWriteRequest) (kbroker.OwnWriteReply, error) {
		late = &r
		return kbroker.OwnWriteReply{}, kbroker.Unavailable
	})
	if _, err := h.Write(testContext(t, 5*time.Second), []kbroker.Write{assigns(1, 0, "a")}); !errors.Is(err, kbroker.Unavailable) {
		t.Fatalf("write: %v, want unavailable", err)
	}
	if err := renewOnce(t, h.held); err != nil {
		t.Fatalf("renew: %v", err)
	}
	if _, err := s.ownWrites(testContext(t, 5*time.Second), *late); !errors.Is(err, kbroker.Conflict) {
		t.Errorf("the late batch: %v, want a conflict", err)
	}
}

// Cores that say no for a reason of their own: nothing was written, and the lease is held.
func TestABatchThatACoreDoesNotTake(t *testing.T) {
	for name, c := range map[string]struct {
		answer error
		times  int
		want   error // nil: it is taken in the end
	}{
		"has no room":             {kbroker.Errorf(kbroker.Overloaded, "busy"), 2, nil},
		"has no room for long":    {kbroker.Errorf(kbroker.Overloaded, "busy"), 100, kbroker.Overloaded},
		"does not let it":         {kbroker.Errorf(kbroker.Refused, "may not"), 100, kbroker.Invalid},
		"does not understand it":  {kbroker.Errorf(kbroker.Invalid, "no batch"), 100, kbroker.Invalid},
		"does not know of a code": {kbroker.Errorf("other", "what"), 100, kbroker.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, s := ownedObjects(t)
			asked := 0
			h := holds(t, s, &fakeClock{}, 1, func(ctx context.Context, r kbroker.OwnWriteRequest) (kbroker.OwnWriteReply, error) {
				if asked++; asked <= c.times {
					return kbroker.OwnWriteReply{}, c.answer
				}
				return s.ownWrites(ctx, r)
			})
			if _, err := h.Write(testContext(t, 5*time.Second), []kbroker.Write{assigns(1, 0, "a")}); !errors.Is(err, c.want) {
				t.Errorf("the batch: %v, want %v", err, c.want)
			}
			if h.held.over() {
				t.Error("the holding is over")
			}
		})
	}
}

// Renewals and batches of one holding do not get in each other's way: none is refused.
func TestBatchesBesideRenewals(t *testing.T) {
	t.Parallel()
	srv, s := ownedObjects(t)
	serveLeases(t, srv.Connect(t), s)
	times := quick
	times.LeaseRenew = time.Millisecond // at every look
	var renewed atomic.Int64
	ask := askOver(srv.Connect(t))
	done := make(chan error, 1)
	start(t, func(ctx context.Context) error {
		return HoldAllocator(ctx, AllocatorLease{
			Ask: func(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error) {
				if r.Write != nil {
					renewed.Add(1)
				}
				return ask(ctx, r)
			},
			Write: s.ownWrites, Tenant: "default", App: "shop", Holder: "shop-allocator-1.a", Times: times, Log: testLog(t),
		}, func(ctx context.Context, h *AllocatorHolding) error {
			rev := kbroker.Revision(0)
			for n := 0; ctx.Err() == nil && (n < 100 || renewed.Load() < 5); n++ {
				reply, err := h.Write(ctx, []kbroker.Write{assigns(1, rev, fmt.Sprint(n))})
				if err != nil {
					done <- fmt.Errorf("batch %d: %w", n, err)
					return nil
				}
				rev = reply.First
			}
			done <- nil
			<-ctx.Done()
			return nil
		})
	})
	wait.Until(t, 20*time.Second, func() error {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return nil
		default:
			return fmt.Errorf("not all batches are written, %d renewals", renewed.Load())
		}
	})
}
