package allocator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// objectTimes leave a fake that waits for a processor its lease.
var objectTimes = state.Times{
	LeaseRenew: 100 * time.Millisecond, LeaseTerm: 1800 * time.Millisecond, HolderStops: 1500 * time.Millisecond,
	ObserverActs: 2 * time.Second, RenewAttempt: 300 * time.Millisecond, OutageGrace: 150 * time.Millisecond,
}

// objectPace reads leases as often as they are renewed, and all else when it hears of it.
var objectPace = func() pace {
	p := eventPace
	p.lookLeases = 100 * time.Millisecond
	return p
}()

// newObjects is a world with an app whose service web has objects.
func newObjects(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	w := newWorld(t)
	w.times = objectTimes
	web := service("web", 3, 3)
	web.Objects = []kbroker.KindName{"account"}
	w.want(kbroker.AppVersion{Tenant: tenant, Version: 1, App: app(service("mail", 1, 1), web)})
	w.owners = map[string]ownership.Assignment{}
	natstest.Listen(t, w.server.Connect(t), subjects.OwnedOf(tenant, shop)+"assign.>", func(m *nats.Msg) {
		w.mu.Lock()
		defer w.mu.Unlock()
		key, _, as := announced(m)
		w.owners[key] = as
	})
	return w
}

// fake is an incarnation that holds a lease, and releases what it is asked for.
type fake struct {
	w    *world
	me   kbroker.Incarnation
	stop func()

	mu    sync.Mutex
	lease ownership.Lease
	rev   kbroker.Revision
}

// fake starts one. It renews until the test ends, or it is stopped.
func (w *world) fake(me kbroker.Incarnation, service kbroker.ServiceName) *fake {
	w.t.Helper()
	f := &fake{w: w, me: me, lease: ownership.Lease{Incarnation: me, Service: service, Host: "h1"}}
	sub, err := w.conn.SubscribeSync(subjects.OwnedOf(tenant, shop) + "assign.>")
	if err == nil {
		err = w.conn.Flush()
	}
	if err == nil {
		err = f.renew()
	}
	if err != nil {
		w.t.Fatalf("%s: %v", me, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			await(ctx, nil, objectTimes.LeaseRenew)
			_ = f.renew() // one that was revoked is over
		}
	})
	running.Go(func() { f.releases(ctx, sub) })
	f.stop = func() {
		cancel()
		running.Wait()
		_ = sub.Unsubscribe()
	}
	w.t.Cleanup(f.stop)
	return f
}

// releases writes the releases of shards that are to be moved away: what comes together in
// one batch.
func (f *fake) releases(ctx context.Context, sub *nats.Subscription) {
	var batch []kbroker.Write
	for {
		soon, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
		m, err := sub.NextMsgWithContext(soon)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			if r, ok := f.release(m); ok {
				batch = append(batch, r)
			}
		}
		if len(batch) == 100 || err != nil && len(batch) > 0 {
			if _, err := f.w.put(batch...); errors.Is(err, kbroker.Conflict) {
				for _, r := range batch { // some were called off
					_, _ = f.w.put(r)
				}
			}
			batch = nil
		}
	}
}

// release is that of a shard that is to be moved away.
func (f *fake) release(m *nats.Msg) (kbroker.Write, bool) {
	key, rev, as := announced(m)
	return kbroker.Write{
		Key: "release." + strings.TrimPrefix(key, "assign."), Guard: key, GuardAt: rev,
		Value: encoded(ownership.Release{Epoch: as.Epoch, To: as.Next, ToEpoch: as.NextEpoch}),
	}, as.Owner == f.me && as.Next != ""
}

// announced is an assignment that was announced.
func announced(m *nats.Msg) (key string, rev kbroker.Revision, as ownership.Assignment) {
	_, _ = fmt.Sscan(m.Header.Get(subjects.HeaderSequence), &rev)
	_, _, key, _ = subjects.OwnershipKey(m.Subject)
	_ = json.Unmarshal(m.Data, &as)
	return key, rev, as
}

func (w *world) put(writes ...kbroker.Write) (kbroker.OwnWriteReply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return w.store.OwnWrite(ctx, state.AppKey{Tenant: tenant, App: shop}, 1, kbroker.OwnWriteRequest{Writes: writes})
}

func encoded(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func (f *fake) renew() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lease.Number++
	reply, err := f.w.put(kbroker.Write{Key: subjects.KeyLease(f.me), Expected: f.rev, Value: encoded(f.lease)})
	if err == nil {
		f.rev = reply.First
	}
	return err
}

// leave says so by the lease.
func (f *fake) leave() {
	f.w.t.Helper()
	f.mu.Lock()
	f.lease.Leaving = true
	f.mu.Unlock()
	if err := f.renew(); err != nil {
		f.w.t.Fatalf("%s leaves: %v", f.me, err)
	}
}

