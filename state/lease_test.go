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

// fakeClock only moves when it is told to.
type fakeClock struct{ now atomic.Int64 }

func (c *fakeClock) read() time.Duration     { return time.Duration(c.now.Load()) }
func (c *fakeClock) advance(d time.Duration) { c.now.Add(int64(d)) }

func TestWatchOfALease(t *testing.T) {
	const ms = time.Millisecond
	me := leaseRecord{Holder: "h1", Process: "p2"}
	other := leaseRecord{Holder: "h2", Process: "p9", Epoch: 4}
	mine := leaseRecord{Holder: "h1", Process: "p1", Epoch: 4}
	type look struct {
		at     time.Duration
		record leaseRecord
		rev    uint64
		failed bool
		heard  kbroker.Revision // announced then; nothing is read
		want   bool
	}
	for name, c := range map[string]struct {
		earlier string
		looks   []look
	}{
		"an unchanged lease is taken only after the bound": {looks: []look{
			{at: 1000 * ms, record: other, rev: 7}, {at: 7499 * ms, record: other, rev: 7}, {at: 7500 * ms, record: other, rev: 7, want: true},
		}},
		"every renewal starts the bound again": {looks: []look{
			{at: 0, record: other, rev: 7}, {at: 6000 * ms, record: other, rev: 8}, {at: 12000 * ms, record: other, rev: 8}, {at: 12500 * ms, record: other, rev: 8, want: true},
		}},
		"an absent lease is unknown since the first look": {looks: []look{
			{at: 9000 * ms}, {at: 15499 * ms}, {at: 15500 * ms, want: true},
		}},
		"a released lease is taken at once": {looks: []look{
			{at: 0, record: leaseRecord{Holder: "h2", Process: "p9", Epoch: 4, Released: true}, rev: 7, want: true},
		}},
		"the lease of an earlier process of this agent is taken at once": {earlier: "p1", looks: []look{{at: 0, record: mine, rev: 7, want: true}}},
		"the lease of an unknown process of this host is not":            {looks: []look{{at: 0, record: mine, rev: 7}}},
		"the same process name on another host is not":                   {earlier: "p9", looks: []look{{at: 0, record: other, rev: 7}}},
		"the lease of this very process is taken at once": {looks: []look{
			{at: 0, record: leaseRecord{Holder: "h1", Process: "p2", Epoch: 4}, rev: 7, want: true},
		}},
		"after an outage nobody is judged before the grace is over": {looks: []look{
			{at: 0, record: other, rev: 7},
			{at: 1000 * ms, failed: true},
			{at: 8000 * ms, record: other, rev: 7},
			{at: 9499 * ms, record: other, rev: 7},
			{at: 9500 * ms, record: other, rev: 7, want: true},
		}},
		"a renewal that was announced counts from then, though it is read after an outage": {looks: []look{
			{at: 0, record: other, rev: 7},
			{at: 900 * ms, heard: 8},
			{at: 1000 * ms, failed: true},
			{at: 1100 * ms, heard: 8}, // once more
			{at: 4000 * ms, record: other, rev: 8},
			{at: 7399 * ms, record: other, rev: 8},
			{at: 7400 * ms, record: other, rev: 8, want: true},
		}},
		"one of which a later renewal was announced counts from when it was read": {looks: []look{
			{at: 0, heard: 8}, {at: 0, heard: 9}, {at: 4000 * ms, record: other, rev: 8}, {at: 10499 * ms, record: other, rev: 8}, {at: 10500 * ms, record: other, rev: 8, want: true},
		}},
		"what was announced of a stream that was replaced is forgotten": {looks: []look{
			{at: 0, heard: 9}, {at: 7000 * ms, record: other, rev: 8}, {at: 8000 * ms, record: other, rev: 9},
		}},
		"a holder that renews after the outage keeps its lease": {looks: []look{
			{at: 0, record: other, rev: 7}, {at: 1000 * ms, failed: true}, {at: 8000 * ms, record: other, rev: 7}, {at: 9000 * ms, record: other, rev: 8}, {at: 15000 * ms, record: other, rev: 8},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := watch{times: Tuned, me: me, earlier: c.earlier, news: &LeaseNews{}}
			for i, l := range c.looks {
				if l.heard != 0 {
					w.news.Heard(l.heard, l.at)
					continue
				}
				if l.failed {
					w.failed()
					continue
				}
				if got := w.saw(l.record, l.rev, l.at, l.at); got != l.want {
					t.Fatalf("look %d at %v: may be taken is %v, want %v", i, l.at, got, l.want)
				}
			}
		})
	}
}

