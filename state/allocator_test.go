package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/subjects"
)

var shopKey = AppKey{"default", "shop"}

// ownedApp is a running store with the lease of an app.
func ownedApp(t testing.TB) (*natstest.Server, *Store) {
	t.Helper()
	srv, s := founded(t)
	for range 2 { // the second changes nothing
		if err := s.EnsureApp(testContext(t, 5*time.Second), shopKey); err != nil {
			t.Fatalf("ensure app: %v", err)
		}
	}
	return srv, s
}

// serveLeases lets a store answer allocators, as a core does.
func serveLeases(t testing.TB, conn *nats.Conn, s *Store) {
	t.Helper()
	_, err := conn.QueueSubscribe(subjects.AllLeases, subjects.QueueCore, func(m *nats.Msg) {
		var r kbroker.LeaseRequest
		var out any
		err := json.Unmarshal(m.Data, &r)
		if err == nil {
			out, err = s.Lease(testContext(t, time.Second), shopKey, r)
		}
		reply := nats.NewMsg(m.Reply)
		if err != nil {
			reply.Header.Set(subjects.HeaderCode, string(kbroker.AsError(err).Code))
			out = kbroker.AsError(err)
		}
		reply.Data, _ = json.Marshal(out)
		_ = m.RespondMsg(reply)
	})
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		t.Fatalf("serve leases: %v", err)
	}
}

// askOver asks whichever core takes it.
func askOver(conn *nats.Conn) coreLease {
	return func(ctx context.Context, r kbroker.LeaseRequest) (reply kbroker.LeaseReply, err error) {
		body, _ := json.Marshal(r)
		m, err := conn.RequestWithContext(ctx, subjects.Lease("default", "shop"), body)
		switch {
		case err != nil:
			return reply, fmt.Errorf("%w: %w", kbroker.Unavailable, err)
		case m.Header.Get(subjects.HeaderCode) != "":
			failure := &kbroker.Error{}
			return reply, errors.Join(json.Unmarshal(m.Data, failure), failure)
		}
		return reply, json.Unmarshal(m.Data, &reply)
	}
}

// ask is a core that does as it is told.
func (s *Store) ask(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error) {
	return s.Lease(ctx, shopKey, r)
}

// allocatorAt is the lease of one allocator behind a core.
func allocatorAt(ask coreLease, clock *fakeClock, n int) *lease {
	name := fmt.Sprintf("shop-allocator-%d.a", n)
	return &lease{store: ask, subject: subjects.AllocatorLease("default", "shop"), me: leaseRecord{Holder: name, Process: name}, times: Tuned, clock: clock.read, log: slog.New(slog.DiscardHandler), every: 5 * time.Millisecond}
}

func mustTake(t testing.TB, l *lease) *holding {
	t.Helper()
	h := l.campaign(testContext(t, 5*time.Second))
	if h == nil {
		t.Fatal("the lease was not taken")
	}
	return h
}

func renewOnce(t testing.TB, h *holding) error {
	t.Helper()
	return h.behind(testContext(t, 5*time.Second), func(ctx context.Context, rev uint64) (uint64, error) {
		return h.lease.write(ctx, h.record, rev, 5*time.Second)
	})
}

func TestOneAllocatorIsActive(t *testing.T) {
	srv, s := ownedApp(t)
	serveLeases(t, srv.Connect(t), s)
	serveLeases(t, srv.Connect(t), open(t, srv.Connect(t), Config{Host: "h2"})) // either core
	var active atomic.Int64
	epochs := make(chan uint64, 2)
	run := func(holder kbroker.Incarnation) (stop func()) {
		cfg := AllocatorLease{Ask: askOver(srv.Connect(t)), Tenant: "default", App: "shop", Holder: holder, Times: quick, Log: testLog(t)}
		return start(t, func(ctx context.Context) error {
			return HoldAllocator(ctx, cfg, func(ctx context.Context, h *AllocatorHolding) error {
				if n := active.Add(1); n != 1 {
					t.Errorf("%d allocators are active, want one", n)
				}
				defer active.Add(-1)
				epochs <- h.Epoch()
				<-ctx.Done()
				return nil
			})
		})
	}
	next := func() uint64 {
		select {
		case e := <-epochs:
			return e
		case <-time.After(10 * time.Second):
			t.Fatal("no allocator became active within 10 s")
			return 0
		}
	}
	stopA := run("shop-allocator-1.a")
	if e := next(); e != 1 {
		t.Fatalf("first epoch is %d, want 1", e)
	}
	run("shop-allocator-2.b")
	stopA()
	if e := next(); e != 2 {
		t.Fatalf("epoch after the first allocator left is %d, want 2", e)
	}
}