// read reads all below a key.
func (w *world) read(match string) map[string][]byte {
	w.t.Helper()
	all := map[string][]byte{}
	for after := ""; ; {
		reply, err := w.store.OwnRead(w.t.Context(), state.AppKey{Tenant: tenant, App: shop}, 1, kbroker.OwnReadRequest{Match: match, After: after})
		if err != nil {
			w.t.Fatalf("read %s: %v", match, err)
		}
		for _, r := range reply.Records {
			all[r.Key] = r.Value
		}
		if !reply.More {
			return all
		}
		after = reply.Records[len(reply.Records)-1].Key
	}
}

func (w *world) assignments() map[string]ownership.Assignment {
	w.t.Helper()
	all := map[string]ownership.Assignment{}
	for key, value := range w.read(subjects.MatchAssigns) {
		var as ownership.Assignment
		if err := json.Unmarshal(value, &as); err != nil {
			w.t.Fatalf("%s is %q", key, value)
		}
		all[key] = as
	}
	return all
}

// shared waits until all shards are spread over these, and none is on its way.
func (w *world) shared(owners ...kbroker.Incarnation) map[string]ownership.Assignment {
	w.t.Helper()
	wait.Until(w.t, within, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		has, moving := map[kbroker.Incarnation]int{}, 0
		for _, as := range w.owners {
			has[as.Owner]++
			if as.Next != "" {
				moving++
			}
		}
		sum := 0
		for _, i := range owners {
			sum += has[i]
			if least := kbroker.Shards / len(owners); has[i] != least && has[i] != least+1 {
				return fmt.Errorf("owned %v, %d on their way; want them even among %v", has, moving, owners)
			}
		}
		if sum != kbroker.Shards || moving > 0 {
			return fmt.Errorf("owned %v, %d on their way; want all by %v", has, moving, owners)
		}
		return nil
	})
	return w.assignments()
}

const (
	webA = kbroker.Incarnation("shop-web-1.aaaa")
	webB = kbroker.Incarnation("shop-web-2.bbbb")
	webC = kbroker.Incarnation("shop-web-3.cccc")
)

func TestShardsAreAssignedAndTakenOver(t *testing.T) {
	w := newObjects(t)
	a := w.fake(webA, "web")
	w.fake(webB, "web")
	w.fake("shop-mail-1.dddd", "mail") // has none
	began := time.Now()
	w.start("shop-allocator-1", objectPace)
	first := w.shared(webA, webB)
	t.Logf("assigned after %v", time.Since(began))
	a.stop()
	stopped := time.Now()
	next := w.shared(webB)
	if took := time.Since(stopped); took < objectTimes.HolderStops-objectTimes.LeaseRenew {
		t.Errorf("the shards of who fell silent are taken after %v, its term is %v", took, objectTimes.HolderStops)
	}
	for key, was := range first {
		if is := next[key]; was.Owner == webA && is.Epoch <= was.Epoch || was.Owner == webB && is != was {
			t.Errorf("%s was %+v and is %+v", key, was, is)
		}
	}
	var l ownership.Lease
	if err := json.Unmarshal(w.read(subjects.MatchLeases)[subjects.KeyLease(webA)], &l); err != nil || !l.Revoked {
		t.Errorf("the lease of who is out is %+v (%v), want it revoked", l, err)
	}
	w.fake(webC, "web")
	w.shared(webB, webC) // by moves
}

func TestWhoLeavesLosesItsShardsAtOnce(t *testing.T) {
	w := newObjects(t)
	a := w.fake(webA, "web")
	w.fake(webB, "web")
	w.fake(webC, "web")
	w.start("shop-allocator-1", objectPace)
	w.shared(webA, webB, webC)
	began := time.Now()
	a.leave()
	w.shared(webB, webC)
	t.Logf("a third of the shards moved in %v", time.Since(began))
	for key, value := range w.read(subjects.MatchLeases) {
		var l ownership.Lease
		if err := json.Unmarshal(value, &l); err != nil || l.Revoked {
			t.Errorf("%s is %s: nobody is out", key, value)
		}
	}
	if n := len(w.read(subjects.MatchReleases)); n < kbroker.Shards/3 {
		t.Errorf("%d shards were released, want all that were moved", n)
	}
	a.stop() // owns nothing any more
}

// An agent has waited for who was killed: nobody waits for its lease.
func TestWhoHasEndedLosesItsShardsAtOnce(t *testing.T) {
	w := newObjects(t)
	w.times.HolderStops, w.times.ObserverActs = time.Minute, time.Hour
	a := w.fake(webA, "web")
	w.fake(webB, "web")
	w.start("shop-allocator-1", objectPace)
	w.shared(webA, webB)
	a.stop()
	next := w.fake("shop-web-1.ffff", "web") // the next start of the instance
	began := time.Now()
	if err := w.conn.Publish(subjects.Reaped(tenant, shop), encoded(kbroker.Reaped{Incarnations: []kbroker.Incarnation{webA}})); err != nil {
		t.Fatal(err)
	}
	w.shared(next.me, webB)
	t.Logf("half of the shards taken over in %v", time.Since(began))
	var l ownership.Lease
	if err := json.Unmarshal(w.read(subjects.MatchLeases)[subjects.KeyLease(webA)], &l); err != nil || !l.Revoked {
		t.Errorf("the lease of who has ended is %+v (%v), want it revoked", l, err)
	}
}

