package allocator

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
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

const (
	tenant = kbroker.DefaultTenant
	shop   = kbroker.AppName("shop")
	// within bounds every wait of these tests; what they wait for takes well
	// under a second.
	within = 30 * time.Second
)

// fastTimes keep the proportions of state.Tuned.
var fastTimes = state.Times{
	LeaseRenew: 100 * time.Millisecond, LeaseTerm: 900 * time.Millisecond, HolderStops: 700 * time.Millisecond,
	ObserverActs: time.Second, RenewAttempt: 100 * time.Millisecond, OutageGrace: 150 * time.Millisecond,
}

// eventPace never looks of its own accord: what happens in a test with it
// happens because of an event or a retry.
var eventPace = pace{
	lookApp: time.Hour, lookPlace: time.Hour, resend: time.Hour, lookLeases: time.Hour, lookShards: time.Hour, lookPlaced: time.Hour, lookInstances: time.Hour, decide: time.Hour,
	attempt: 500 * time.Millisecond, turnsOver: 2 * time.Second, retryLeast: 5 * time.Millisecond, retryMost: 50 * time.Millisecond, movesPerS: 2000,
}

// world plays a core, with the store's part of the lease, and the super on a real server.
type world struct {
	t      *testing.T
	server *natstest.Server
	conn   *nats.Conn
	store  *state.Store
	times  state.Times // of allocators

	mu         sync.Mutex
	versions   []kbroker.AppVersion // answers in turn, the last one for ever
	asked      int                  // for the version
	placements map[kbroker.InstanceID]kbroker.Placement
	demands    []kbroker.Demand
	refuse     uint64                          // epochs up to this one
	owners     map[string]ownership.Assignment // by key, as they were announced

	// These are called, one at a time, before and after a batch of an allocator is written;
	// after may take its answer away.
	reads  []kbroker.OwnReadRequest // that the allocators have asked for; under mu
	hooks  sync.Mutex
	before func(kbroker.OwnWriteRequest)
	after  func(kbroker.OwnWriteRequest, error) error
	blind  atomic.Bool                           // nobody reads the lease
	rows   atomic.Pointer[[]kbroker.InstanceRow] // of the app's instances; nil: no core answers
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, server: natstest.Start(t), times: fastTimes, placements: map[kbroker.InstanceID]kbroker.Placement{}}
	w.conn = w.server.Connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := state.Found(ctx, w.conn); err != nil {
		t.Fatalf("found: %v", err)
	}
	store, err := state.Open(ctx, state.Config{Conn: w.conn, Host: "h1", Process: "p1", Times: fastTimes})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if err := store.EnsureApp(ctx, state.AppKey{Tenant: tenant, App: shop}); err != nil {
		t.Fatalf("ensure app: %v", err)
	}
	w.store = store
	w.serve(subjects.CoreAll(), w.core)
	for range 8 { // at a time
		w.serve(subjects.AllOwn, w.own)
	}
	w.serve(subjects.AllLeases, func(m *nats.Msg) (any, error) {
		var r kbroker.LeaseRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, kbroker.Errorf(kbroker.Invalid, "%v", err)
		}
		if r.Write == nil && w.blind.Load() {
			return nil, kbroker.Errorf(kbroker.Unavailable, "the stream has no leader")
		}
		t, a, _ := subjects.ParseLease(m.Subject)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return store.Lease(ctx, state.AppKey{Tenant: t, App: a}, r)
	})
	w.want(version(1, 3))
	return w
}