func TestTheNextLookIsWhenTheLeaseMayBeTaken(t *testing.T) {
	const ms = time.Millisecond
	w := watch{times: Tuned}
	if got := w.due(0); got < Tuned.ObserverActs {
		t.Errorf("due in %v before anything was seen", got)
	}
	r := leaseRecord{Holder: "h2", Process: "p9", Epoch: 1}
	w.saw(r, 7, 0, 100*ms)
	if got := w.due(6400 * ms); got != 200*ms {
		t.Errorf("due in %v, want 200 ms: it is unchanged for 6.3 s", got)
	}
	if !w.saw(r, 7, 6600*ms, 6600*ms) {
		t.Error("it may not be taken when it is due")
	}
	w.failed()
	w.saw(r, 7, 6700*ms, 6700*ms)
	if got := w.due(6700 * ms); got != Tuned.OutageGrace {
		t.Errorf("due in %v, want the grace after an outage", got)
	}
}

func TestWatchCountsFromTheAnswerToTheQuestion(t *testing.T) {
	w := watch{times: Tuned}
	r := leaseRecord{Holder: "h2", Process: "p9", Epoch: 1}
	w.saw(r, 7, 0, 400*time.Millisecond)
	if w.saw(r, 7, 6600*time.Millisecond, 7*time.Second) {
		t.Fatal("taken 6.2 s after the first answer, want 6.5 s or more")
	}
}

// campaigner is a lease of a store that looks often and has a clock of its own.
func campaigner(s *Store, clock *fakeClock, process string) *lease {
	l := s.superLease()
	l.every, l.clock, l.times = 5*time.Millisecond, clock.read, Tuned
	l.me.Process = process
	if process != s.cfg.Process {
		l.me.Holder = process
	}
	return l
}

func TestTakeoverAfterTheHolderFellSilent(t *testing.T) {
	_, s := founded(t)
	clock := &fakeClock{}
	// A holder that crashed: it took the lease and never renews it.
	dead := campaigner(s, clock, "dead").campaign(testContext(t, 5*time.Second))
	if dead == nil || dead.record.Epoch != 1 {
		t.Fatalf("the released lease of a new store was not taken at epoch 1: %+v", dead)
	}
	taken := make(chan *holding, 1)
	looks := atomic.Int64{}
	next := campaigner(s, clock, "next")
	next.clock = func() time.Duration { looks.Add(1); return clock.read() }
	start(t, func(ctx context.Context) error { taken <- next.campaign(ctx); return nil })
	lookAgain := func() {
		before := looks.Load()
		wait.Until(t, 5*time.Second, func() error {
			if looks.Load() < before+8 { // two clock readings a look
				return errors.New("the observer does not look")
			}
			return nil
		})
	}
	lookAgain()
	clock.advance(Tuned.ObserverActs - time.Millisecond)
	lookAgain()
	select {
	case h := <-taken:
		t.Fatalf("taken over %v too early: %+v", time.Millisecond, h)
	default:
	}
	clock.advance(time.Millisecond)
	select {
	case h := <-taken:
		if h == nil || h.record.Epoch != 2 || h.record.Holder != "next" {
			t.Fatalf("taken over as %+v, want epoch 2 of next", h)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("not taken over although the bound has passed")
	}
	if !dead.over() {
		t.Fatal("the old holder still believes in its lease when the new one has it")
	}
}

// TestARenewalIsHeardOf: a core that campaigns knows of one without a look at the lease.
func TestARenewalIsHeardOf(t *testing.T) {
	_, s := founded(t)
	clock := &fakeClock{}
	held := campaigner(s, clock, "holder").campaign(testContext(t, 5*time.Second))
	if held == nil {
		t.Fatal("the released lease of a new store was not taken")
	}
	observer := campaigner(s, clock, "observer")
	sub, err := s.hear(observer)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cfg.Conn.Flush(); err != nil {
		t.Fatal(err)
	}
	clock.advance(time.Second)
	err = held.behind(testContext(t, 5*time.Second), func(ctx context.Context, rev uint64) (uint64, error) {
		return held.lease.write(ctx, held.record, rev, 5*time.Second)
	})
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 5*time.Second, func() error {
		if at := observer.news.first(held.rev, 9*time.Second); at != time.Second {
			return fmt.Errorf("revision %d is known since %v, want 1 s", held.rev, at)
		}
		return nil
	})
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
}

func TestAHolderThatCannotRenewStopsAtItsBound(t *testing.T) {
	_, s := founded(t)
	clock := &fakeClock{}
	l := campaigner(s, clock, "holder")
	held, stopped := make(chan *holding), make(chan struct{})
	start(t, func(ctx context.Context) error {
		return l.run(ctx, func(ctx context.Context, h *holding) error {
			h.writing.Lock() // no renewal gets through
			defer h.writing.Unlock()
			select {
			case held <- h:
				<-ctx.Done()
				close(stopped)
			case <-ctx.Done():
			}
			return nil
		})
	})
	h := <-held
	clock.advance(Tuned.HolderStops - time.Millisecond)
	if h.over() {
		t.Fatal("the term is over before its bound")
	}
	select {
	case <-stopped:
		t.Fatal("the holder stopped before its bound")
	case <-time.After(5 * leaseTick): // it looks that often
	}
	clock.advance(time.Millisecond)
	select {
	case <-stopped:
	case <-time.After(5 * time.Second):
		t.Fatal("the holder did not stop at its bound")
	}
}

