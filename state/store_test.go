package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// quick are times for tests that hold real leases and never wait for one to
// run out: renewed often, and a bound that a busy machine keeps.
var quick = Times{
	LeaseRenew: 100 * time.Millisecond, LeaseTerm: 9 * time.Second, HolderStops: 8 * time.Second,
	ObserverActs: 10 * time.Second, RenewAttempt: 300 * time.Millisecond, OutageGrace: 150 * time.Millisecond,
}

func testContext(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// testLog shows what a store says when its test fails.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// open returns a store that is not yet running.
func open(t testing.TB, conn *nats.Conn, cfg Config) *Store {
	t.Helper()
	cfg.Conn = conn
	if cfg.Host == "" {
		cfg.Host = "h1"
	}
	if cfg.Process == "" {
		cfg.Process = string(cfg.Host) + "-process"
	}
	if cfg.Times == (Times{}) {
		cfg.Times = quick
	}
	cfg.Log = testLog(t)
	s, err := Open(testContext(t, 10*time.Second), cfg)
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	s.barrier.every = 2 * time.Millisecond
	return s
}

// start runs what blocks until its context ends, and waits for it at the end of
// the test or when stop is called.
func start(t testing.TB, run func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	ended := false
	stop = func() {
		cancel()
		if ended {
			return
		}
		ended = true
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run returned %v, want nil", err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("run did not return within 20 s of the end of its context")
		}
	}
	t.Cleanup(stop)
	return stop
}

// founded is a running store on a server of its own.
func founded(t testing.TB) (*natstest.Server, *Store) {
	t.Helper()
	srv := natstest.Start(t)
	conn := srv.Connect(t)
	if err := Found(testContext(t, 10*time.Second), conn); err != nil {
		t.Fatalf("found: %v", err)
	}
	s := open(t, conn, Config{})
	start(t, s.Run)
	return srv, s
}

// leading makes s lead and returns its leader; stop gives the lease back.
func leading(t testing.TB, s *Store) (l *Leader, ctx context.Context, stop func()) {
	t.Helper()
	type led struct {
		leader *Leader
		ctx    context.Context
	}
	leads := make(chan led)
	stop = start(t, func(ctx context.Context) error {
		return s.Lead(ctx, func(ctx context.Context, l *Leader) error {
			select {
			case leads <- led{l, ctx}:
				<-ctx.Done()
			case <-ctx.Done():
			}
			return nil
		})
	})
	select {
	case got := <-leads:
		return got.leader, got.ctx, stop
	case <-time.After(15 * time.Second):
		t.Fatal("the store did not get the lease within 15 s")
		return nil, nil, nil
	}
}

func view(t testing.TB, s *Store) *View {
	t.Helper()
	v, err := s.View(testContext(t, 15*time.Second))
	if err != nil {
		t.Fatalf("view: %v", err)
	}
	return v
}

func mustCommit(t testing.TB, l *Leader, v *View, changes ...Change) {
	t.Helper()
	if err := l.Commit(testContext(t, 15*time.Second), v, changes); err != nil {
		t.Fatalf("commit of %d changes: %v", len(changes), err)
	}
}

func placement(host, instance string, epoch uint64) kbroker.Placement {
	return kbroker.Placement{
		Tenant: "default", App: "shop", Service: "web", Instance: kbroker.InstanceID(instance),
		Host: kbroker.HostID(host), Version: 1, Epoch: epoch, Template: "t1",
	}
}

func TestOpenOfAStoreThatWasNeverFoundedIsNotFound(t *testing.T) {
	srv := natstest.Start(t)
	_, err := Open(testContext(t, 5*time.Second), Config{Conn: srv.Connect(t), Host: "h1", Process: "p1", Times: quick})
	if !errors.Is(err, kbroker.NotFound) {
		t.Fatalf("open returned %v, want not_found", err)
	}
}

func TestFoundTwiceChangesNothing(t *testing.T) {
	srv, s := founded(t)
	l, _, _ := leading(t, s)
	mustCommit(t, l, view(t, s), PutHost{Host: kbroker.Host{Name: "h9", State: kbroker.HostReady}})
	if err := Found(testContext(t, 5*time.Second), srv.Connect(t)); err != nil {
		t.Fatalf("found again: %v", err)
	}
	if v := view(t, s); v.Hosts["h9"].State != kbroker.HostReady || v.Lease.Released {
		t.Fatalf("after founding again: host %+v, lease %+v; want both untouched", v.Hosts["h9"], v.Lease)
	}
}

