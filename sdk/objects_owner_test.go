package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/boottime"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func TestShardsMoveUnderLoad(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	var objects []kbroker.Object
	for n := range 4 {
		objects = append(objects, acc(fmt.Sprint(n)))
	}
	core.give(incarnation("a"), objects...)
	start(t, bank(s.URL, "a", nil))
	start(t, bank(s.URL, "b", nil))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var done [4]atomic.Int64
	var calls atomic.Int64
	for n := range 20 {
		c := dial(t, s.URL)
		wg.Go(func() {
			for i := n; ctx.Err() == nil; i++ {
				o := i % len(objects)
				if _, err := Call[int64](context.Background(), c.Object("bank/"+objects[o].String()), "deposit", 1); err != nil {
					t.Errorf("deposit during moves: %v", err)
					return
				}
				done[o].Add(1)
				calls.Add(1)
			}
		})
	}
	to := []string{"b", "a", "b", "a"}
	for n, name := range to {
		for _, o := range objects {
			core.move(incarnation(name), o)
		}
		at := calls.Load()
		wait.Until(t, patience, func() error {
			if calls.Load() < at+100 {
				return fmt.Errorf("no load after move %d", n)
			}
			return nil
		})
	}
	stop()
	wg.Wait()
	c := dial(t, s.URL)
	for n, o := range objects {
		if got := c.balance(t, o.ID); got != done[n].Load() {
			t.Errorf("%s has %d cents after %d deposits that were acknowledged", o, got, done[n].Load())
		}
	}
	t.Logf("%d calls over %d moves", calls.Load(), len(to)*len(objects))
}

// An owner whose placement has gone serves what nobody takes over, longer than its grace:
// its agent may be dead, and there may be no allocator.
func TestAnOwnerWithoutPlacementServesUntilOthersDo(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	a := bank(s.URL, "a", nil, Grace(100*time.Millisecond))
	r := start(t, a)
	start(t, bank(s.URL, "b", nil))
	c := dial(t, s.URL)
	c.deposit(t, "1", 1)
	own := a.identity
	gone, err := json.Marshal(kbroker.Placement{Tenant: own.Tenant, Instance: own.Instance, Host: own.Host, Epoch: own.Epoch + 1, Stop: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Connect(t).Publish(subjects.Changed(subjects.KeyPlacement(own.Host, own.Tenant, own.Instance)), gone); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, patience, func() error {
		if l := get[ownership.Lease](core, subjects.KeyLease(incarnation("a"))); !l.Leaving {
			return fmt.Errorf("the lease %+v does not say that its holder leaves", l)
		}
		return nil
	})
	for left := time.Now(); time.Since(left) < 300*time.Millisecond; {
		c.deposit(t, "1", 1)
	}
	select {
	case err := <-r.done:
		t.Fatalf("Run has returned %v, and nobody owns its object", err)
	default:
	}
	core.move(incarnation("b"), acc("1"))
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	c.deposit(t, "1", 1)
}

// An owner that moves to another server subscribes its shards there first: no request of
// an object is lost, and none runs twice.
func TestAnOwnerMovesToAnotherServer(t *testing.T) {
	t.Parallel()
	cluster := natstest.StartCluster(t, 3)
	meshed(t, cluster)
	core := newCoreOn(t, cluster.Connect(t, 1))
	core.give(incarnation("a"), acc("1"), acc("2"))
	a := bank(cluster.URL(0), "a", nil, Option(func(o *options) { // home is the server that goes
		i := instance(cluster.URL(0), "a")
		i.App, i.Service, i.Objects, i.ObjectStreams = "bank", "ledger", []kbroker.KindName{"account"}, testStreams
		asOn(cluster, 0, &i)(o)
	}))
	start(t, a)
	c := dial(t, cluster.URL(2))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var done [2]atomic.Int64
	for n := range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := Call[int64](context.Background(), c.Object(fmt.Sprintf("bank/account:%d", n%2+1)), "deposit", 1); err != nil {
					t.Errorf("deposit while the owner moves: %v", err)
					return
				}
				done[n%2].Add(1)
			}
		})
	}
	load := func() {
		at := done[0].Load()
		wait.Until(t, patience, func() error {
			if done[0].Load() < at+100 {
				return errors.New("no load")
			}
			return nil
		})
	}
	load()
	<-cluster.LameDuck(t, 0)
	load()
	stop()
	wg.Wait()
	for n := range done {
		if got := c.balance(t, fmt.Sprint(n+1)); got != done[n].Load() {
			t.Errorf("account %d has %d cents after %d deposits", n+1, got, done[n].Load())
		}
	}
	if n := c.Stats().Retried; n > 0 {
		t.Logf("%d attempts were sent again", n)
	}
}