func TestAReleasedLeaseIsTakenAtOnce(t *testing.T) {
	srv, first := founded(t)
	l, _, stop := leading(t, first)
	second := open(t, srv.Connect(t), Config{Host: "h2", Times: Stock}) // 14.5 s to wait for a silent holder
	start(t, second.Run)
	epoch := l.Epoch()
	stop()
	began := time.Now()
	next, _, _ := leading(t, second)
	if took := time.Since(began); took > 3*time.Second {
		t.Fatalf("a released lease was taken after %v, want at once", took)
	}
	if next.Epoch() != epoch+1 {
		t.Fatalf("epoch is %d after %d, want one more", next.Epoch(), epoch)
	}
}

func TestARestartedAgentTakesItsOwnLeaseAtOnce(t *testing.T) {
	srv, first := founded(t)
	clock := &fakeClock{}
	if h := campaigner(first, clock, first.cfg.Process).campaign(testContext(t, 5*time.Second)); h == nil { // and crashes
		t.Fatal("the lease was not taken")
	}
	again := open(t, srv.Connect(t), Config{Host: "h1", Process: "second-start", Earlier: first.cfg.Process, Times: Stock})
	start(t, again.Run)
	began := time.Now()
	leading(t, again)
	if took := time.Since(began); took > 3*time.Second {
		t.Fatalf("an agent took %v for the lease of its own earlier process, want at once", took)
	}
}

func TestADeposedLeadersBatchIsRefusedWhole(t *testing.T) {
	_, s := founded(t)
	l, ctx, _ := leading(t, s)
	mustCommit(t, l, view(t, s), PutPlacement{placement("h1", "shop-web-1", 1)})
	v := view(t, s)
	// Somebody takes the lease over behind the leader's back.
	m := newRecord(subjects.Control(subjects.KeySuperLease), leaseRecord{Holder: "h2", Process: "p", Epoch: l.Epoch() + 1})
	if _, err := s.js.PublishMsg(testContext(t, 5*time.Second), m); err != nil {
		t.Fatalf("take over: %v", err)
	}
	err := l.Commit(testContext(t, 5*time.Second), v, []Change{
		PutPlacement{placement("h1", "shop-web-1", 2)}, PutPlacement{placement("h1", "shop-web-2", 1)}, PutHost{kbroker.Host{Name: "h1"}},
	})
	if !errors.Is(err, kbroker.Refused) {
		t.Fatalf("commit of a deposed leader returned %v, want refused", err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the deposed leader's context did not end")
	}
	after := view(t, s)
	if len(after.Hosts) != 0 || len(after.Placements) != 1 || after.Heads["h1"].Revision != 1 {
		t.Fatalf("a part of the deposed leader's batch was written: %+v", after)
	}
	if err := l.Commit(testContext(t, 5*time.Second), after, []Change{PutHost{kbroker.Host{Name: "h1"}}}); !errors.Is(err, kbroker.Refused) {
		t.Fatalf("a lease that was lost was regained: commit returned %v, want refused", err)
	}
}

// A renewal whose answer was lost may be applied late, even after the leader
// was asked. Its holder must not take that for somebody else's lease.
func TestALateRenewalOfItsOwnDeposesNobody(t *testing.T) {
	_, s := founded(t)
	l, _, _ := leading(t, s)
	v := view(t, s)
	for i := range 3 {
		if _, err := s.js.PublishMsg(testContext(t, 5*time.Second), newRecord(l.held.lease.subject, l.held.record)); err != nil {
			t.Fatalf("late renewal: %v", err)
		}
		mustCommit(t, l, v, PutHost{kbroker.Host{Name: kbroker.HostID("h" + string(rune('a'+i)))}})
	}
	if len(view(t, s).Hosts) != 3 {
		t.Fatalf("hosts are %v, want three", view(t, s).Hosts)
	}
}

func TestALeaseIsRenewedAndKept(t *testing.T) {
	_, s := founded(t)
	clock := &fakeClock{}
	l := campaigner(s, clock, "holder")
	held := make(chan *holding)
	start(t, func(ctx context.Context) error {
		return l.run(ctx, func(ctx context.Context, h *holding) error {
			held <- h
			<-ctx.Done()
			return nil
		})
	})
	h := <-held
	for range 20 { // many terms
		clock.advance(Tuned.LeaseRenew)
		wait.Until(t, 5*time.Second, func() error {
			if h.sinceSent() >= Tuned.LeaseRenew {
				return errors.New("the lease was not renewed")
			}
			return nil
		})
	}
	if h.over() || view(t, s).Lease.Epoch != h.record.Epoch {
		t.Fatalf("lease %+v is over: %v; want it kept at epoch %d", view(t, s).Lease, h.over(), h.record.Epoch)
	}
}