func TestNoLeaseIsJudgedWithoutItsStream(t *testing.T) {
	_, s := founded(t)
	ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
	defer cancel()
	err := HoldAllocator(ctx, AllocatorLease{Ask: s.ask, Tenant: "default", App: "shop", Holder: "shop-allocator-1.a", Times: Times{RenewAttempt: 1, LeaseRenew: 1, HolderStops: 2, ObserverActs: 3}},
		func(context.Context, *AllocatorHolding) error { t.Error("active without a stream"); return nil })
	if err != nil {
		t.Fatalf("hold allocator returned %v, want nil at the end of its context", err)
	}
}

// The core wrote and died: who took the lease without hearing of it finds its own name,
// and holds by the write that was acknowledged.
func TestATakingThroughACoreThatDiedIsTakenAgain(t *testing.T) {
	_, s := ownedApp(t)
	clock := &fakeClock{}
	died := false
	h := mustTake(t, allocatorAt(func(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error) {
		reply, err := s.ask(ctx, r)
		if r.Write != nil && !died {
			died = true
			clock.advance(time.Second)
			return kbroker.LeaseReply{}, kbroker.Unavailable
		}
		return reply, err
	}, clock, 1))
	if h.record.Epoch != 2 || h.sent != time.Second {
		t.Fatalf("held under epoch %d since %v, want 2 and the second attempt's %v", h.record.Epoch, h.sent, time.Second)
	}
	if err := renewOnce(t, h); err != nil {
		t.Fatalf("renew: %v", err)
	}
}

// One that is there counts from when it was sent, one that is not does not count.
func TestARenewalThatNobodyAcknowledged(t *testing.T) {
	for name, there := range map[string]bool{"is there": true, "is not": false} {
		t.Run(name, func(t *testing.T) {
			_, s := ownedApp(t)
			clock := &fakeClock{}
			h := mustTake(t, allocatorAt(s.ask, clock, 1))
			const takes = 100 * time.Millisecond // each read
			h.lease.store = coreLease(func(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error) {
				if r.Write != nil && !there {
					return kbroker.LeaseReply{}, kbroker.Unavailable
				}
				reply, err := s.ask(ctx, r)
				if r.Write != nil {
					return kbroker.LeaseReply{}, kbroker.Unavailable
				}
				clock.advance(takes)
				return reply, err
			})
			for n := 1; clock.read() < Tuned.HolderStops-Tuned.LeaseRenew; n++ {
				clock.advance(Tuned.LeaseRenew)
				sent := clock.read()
				if err := renewOnce(t, h); !errors.Is(err, errUnknown) {
					t.Fatalf("a renewal without an answer returned %v, want unknown", err)
				}
				if !there {
					sent = 0 // the taking
				}
				if got := clock.read() - h.sinceSent(); got != sent {
					t.Fatalf("after %d renewals the term counts from %v, want %v", n, got, sent)
				}
			}
			clock.advance(Tuned.LeaseRenew)
			if h.over() == there {
				t.Fatalf("the term is over: %t", h.over())
			}
		})
	}
}