func TestAnOwnerDies(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	p := newProxy(t, s)
	core.give(incarnation("a"), acc("1"))
	r := start(t, bank(p.url, "a", nil))
	start(t, bank(s.URL, "b", nil))
	var wg sync.WaitGroup
	var done, maybe atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	for range 8 {
		c := dial(t, s.URL)
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := Call[int64](within(t, 20*time.Second), c.Object("bank/account:1"), "deposit", 1); err != nil {
					t.Errorf("deposit: %v", err)
					maybe.Add(1)
					return
				}
				done.Add(1)
			}
		})
	}
	load := func() {
		at := done.Load()
		wait.Until(t, patience, func() error {
			if done.Load() < at+50 {
				return fmt.Errorf("%d deposits", done.Load()-at)
			}
			return nil
		})
	}
	load()
	p.cut()
	core.give(incarnation("b"), acc("1"))
	load()
	stop()
	wg.Wait()
	c := dial(t, s.URL)
	if got := c.balance(t, "1"); got != done.Load() {
		t.Errorf("the account has %d cents after %d deposits that were acknowledged and %d that failed", got, done.Load(), maybe.Load())
	}
	err := r.ended(t)
	if e := wantError(t, err, kbroker.Unavailable, ""); !strings.Contains(e.Message, "may own objects no more") {
		t.Errorf("Run of who died: %v, want that its lease is lost", err)
	}
}

func TestALeaseThatIsRevokedEndsTheApp(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	r := start(t, bank(s.URL, "a", nil))
	c := dial(t, s.URL)
	c.deposit(t, "1", 1)
	wait.Until(t, patience, func() error {
		l := get[ownership.Lease](core, subjects.KeyLease(incarnation("a")))
		l.Revoked = true
		core.mu.Lock()
		defer core.mu.Unlock()
		key := subjects.KeyLease(incarnation("a"))
		_, err := core.apply(kbroker.DefaultTenant, "bank", []kbroker.Write{{Key: key, Expected: core.recs[key].Revision, Value: []byte(`{"incarnation":"` + string(l.Incarnation) + `","revoked":true}`)}})
		return err
	})
	wantError(t, r.ended(t), kbroker.Unavailable, "")
}

func TestAnUnknownCommitIsResolved(t *testing.T) {
	for name, kind := range map[string]int{"it was written": unanswered, "it was not": lostBefore} {
		t.Run(name, func(t *testing.T) {
			s := natstest.Start(t)
			core := newCore(t, s)
			core.give(incarnation("a"), acc("1"))
			start(t, bank(s.URL, "a", nil))
			c := dial(t, s.URL)
			c.deposit(t, "1", 1)
			var muted atomic.Int64
			core.silently(func(w []kbroker.Write) int {
				if w[0].Key == subjects.KeyState(acc("1")) && muted.Add(1) == 1 {
					return kind
				}
				return 0
			})
			got, err := Call[int64](within(t, 20*time.Second), c.Object("bank/account:1"), "deposit", 2)
			if err != nil || got != 3 {
				t.Errorf("deposit whose commit was not answered: %d, %v; want 3", got, err)
			}
			if got := c.balance(t, "1"); got != 3 {
				t.Errorf("the account has %d cents, want 3", got)
			}
		})
	}
}

func TestATurnThatDoesNotEndDelaysNoOneForEver(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	hold, entered := make(chan struct{}), make(chan struct{}, 1)
	defer close(hold)
	r := start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "stay", func(*account, context.Context, struct{}) (int, error) {
			entered <- struct{}{}
			<-hold
			return 0, nil
		})
	}, Grace(200*time.Millisecond)))
	c := dial(t, s.URL)
	go func() { _, _ = Call[int](within(t, time.Second), c.Object("bank/account:1"), "stay", nil) }()
	<-entered
	r.stop()
	if err := r.ended(t); !errors.Is(err, kbroker.Failed) {
		t.Errorf("Run: %v, want Failed: a turn did not end", err)
	}
}

// TestWhoHasLostTheLeaseRefusesNothing: the next owner may have heard the same request, and
// execute it.
func TestWhoHasLostTheLeaseRefusesNothing(t *testing.T) {
	b := newBus()
	end := b.connect(connEvents{})
	heard := 0
	if _, err := end.subscribe(inbox(1), "", func(*nats.Msg) { heard++ }); err != nil {
		t.Fatal(err)
	}
	own := instance("", "a")
	k := &keeper{app: &App{clock: boottime.Now}, t: end, own: &own, log: slog.New(slog.DiscardHandler), heads: headsOf(&own)}
	for _, tc := range []struct {
		until time.Duration // from now
		want  int
	}{{-time.Second, 0}, {time.Minute, 1}} {
		k.until.Store(int64(k.now() + tc.until))
		if k.refuse(inbox(1), k.overloaded("requests to look at")); heard != tc.want {
			t.Errorf("with a lease until %v from now %d refusals are heard, want %d", tc.until, heard, tc.want)
		}
	}
}