func TestAViewShowsEveryKindOfChangeAndItsDeletion(t *testing.T) {
	srv, s := founded(t)
	l, _, _ := leading(t, s)
	changed, stop := s.Changed()
	defer stop()
	app := AppKey{"default", "shop"}
	mustCommit(t, l, view(t, s),
		PutApp{kbroker.AppRecord{Tenant: "default", App: "shop", Version: 2}},
		PutVersion{kbroker.AppVersion{Tenant: "default", Version: 1, App: kbroker.App{Name: "shop"}}},
		PutVersion{kbroker.AppVersion{Tenant: "default", Version: 2, App: kbroker.App{Name: "shop"}}},
		PutPlacement{placement("h1", "shop-web-1", 1)},
		PutPlacement{placement("h1", "shop-web-2", 1)},
		PutPlacement{placement("h2", "shop-web-3", 1)},
		PutHost{kbroker.Host{Name: "h1", State: kbroker.HostReady}},
		PutDemand{kbroker.Demand{Tenant: "default", App: "shop", Epoch: 3}},
		PutToken{kbroker.Token{ID: "a2b3c4d5e6f7", Role: kbroker.RoleWorker}},
		PutUser{kbroker.User{Tenant: "default", Name: "ann", Role: kbroker.UserViewer}},
	)
	select {
	case <-changed:
	case <-time.After(5 * time.Second):
		t.Fatal("no change was signalled within 5 s of a commit")
	}
	other := open(t, srv.Connect(t), Config{Host: "h2"})
	start(t, other.Run)
	for _, v := range []*View{s.Peek(), view(t, s), view(t, other)} {
		if v.Apps[app].Version != 2 || len(v.Versions[app]) != 2 || len(v.Placements) != 3 || v.Hosts["h1"].State != kbroker.HostReady || v.Demands[app].Epoch != 3 ||
			v.Tokens["a2b3c4d5e6f7"].Role != kbroker.RoleWorker || v.Users[UserKey{"default", "ann"}].Role != kbroker.UserViewer {
			t.Fatalf("view lacks what was committed: %+v", v)
		}
		if h := v.Heads["h1"]; h.Revision != 1 || h.Count != 2 || h.Hash != kbroker.PlacementsHash(v.On("h1")) {
			t.Fatalf("head of h1 is %+v, want revision 1 of its 2 placements", h)
		}
		if v.Lease.Holder != "h1" || v.Lease.Epoch != l.Epoch() {
			t.Fatalf("lease is %+v, want that of h1 at epoch %d", v.Lease, l.Epoch())
		}
	}
	mustCommit(t, l, view(t, s), DropPlacement{PlacementKey{"h1", "default", "shop-web-1"}}, DropHost{"h1"}, DropToken{"a2b3c4d5e6f7"}, DropUser{UserKey{"default", "ann"}})
	for _, v := range []*View{s.Peek(), view(t, s), view(t, other)} {
		if _, ok := v.Hosts["h1"]; ok || len(v.Tokens) != 0 || len(v.Users) != 0 || len(v.On("h1")) != 1 || v.Heads["h1"].Revision != 2 || v.Heads["h1"].Count != 1 {
			t.Fatalf("after the drops: hosts %v, placements of h1 %v, head %+v", v.Hosts, v.On("h1"), v.Heads["h1"])
		}
	}
	if got := s.HeadRevision("h1"); got != 2 {
		t.Fatalf("head revision of h1 is %d, want 2", got)
	}
	// A deleted key can be written again.
	mustCommit(t, l, view(t, s), PutHost{kbroker.Host{Name: "h1", State: kbroker.HostJoining}}, PutPlacement{placement("h1", "shop-web-1", 5)})
	reply, err := other.HostView(testContext(t, 5*time.Second), "h1")
	if err != nil || len(reply.Placements) != 2 || reply.Head.Revision != 3 {
		t.Fatalf("host view of h1 is %+v, %v; want 2 placements under head 3", reply, err)
	}
}