// A core is paused with a write in its hands.
func TestALateWriteOfACore(t *testing.T) {
	for name, c := range map[string]struct {
		renews bool // the holder, before the late write
		taken  bool // by another, likewise
		late   error
	}{
		"is refused when the holder has renewed":       {renews: true, late: kbroker.Conflict},
		"is refused when another has taken the lease":  {taken: true, late: kbroker.Conflict},
		"deposes nobody when nothing else was written": {},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := ownedApp(t)
			clock := &fakeClock{}
			h := mustTake(t, allocatorAt(s.ask, clock, 1))
			var held *kbroker.LeaseRequest
			h.lease.store = coreLease(func(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error) {
				if r.Write != nil && held == nil {
					held = &r
					return kbroker.LeaseReply{}, kbroker.Unavailable
				}
				return s.ask(ctx, r)
			})
			if err := renewOnce(t, h); !errors.Is(err, errUnknown) {
				t.Fatalf("the renewal returned %v, want unknown", err)
			}
			var next *holding
			if c.renews {
				if err := renewOnce(t, h); err != nil {
					t.Fatalf("renew: %v", err)
				}
			}
			if c.taken {
				l := allocatorAt(s.ask, clock, 2)
				record, rev, err := l.store.read(testContext(t, 5*time.Second))
				if err != nil {
					t.Fatalf("read: %v", err)
				}
				clock.advance(Tuned.ObserverActs)
				if next = l.acquire(testContext(t, 5*time.Second), record, rev, Tuned.RenewAttempt); next == nil {
					t.Fatal("the lease was not taken over")
				}
			}
			sent := h.sinceSent()
			if _, err := s.ask(testContext(t, 5*time.Second), *held); !errors.Is(err, c.late) {
				t.Fatalf("the late write returned %v, want %v", err, c.late)
			}
			if h.sinceSent() != sent {
				t.Error("a write that nobody heard of has extended the term")
			}
			if next != nil {
				if err := renewOnce(t, next); err != nil || !h.over() {
					t.Fatalf("the new holder renews: %v; the old one is over: %t", err, h.over())
				}
				return
			}
			if err := renewOnce(t, h); err != nil && !errors.Is(err, errRefused) {
				t.Fatalf("renewal after the late write: %v", err)
			}
			if err := renewOnce(t, h); err != nil {
				t.Fatalf("second renewal after the late write: %v", err)
			}
		})
	}
}

// One of two cores reaches no majority: what it is asked fails, the other's go on.
func TestALeaseIsKeptBesideACoreWithoutAMajority(t *testing.T) {
	_, s := ownedApp(t)
	clock := &fakeClock{}
	asked := 0
	h := mustTake(t, allocatorAt(func(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error) {
		if asked++; asked%3 == 0 {
			return kbroker.LeaseReply{}, kbroker.Unavailable
		}
		return s.ask(ctx, r)
	}, clock, 1))
	failed := 0
	for range 20 {
		clock.advance(Tuned.LeaseRenew)
		for h.sinceSent() >= Tuned.LeaseRenew && !h.over() {
			if err := renewOnce(t, h); err != nil {
				failed++
			}
		}
	}
	if h.over() || failed == 0 {
		t.Fatalf("the lease is over: %t, with %d attempts that failed; want it kept with some", h.over(), failed)
	}
}