func TestTheStandbyGoesOnAtOnce(t *testing.T) {
	w := newObjects(t)
	w.fake(webA, "web")
	first := w.start("shop-allocator-1", objectPace)
	w.shared(webA)
	w.start("shop-allocator-2", objectPace)
	first.stop()
	if err := first.ended(t); err != nil {
		t.Fatalf("the first ended with %v", err)
	}
	w.fake(webB, "web")
	w.shared(webA, webB)
}

func TestAnAppThatHasObjectsOnlyNow(t *testing.T) {
	w := newObjects(t)
	with := w.versions
	w.want(version(1, 3))
	w.fake(webA, "web")
	w.super()
	w.start("shop-allocator-1", objectPace)
	w.demand("for 3", wants(3))
	if n := len(w.assignments()); n != 0 {
		t.Fatalf("%d shards are assigned, of an app without objects", n)
	}
	with[0].Version = 2
	w.want(with...)
	w.announceVersion(2)
	w.shared(webA)
}

// The lease is taken away between a plan and its batch.
func TestADeposedAllocatorAssignsNothing(t *testing.T) {
	w := newObjects(t)
	k := state.AppKey{Tenant: tenant, App: shop}
	var deposed sync.Once
	batches := 0
	w.before = func(r kbroker.OwnWriteRequest) {
		deposed.Do(func() {
			reply, err := w.store.Lease(t.Context(), k, kbroker.LeaseRequest{})
			if err == nil {
				_, err = w.store.Lease(t.Context(), k, kbroker.LeaseRequest{
					Write: &kbroker.AllocatorLease{Holder: "shop-allocator-9.a", Epoch: 9}, Expected: reply.Sequence,
				})
			}
			if err != nil {
				t.Errorf("take the lease: %v", err)
			}
		})
	}
	refused := make(chan struct{})
	w.after = func(_ kbroker.OwnWriteRequest, err error) error {
		if batches++; batches == 1 && !errors.Is(err, kbroker.Conflict) {
			t.Errorf("the batch of who was deposed: %v, want a conflict", err)
		}
		if batches == 1 {
			close(refused)
		}
		return err
	}
	w.fake(webA, "web")
	pr := w.start("shop-allocator-1", objectPace)
	select {
	case <-refused:
	case <-time.After(within):
		t.Fatal("no batch was written")
	}
	w.fake(webB, "web")
	_ = w.ping(pr)
	if n := len(w.assignments()); n != 0 {
		t.Fatalf("%d shards are assigned by who was deposed", n)
	}
	// The other one falls silent: the lease is taken again, under a higher epoch, and so are
	// the shards' epochs.
	for key, as := range w.shared(webA, webB) {
		if as.Epoch < 10 {
			t.Fatalf("%s is at %+v, below the epoch of the lease", key, as)
		}
	}
}

// Answers to batches are lost, of some that were written and of some that were not.
func TestBatchesWhoseAnswersAreLost(t *testing.T) {
	w := newObjects(t)
	n, lost := 0, 0
	w.after = func(_ kbroker.OwnWriteRequest, err error) error {
		if n++; n%3 == 0 {
			lost++
			return kbroker.Errorf(kbroker.Unavailable, "lost")
		}
		return err
	}
	w.fake(webA, "web")
	w.start("shop-allocator-1", objectPace)
	for key, as := range w.shared(webA) {
		if as.Epoch != 1 {
			t.Errorf("%s is at epoch %d, assigned once", key, as.Epoch)
		}
	}
	w.fake(webB, "web")
	w.shared(webA, webB)
	if lost < 3 {
		t.Errorf("%d answers were lost, want some", lost)
	}
}

// What another build has written is left alone, and keeps nobody else waiting.
func TestARecordThatIsNotReadableIsLeftAlone(t *testing.T) {
	w := newObjects(t)
	if _, err := w.put(kbroker.Write{Key: subjects.KeyAssign(7), Value: []byte("?")}, kbroker.Write{Key: subjects.KeyLease(webB), Value: []byte("?")}); err != nil {
		t.Fatal(err)
	}
	w.fake(webA, "web")
	w.start("shop-allocator-1", objectPace)
	wait.Until(t, within, func() error {
		all := w.read(subjects.MatchAssigns)
		if string(all[subjects.KeyAssign(7)]) != "?" {
			t.Fatalf("it was written over: %q", all[subjects.KeyAssign(7)])
		}
		for key, value := range all {
			var as ownership.Assignment
			if json.Unmarshal(value, &as) == nil && as.Owner != webA {
				t.Fatalf("%s is %+v", key, as)
			}
		}
		if len(all) != kbroker.Shards {
			return fmt.Errorf("%d shards are assigned", len(all)-1)
		}
		return nil
	})
}