func TestTheBucketIsReadableAsAKeyValueStore(t *testing.T) {
	srv, s := founded(t)
	l, _, _ := leading(t, s)
	mustCommit(t, l, view(t, s), PutHost{kbroker.Host{Name: "h1", State: kbroker.HostReady}}, PutHost{kbroker.Host{Name: "h2"}})
	mustCommit(t, l, view(t, s), DropHost{"h2"})
	js, err := jetstream.New(srv.Connect(t))
	if err != nil {
		t.Fatalf("jetstream: %v", err)
	}
	ctx := testContext(t, 5*time.Second)
	kv, err := js.KeyValue(ctx, subjects.ControlBucket)
	if err != nil {
		t.Fatalf("bind to the bucket: %v", err)
	}
	if e, err := kv.Get(ctx, subjects.KeyHost("h1")); err != nil || !strings.Contains(string(e.Value()), `"ready"`) {
		t.Fatalf("get h1: %v, %v; want its record", e, err)
	}
	if _, err := kv.Get(ctx, subjects.KeyHost("h2")); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Fatalf("get of a dropped host returned %v, want key not found", err)
	}
}

func TestAHostWithoutPlacementsHasAnEmptyView(t *testing.T) {
	_, s := founded(t)
	reply, err := s.HostView(testContext(t, 5*time.Second), "h7")
	if err != nil || reply.Head.Revision != 0 || len(reply.Placements) != 0 || reply.Head.Hash != kbroker.PlacementsHash(nil) {
		t.Fatalf("host view is %+v, %v; want an empty one", reply, err)
	}
}

func TestAViewFailsWhenTheStoreTakesNoWrites(t *testing.T) {
	srv, s := founded(t)
	view(t, s)
	srv.Shutdown()
	_, err := s.View(testContext(t, 500*time.Millisecond))
	if !errors.Is(err, kbroker.Unavailable) {
		t.Fatalf("view without a server returned %v, want unavailable", err)
	}
}

func TestAnUnreadableRecordIsNotAbsent(t *testing.T) {
	srv, s := founded(t)
	l, _, _ := leading(t, s)
	mustCommit(t, l, view(t, s), PutPlacement{placement("h1", "shop-web-1", 1)}, PutPlacement{placement("h2", "shop-web-2", 1)})
	key := subjects.KeyPlacement("h1", "default", "shop-web-1")
	if _, err := s.js.Publish(testContext(t, 5*time.Second), subjects.Control(key), []byte("{")); err != nil {
		t.Fatalf("damage the record: %v", err)
	}
	for _, st := range []*Store{s, open(t, srv.Connect(t), Config{Host: "h2"})} {
		if st != s {
			start(t, st.Run)
		}
		v := view(t, st)
		if _, ok := v.Unreadable[key]; !ok || len(v.Unreadable) != 1 {
			t.Fatalf("unreadable records are %v, want %s", v.Unreadable, key)
		}
		if _, err := st.HostView(testContext(t, 5*time.Second), "h1"); !errors.Is(err, kbroker.Internal) {
			t.Fatalf("host view of h1 returned %v, want internal: it would not be complete", err)
		}
	}
	v := view(t, s)
	err := l.Commit(testContext(t, 5*time.Second), v, []Change{PutPlacement{placement("h1", "shop-web-9", 1)}})
	if !errors.Is(err, kbroker.Invalid) {
		t.Fatalf("commit on the host of an unreadable placement returned %v, want invalid", err)
	}
	mustCommit(t, l, v, PutPlacement{placement("h2", "shop-web-3", 1)})
}

// relay stands between the stream's republished messages and the follower of a
// store, and loses what drop says.
func relay(t testing.TB, s *Store, which int, drop func() bool) {
	t.Helper()
	f := s.follow[which]
	from := f.feed
	f.feed = fmt.Sprintf("relay.%d.>", which)
	sub, err := s.cfg.Conn.Subscribe(from, func(m *nats.Msg) {
		if drop() {
			return
		}
		m.Subject = strings.Replace(f.feed, ">", m.Subject, 1)
		m.Reply, m.Sub = "", nil
		if err := s.cfg.Conn.PublishMsg(m); err != nil && !s.cfg.Conn.IsClosed() {
			t.Errorf("relay: %v", err)
		}
	})
	if err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() }) // the connection may be closed already
}