// Whatever cores and messages do, no two allocators believe in the lease at once. A step
// is one look, one renewal, one write that comes late, or time that passes.
func TestNoTwoAllocatorsHoldTheLease(t *testing.T) {
	_, s := ownedApp(t)
	taken := 0
	rapid.Check(t, func(rt *rapid.T) {
		clock := &fakeClock{}
		var late []kbroker.LeaseRequest
		var read []kbroker.LeaseReply // all that was, the oldest first
		depth, step := 0, func() {}
		ask := func(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error) {
			pause := func(where string) { // meanwhile the others go on
				for range rapid.SampledFrom([]int{0, 0, 0, 1, 4}).Draw(rt, "meanwhile") {
					if depth < 2 {
						step()
					}
				}
				clock.advance(rapid.SampledFrom([]time.Duration{0, 0, 0, 0, time.Millisecond, 2 * time.Second, 7 * time.Second}).Draw(rt, where))
			}
			fault := rapid.SampledFrom([]string{"", "", "", "", "", "", "lost", "lost", "unanswered", "late", "old", "old"}).Draw(rt, "fault")
			pause("before")
			switch {
			case fault == "lost":
				return kbroker.LeaseReply{}, kbroker.Unavailable
			case fault == "late" && r.Write != nil:
				late = append(late, r)
				return kbroker.LeaseReply{}, kbroker.Unavailable
			case fault == "old" && r.Write == nil && len(read) > 0: // by a leader that was deposed
				return read[rapid.IntRange(max(0, len(read)-4), len(read)-1).Draw(rt, "how old")], nil
			}
			reply, err := s.ask(ctx, r)
			if r.Write == nil && err == nil {
				read = append(read, reply)
			}
			pause("after")
			if fault == "unanswered" {
				return kbroker.LeaseReply{}, kbroker.Unavailable
			}
			return reply, err
		}
		type allocator struct {
			*lease
			watch watch
			held  *holding
			busy  bool // it waits for an answer
		}
		ctx := context.Background()
		all := make([]allocator, 3)
		for i := range all {
			l := allocatorAt(ask, clock, i+1)
			all[i] = allocator{lease: l, watch: watch{times: l.times, me: l.me}}
		}
		step = func() {
			depth++
			defer func() { depth-- }()
			switch what := rapid.SampledFrom([]string{"act", "act", "act", "act", "late", "time", "leave"}).Draw(rt, "step"); what {
			case "time":
				clock.advance(rapid.SampledFrom([]time.Duration{time.Second, 3 * time.Second, Tuned.ObserverActs}).Draw(rt, "time"))
			case "late":
				if len(late) > 0 {
					i := rapid.IntRange(0, len(late)-1).Draw(rt, "which")
					_, _ = s.ask(ctx, late[i])
					late = append(late[:i], late[i+1:]...)
				}
			default:
				a := &all[rapid.IntRange(0, len(all)-1).Draw(rt, "who")]
				if a.busy {
					return
				}
				a.busy = true
				defer func() { a.busy = false }()
				switch {
				case a.held != nil && (a.held.over() || what == "leave"): // it stops, then says so
					h := a.held
					a.held, a.watch = nil, watch{times: a.times, me: a.me}
					released := h.record
					released.Released = true
					_, _ = a.lease.write(ctx, released, h.rev, time.Minute)
				case a.held != nil:
					_ = a.held.behind(ctx, func(ctx context.Context, rev uint64) (uint64, error) {
						return a.lease.write(ctx, a.held.record, rev, time.Minute)
					})
				default:
					asked := clock.read()
					record, rev, err := a.store.read(ctx)
					if err != nil {
						a.watch.failed()
					} else if a.watch.saw(record, rev, asked, clock.read()) {
						if a.held = a.acquire(ctx, record, rev, a.times.RenewAttempt); a.held != nil {
							taken++
						}
					}
				}
			}
			believe := 0
			for _, a := range all {
				// Not over(): who is paused does not look at its clock.
				if h := a.held; h != nil && !h.lost && clock.read()-h.sent < a.times.HolderStops {
					believe++
				}
			}
			if believe > 1 {
				rt.Fatalf("%d allocators believe in the lease", believe)
			}
		}
		for range 60 {
			step()
		}
	})
	if taken < 10 {
		t.Fatalf("the lease was taken %d times in all, want many", taken)
	}
}

func TestACoreStoresNothingButALeaseOfTheApp(t *testing.T) {
	_, s := ownedApp(t)
	before, err := s.ask(testContext(t, 5*time.Second), kbroker.LeaseRequest{})
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	for _, holder := range []kbroker.Incarnation{
		"", "bank-allocator-1.a", "shop-web-1.a", "shop-allocator-1", "shop-allocator-1.", "shop-allocator-.a", "shop-allocator-allocator-1.a",
		"shop-allocator-1.a.b", "shop-allocator-1.{}", kbroker.Incarnation("shop-allocator-1." + strings.Repeat("a", maxHolder)),
	} {
		_, err := s.ask(testContext(t, 5*time.Second), kbroker.LeaseRequest{Write: &kbroker.AllocatorLease{Holder: holder, Epoch: 1}, Expected: before.Sequence})
		if !errors.Is(err, kbroker.Invalid) {
			t.Errorf("a lease held by %.40q: %v, want invalid", holder, err)
		}
	}
	after, err := s.ask(testContext(t, 5*time.Second), kbroker.LeaseRequest{})
	if err != nil || after.Sequence != before.Sequence {
		t.Fatalf("the lease is at sequence %d, was at %d (%v); want nothing written", after.Sequence, before.Sequence, err)
	}
}