// own is what a core does for the ownership of the app.
func (w *world) own(m *nats.Msg) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	k := state.AppKey{Tenant: tenant, App: shop}
	switch _, _, verb, _, _ := subjects.ParseOwn(m.Subject); verb {
	case subjects.VerbOwnRead:
		var r kbroker.OwnReadRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, kbroker.Errorf(kbroker.Invalid, "%v", err)
		}
		w.mu.Lock()
		w.reads = append(w.reads, r)
		w.mu.Unlock()
		reply, err := w.store.OwnRead(ctx, k, 1, r)
		if err != nil {
			return nil, err
		}
		return reply.MarshalBinary()
	case subjects.VerbOwnWrite:
		var r kbroker.OwnWriteRequest
		if err := r.UnmarshalBinary(m.Data); err != nil {
			return nil, err
		}
		w.hooks.Lock()
		defer w.hooks.Unlock()
		if w.before != nil {
			w.before(r)
		}
		reply, err := w.store.OwnWrite(ctx, k, 1, r)
		if w.after != nil {
			err = w.after(r, err)
		}
		return reply, err
	}
	return nil, kbroker.Errorf(kbroker.Invalid, "unexpected %s", m.Subject)
}

func version(n, count int) kbroker.AppVersion {
	return kbroker.AppVersion{Tenant: tenant, Version: n, App: app(service("web", count, count))}
}

func (w *world) serve(subject string, answer func(*nats.Msg) (any, error)) *nats.Subscription {
	w.t.Helper()
	sub, err := w.conn.QueueSubscribe(subject, subjects.QueueCore, func(m *nats.Msg) {
		out, err := answer(m)
		reply := nats.NewMsg(m.Reply)
		if err != nil {
			e := kbroker.AsError(err)
			reply.Header.Set(subjects.HeaderCode, string(e.Code))
			out = e
		}
		if raw, ok := out.([]byte); ok {
			reply.Data = raw
		} else {
			reply.Data, _ = json.Marshal(out)
		}
		_ = m.RespondMsg(reply)
	})
	if err == nil {
		err = w.conn.Flush()
	}
	if err != nil {
		w.t.Fatalf("serve %s: %v", subject, err)
	}
	return sub
}

func (w *world) core(m *nats.Msg) (any, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch verb, _, _ := subjects.ParseAPI(m.Subject); verb {
	case subjects.VerbVersion:
		var r kbroker.ListRequest
		if err := json.Unmarshal(m.Data, &r); err != nil || r.App != shop {
			return nil, kbroker.Errorf(kbroker.NotFound, "no app %q", r.App)
		}
		w.asked++
		v := w.versions[0]
		if len(w.versions) > 1 {
			w.versions = w.versions[1:]
		}
		return v, nil
	case subjects.VerbFigures:
		if rows := w.rows.Load(); rows != nil {
			return kbroker.FiguresReply{Instances: *rows}, nil
		}
		return nil, kbroker.Errorf(kbroker.Unavailable, "no view yet")
	case subjects.VerbPlacement:
		var r kbroker.PlacementRequest
		p, ok := kbroker.Placement{}, false
		if err := json.Unmarshal(m.Data, &r); err == nil && r.Host == "h1" {
			p, ok = w.placements[r.Instance]
		}
		if !ok {
			return nil, kbroker.Errorf(kbroker.NotFound, "no instance %q on %q", r.Instance, r.Host)
		}
		return p, nil
	}
	return nil, kbroker.Errorf(kbroker.Invalid, "unexpected %s", m.Subject)
}

// super answers demands until stop is called.
func (w *world) super() (stop func()) {
	sub := w.serve(subjects.Demand(tenant, shop), func(m *nats.Msg) (any, error) {
		var r kbroker.DemandRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, kbroker.Errorf(kbroker.Invalid, "%v", err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.demands = append(w.demands, r.Demand)
		if r.Demand.Epoch <= w.refuse {
			return nil, kbroker.Errorf(kbroker.Refused, "epoch %d is not above %d", r.Demand.Epoch, w.refuse)
		}
		return struct{}{}, nil
	})
	return func() {
		if err := sub.Unsubscribe(); err != nil {
			w.t.Errorf("unsubscribe: %v", err)
		}
		if err := w.conn.Flush(); err != nil {
			w.t.Errorf("flush: %v", err)
		}
	}
}

// want sets what a core answers from now on.
func (w *world) want(v ...kbroker.AppVersion) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.versions = v
}