func TestAGapInTheFeedIsFilled(t *testing.T) {
	srv, writer := founded(t)
	l, _, _ := leading(t, writer)
	var silent atomic.Bool
	s := open(t, srv.Connect(t), Config{Host: "h2"})
	relay(t, s, 0, silent.Load)
	start(t, s.Run)
	mustCommit(t, l, view(t, writer), PutHost{kbroker.Host{Name: "a"}})
	if v := view(t, s); len(v.Hosts) != 1 {
		t.Fatalf("hosts are %v, want one", v.Hosts)
	}

	silent.Store(true)
	for i := range 50 {
		mustCommit(t, l, view(t, writer), PutHost{kbroker.Host{Name: kbroker.HostID(fmt.Sprintf("b%d", i))}}, PutPlacement{placement("b", fmt.Sprintf("shop-web-%d", i), 1)})
	}
	silent.Store(false)
	mustCommit(t, l, view(t, writer), DropHost{"a"})
	wait.Until(t, 10*time.Second, func() error { // without a barrier: the next message shows the gap
		v := s.Peek()
		if _, ok := v.Hosts["a"]; ok || len(v.Hosts) != 50 || len(v.Placements) != 50 {
			return fmt.Errorf("%d hosts and %d placements, want 50 of each", len(v.Hosts), len(v.Placements))
		}
		return nil
	})
}

func TestABarrierDoesNotNeedTheFeed(t *testing.T) {
	srv, writer := founded(t)
	l, _, _ := leading(t, writer)
	s := open(t, srv.Connect(t), Config{Host: "h2"})
	relay(t, s, 0, func() bool { return true })
	start(t, s.Run)
	for i := range 5 {
		mustCommit(t, l, view(t, writer), PutHost{kbroker.Host{Name: kbroker.HostID(fmt.Sprintf("b%d", i))}})
		if v := view(t, s); len(v.Hosts) != i+1 {
			t.Fatalf("hosts are %v, want %d", v.Hosts, i+1)
		}
	}
}

// A view must never show half a batch: its placements hash to its heads, also
// while the feed loses messages and the replica reads the stream in pieces.
func TestEveryViewIsWholeWhileTheFeedLosesMessages(t *testing.T) {
	srv, writer := founded(t)
	l, _, _ := leading(t, writer)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	lose := rand.New(rand.NewPCG(seed, 1))
	s := open(t, srv.Connect(t), Config{Host: "h2"})
	relay(t, s, 0, func() bool { return lose.IntN(40) == 0 })
	start(t, s.Run)

	const rounds, hosts, each = 60, 5, 30
	var written atomic.Bool
	start(t, func(ctx context.Context) error {
		defer written.Store(true)
		pick := rand.New(rand.NewPCG(seed, 2))
		for round := 1; round <= rounds && ctx.Err() == nil; round++ {
			v, err := writer.View(ctx)
			if err != nil {
				return err
			}
			var changes []Change
			for i := range each {
				if pick.IntN(3) > 0 {
					changes = append(changes, PutPlacement{placement(fmt.Sprintf("w%d", pick.IntN(hosts)), fmt.Sprintf("shop-web-%d", i), uint64(round))})
				}
			}
			if err := l.Commit(ctx, v, changes); err != nil {
				return err
			}
		}
		return nil
	})
	views := 0
	for last := false; !last; {
		last = written.Load()
		v := view(t, s)
		views++
		for host, head := range v.Heads {
			if on := v.On(host); head.Hash != kbroker.PlacementsHash(on) || head.Count != len(on) {
				t.Fatalf("view %d at %d: head %d of %s does not match its %d placements", views, v.Sequence, head.Revision, host, len(on))
			}
		}
	}
	want := view(t, writer)
	if got := view(t, s); len(got.Placements) != len(want.Placements) {
		t.Fatalf("%d placements, want %d", len(got.Placements), len(want.Placements))
	}
	if views < 10 {
		t.Fatalf("only %d views were taken while batches were written, want 10 or more", views)
	}
}
