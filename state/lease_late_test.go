package state

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kbroker/kbroker"
)

// lateStore takes each write after a time, one after the other, whether or not anybody waits for
// the answer. In a bubble.
type lateStore struct {
	writes, reads time.Duration

	mu     sync.Mutex
	record leaseRecord
	rev    uint64
	at     []time.Time // when it was written
}

func (s *lateStore) read(ctx context.Context) (leaseRecord, uint64, error) {
	if err := sleepFor(ctx, s.reads); err != nil {
		return leaseRecord{}, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record, s.rev, nil
}

func (s *lateStore) write(ctx context.Context, r leaseRecord, rev uint64) (uint64, error) {
	answered := make(chan uint64, 1)
	time.AfterFunc(s.writes, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.rev != rev {
			answered <- 0
			return
		}
		s.record, s.rev, s.at = r, rev+1, append(s.at, time.Now())
		answered <- s.rev
	})
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case rev := <-answered:
		if rev == 0 {
			return 0, kbroker.Errorf(kbroker.Conflict, "the lease has another revision")
		}
		return rev, nil
	}
}

func sleepFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// A store that takes long for each write, or also for each read, costs nobody the lease; and no
// term is longer than it would be from a write that is there.
func TestALeaseIsKeptThoughAnswersAreLate(t *testing.T) {
	for name, s := range map[string]*lateStore{
		"in time":         {writes: 50 * time.Millisecond, reads: 10 * time.Millisecond},
		"a little late":   {writes: 350 * time.Millisecond, reads: 10 * time.Millisecond},
		"behind the read": {writes: 900 * time.Millisecond, reads: 10 * time.Millisecond},
		"reads too":       {writes: 1200 * time.Millisecond, reads: 700 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				clock := func() time.Duration { return time.Since(began) + time.Hour }
				me := leaseRecord{Holder: "h1", Process: "p", Epoch: 7}
				s.record, s.rev = me, 1
				l := &lease{store: s, clock: clock, times: Tuned, me: me, log: slog.New(slog.DiscardHandler)}
				h := &holding{lease: l, record: me, rev: 1, sent: clock()}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				err := h.run(ctx, func(ctx context.Context, h *holding) error {
					for ctx.Err() == nil {
						s.mu.Lock()
						written := began
						if n := len(s.at); n > 0 {
							written = s.at[n-1]
						}
						s.mu.Unlock()
						if until := h.sinceSent(); until < time.Since(written) {
							t.Errorf("the term counts from %v ago, the lease was written %v ago", until, time.Since(written))
						}
						_ = sleepFor(ctx, 25*time.Millisecond)
					}
					if time.Since(began) < 30*time.Second {
						return errors.New("the lease was lost")
					}
					return nil
				})
				if err != nil {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
			})
		})
	}
}

// Nor does it keep everybody from taking it.
func TestALeaseIsTakenThoughAnswersAreLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		clock := func() time.Duration { return time.Since(began) + time.Hour }
		s := &lateStore{writes: 900 * time.Millisecond, reads: 300 * time.Millisecond}
		l := &lease{store: s, clock: clock, times: Tuned, me: leaseRecord{Holder: "h1", Process: "p"}, every: time.Second, log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		h := l.campaign(ctx)
		if h == nil || time.Since(began) > 10*time.Second {
			t.Fatalf("after %v it is held: %v", time.Since(began), h != nil)
		}
	})
}

// What is lost, as with the leader of a stream, is tried again soon: a taking waits no longer for it.
func TestATakingThatIsLostIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		clock := func() time.Duration { return time.Since(began) + time.Hour }
		s := &lateStore{writes: time.Millisecond, reads: time.Millisecond}
		lost := &lossyStore{lateStore: s, until: began.Add(Tuned.ObserverActs + 4*time.Second)}
		l := &lease{store: lost, clock: clock, times: Tuned, me: leaseRecord{Holder: "h1", Process: "p"}, every: 100 * time.Millisecond, log: slog.New(slog.DiscardHandler)}
		if h := l.campaign(t.Context()); h == nil || time.Since(lost.until) > 500*time.Millisecond || lost.writes < 8 {
			t.Fatalf("it is held: %v, %v after writes are taken again, of which %d were lost", h != nil, time.Since(lost.until), lost.writes)
		}
	})
}

// lossyStore loses all writes until a time.
type lossyStore struct {
	*lateStore
	until  time.Time
	writes int
}

func (s *lossyStore) write(ctx context.Context, r leaseRecord, rev uint64) (uint64, error) {
	if time.Now().Before(s.until) {
		s.writes++
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return s.lateStore.write(ctx, r, rev)
}

// A leader that was deposed and does not know it shows an older record: that is no renewal.
func TestAnOlderRecordExtendsNoTerm(t *testing.T) {
	clock := &fakeClock{}
	me := leaseRecord{Holder: "h1", Process: "p", Epoch: 7}
	shown := []uint64{9, 10, 9, 10}
	s := &readStore{shows: func() (leaseRecord, uint64, error) {
		rev := shown[0]
		shown = append(shown[1:], rev)
		return me, rev, nil
	}}
	l := &lease{store: s, clock: clock.read, times: Tuned, me: me, log: slog.New(slog.DiscardHandler)}
	h := &holding{lease: l, record: me, rev: 10, sent: clock.read()}
	for clock.read() < Tuned.HolderStops {
		if h.over() {
			t.Fatalf("the term is over after %v", clock.read())
		}
		clock.advance(Tuned.LeaseRenew)
		if err := h.behind(t.Context(), func(context.Context, uint64) (uint64, error) { return 0, context.DeadlineExceeded }); err == nil {
			t.Fatal("a write without an answer succeeds")
		}
		if h.rev != 10 {
			t.Fatalf("the lease is at %d, was at 10", h.rev)
		}
	}
	if !h.over() {
		t.Errorf("%v after the last renewal that was stored the term goes on", clock.read())
	}
}

// readStore shows what it is told to, and takes no write.
type readStore struct {
	shows func() (leaseRecord, uint64, error)
}

func (s *readStore) read(context.Context) (leaseRecord, uint64, error) { return s.shows() }

func (s *readStore) write(context.Context, leaseRecord, uint64) (uint64, error) {
	return 0, context.DeadlineExceeded
}