// announce publishes a record as the control store republishes it.
func (w *world) announce(key string, record any) {
	w.t.Helper()
	b, err := json.Marshal(record)
	if err == nil {
		err = w.conn.Publish(subjects.Changed(key), b)
	}
	if err != nil {
		w.t.Fatalf("announce %s: %v", key, err)
	}
}

func (w *world) announceVersion(n int) {
	w.announce(subjects.KeyApp(tenant, shop), kbroker.AppRecord{Tenant: tenant, App: shop, Version: n, Latest: n})
}

func (w *world) heard() []kbroker.Demand {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.demands)
}

// demand waits for one that check accepts.
func (w *world) demand(what string, check func(kbroker.Demand) bool) kbroker.Demand {
	w.t.Helper()
	var found kbroker.Demand
	wait.Until(w.t, within, func() error {
		all := w.heard()
		i := slices.IndexFunc(all, check)
		if i < 0 {
			return fmt.Errorf("no demand %s among %+v", what, all)
		}
		found = all[i]
		return nil
	})
	return found
}

func wants(n int) func(kbroker.Demand) bool {
	return func(d kbroker.Demand) bool { return maps.Equal(d.Wanted, counts{"web": n}) }
}

func above(epoch uint64) func(kbroker.Demand) bool {
	return func(d kbroker.Demand) bool { return d.Epoch > epoch }
}

// process is one running allocator.
type process struct {
	own   kbroker.InstanceFile
	alloc *Allocator
	conn  *nats.Conn
	stop  context.CancelFunc
	done  chan struct{}
	err   error // after done
}

func instance(name kbroker.InstanceID) kbroker.InstanceFile {
	return kbroker.InstanceFile{
		Tenant: tenant, App: shop, Service: kbroker.AllocatorService, Instance: name,
		Incarnation: kbroker.Incarnation(name + ".0123456789abcdef"), Host: "h1", Version: 1, Epoch: 5,
	}
}

func (w *world) start(name kbroker.InstanceID, p pace) *process {
	w.t.Helper()
	return w.startOwn(name, p, nil)
}

// startOwn starts an allocator with a policy of its own; nil: without.
func (w *world) startOwn(name kbroker.InstanceID, p pace, policy Policy) *process {
	w.t.Helper()
	pr := &process{own: instance(name), conn: w.server.Connect(w.t, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond)), done: make(chan struct{})}
	alloc, err := New(Config{Instance: pr.own, Conn: pr.conn, Times: w.times, Policy: policy, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil))})
	if err != nil {
		w.t.Fatalf("new allocator: %v", err)
	}
	alloc.pace = p
	alloc.shards = newShards(alloc)
	pr.alloc = alloc
	ctx, cancel := context.WithCancel(context.Background())
	pr.stop = cancel
	go func() {
		defer close(pr.done)
		pr.err = alloc.Run(ctx)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-pr.done
	})
	wait.Until(w.t, within, func() error { return w.ping(pr) })
	return pr
}

// ping asks as an agent does.
func (w *world) ping(pr *process) error {
	m, err := w.conn.Request(subjects.Ping(pr.own.Tenant, pr.own.Incarnation), nil, time.Second)
	if err != nil {
		return err
	}
	var r kbroker.PingReply
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return err
	}
	if want := (kbroker.PingReply{Incarnation: pr.own.Incarnation, Ready: true, Allocator: true}); r != want {
		return fmt.Errorf("ping answered %+v, want %+v", r, want)
	}
	return nil
}

// ended waits for Run to return by itself.
func (pr *process) ended(t *testing.T) error {
	t.Helper()
	select {
	case <-pr.done:
		return pr.err
	case <-time.After(within):
		t.Fatalf("Run of %s has not returned within %v", pr.own.Instance, within)
		return nil
	}
}

func (pr *process) runs() bool {
	select {
	case <-pr.done:
		return false
	default:
		return true
	}
}
