// Package allocator is one app's resource manager: a process of its own, two
// per app, that decides how many instances of each service the app wants, and
// which of them owns which shards of the app's objects.
//
// The two are instances like any other. Both answer their agent and keep their
// view of the app warm; one of them holds the app's allocator lease and is
// active:
//
//	standby --lease won--> active --lease lost, or demand refused--> standby
//	   \___________________ tombstone or newer epoch ___________________/--> end
//
// The active one sends the wanted counts to super as a demand that carries its
// lease's epoch: when they change, and every few seconds, since super may have
// been away or a later leader may have come up on older state. Super stores the
// demand and refuses a lower epoch than the highest it knows, so a deposed
// allocator that was paused in the middle of a request changes nothing. Nothing
// waits for an allocator: while both are away the last demand holds.
//
// The active one also gives the shards to incarnations that hold a lease, takes
// them from those that are out, and moves them away from those that leave: in
// batches behind its own lease, decided by internal/ownership. Both allocators
// read who owns what, so that the standby may go on at once.
//
// What the allocator acts on are records that a core has read to it, or that
// the control store announced: never the absence of one.
package allocator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// Config of an Allocator.
type Config struct {
	// Instance is who this process is; every field but Version and Servers is
	// needed.
	Instance kbroker.InstanceFile
	// Conn stays the caller's, who closes it after Run has returned. It should
	// reconnect for ever: a closed one ends Run.
	Conn  *nats.Conn
	Times state.Times // zero: state.Tuned
	Clock state.Clock // nil: the boottime clock
	// Judge is the clock by which leases of incarnations, and moves, are late; nil: Clock.
	Judge  state.Clock
	Policy Policy // the app's own; nil: the one that the spec names
	Log    *slog.Logger
}

// validate fills in the defaults.
func (c *Config) validate() error {
	own := c.Instance
	switch {
	case own.Tenant == "" || own.App == "" || own.Service == "" || own.Instance == "" || own.Incarnation == "" || own.Host == "":
		return kbroker.Errorf(kbroker.Invalid, "the instance file lacks a name: %+v", own)
	case own.Epoch == 0:
		return kbroker.Errorf(kbroker.Invalid, "the instance file lacks an epoch: %+v", own)
	case c.Conn == nil:
		return kbroker.Errorf(kbroker.Invalid, "an allocator needs a connection")
	}
	if c.Times == (state.Times{}) {
		c.Times = state.Tuned
	}
	if c.Clock == nil {
		c.Clock = state.Boottime
	}
	if c.Judge == nil {
		c.Judge = c.Clock
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Why Run ends although its caller's ctx goes on.
var (
	errSuperseded = errors.New("the placement of this instance is superseded")
	errClosed     = errors.New("the connection to the cluster is closed for good")
)

// Allocator is one of the allocator processes of an app.
type Allocator struct {
	cfg   Config
	own   kbroker.InstanceFile
	log   *slog.Logger
	pace  pace
	guard *guard // of the app's own policy; nil: it has none

	lookApp   bell // read the wanted version again
	lookPlace bell // read the own placement again
	demandNow bell // send the demand again

	lookInstances bell
	began         time.Duration // by Clock
	shards        *shards
	loads         loads
	leaseNews     state.LeaseNews
	demanding     atomic.Pointer[demander] // while it is active

	announced atomic.Int64 // the app version that the store announced last

	mu      sync.Mutex
	current *View // nil until a core has read it to us
}

// New returns an allocator that does nothing until Run. Errors: Invalid.
func New(cfg Config) (*Allocator, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	a := &Allocator{
		cfg: cfg, own: cfg.Instance, pace: normalPace,
		log:       cfg.Log.With("app", cfg.Instance.App, "instance", cfg.Instance.Instance),
		lookApp:   newBell(),
		lookPlace: newBell(),
		demandNow: newBell(), lookInstances: newBell(),
	}
	a.began, a.shards = cfg.Clock(), newShards(a)
	if cfg.Policy != nil {
		cfg.Log = a.log
		a.guard = newGuard(cfg)
	}
	return a, nil
}

// Run does the allocator's work until ctx ends or the instance's placement is a
// tombstone or has a newer epoch, then releases the lease if it holds it and
// returns nil. An error means that the process should be started anew: the
// connection was closed. Call it once.
func (a *Allocator) Run(ctx context.Context) error {
	ctx, leave := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer leave(nil)

	status := a.cfg.Conn.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer a.cfg.Conn.RemoveStatusListener(status)
	running.Go(func() { a.watchConnection(ctx, status, leave) })

	// The ping comes last: who is answered knows that all are in place.
	for _, s := range []struct {
		subject string
		handle  func(*nats.Msg)
	}{
		{subjects.Changed(subjects.KeyApp(a.own.Tenant, a.own.App)), a.onApp},
		{subjects.Changed(subjects.KeyPlacement(a.own.Host, a.own.Tenant, a.own.Instance)), func(m *nats.Msg) { a.onPlacement(m, leave) }},
		{subjects.OwnedOf(a.own.Tenant, a.own.App) + ">", a.shards.onOwned},
		{subjects.Reaped(a.own.Tenant, a.own.App), a.shards.onReaped},
		{subjects.LoadOf(a.own.Tenant, a.own.App) + "*.*", a.onLoad},
		{subjects.Keeper(a.own.Tenant, a.own.Incarnation), a.onAsked},
		{subjects.Ping(a.own.Tenant, a.own.Incarnation), a.onPing},
	} {
		sub, err := a.cfg.Conn.SubscribeSync(s.subject)
		if err != nil {
			return fmt.Errorf("subscribe %s: %w", s.subject, err)
		}
		defer func() { _ = sub.Unsubscribe() }() // fails only on a connection that is gone
		running.Go(func() { receive(ctx, sub, s.handle) })
	}

	readPlacement := func(ctx context.Context) error { return a.readPlacement(ctx, leave) }
	running.Go(func() {
		_ = a.rounds(ctx, "wanted version not read, asked again", a.lookApp, a.pace.lookApp, a.readApp)
	})
	running.Go(func() {
		_ = a.rounds(ctx, "own placement not read, asked again", a.lookPlace, a.pace.lookPlace, readPlacement)
	})
	running.Go(func() {
		_ = a.rounds(ctx, "leases of incarnations not read, asked again", a.shards.lookLeases, a.pace.lookLeases, a.shards.readLeases)
	})
	running.Go(func() {
		_ = a.rounds(ctx, "owners of shards not read, asked again", a.shards.lookShards, a.pace.lookShards, a.shards.readShards)
	})
	running.Go(func() {
		_ = a.rounds(ctx, "placed objects not read, asked again", a.shards.lookPlaced, a.pace.lookPlaced, a.shards.readPlaced)
	})
	err := state.HoldAllocator(ctx, state.AllocatorLease{
		Ask: a.askLease, Write: a.writeOwn, Tenant: a.own.Tenant, App: a.own.App, Holder: a.own.Incarnation,
		News: &a.leaseNews, Times: a.cfg.Times, Clock: a.cfg.Clock, Log: a.log,
	}, a.active)
	if errors.Is(context.Cause(ctx), errClosed) {
		return errClosed
	}
	if err != nil {
		return fmt.Errorf("hold the lease: %w", err)
	}
	return nil
}

// Look reads the leases of incarnations now, as Run does every second anyway: for whoever
// turns the clock Judge, between two turns. Safe for concurrent use, while Run runs.
func (a *Allocator) Look(ctx context.Context) error { return a.shards.readLeases(ctx) }

// askLease asks a core for the lease once.
func (a *Allocator) askLease(ctx context.Context, r kbroker.LeaseRequest) (reply kbroker.LeaseReply, err error) {
	err = ask(ctx, a.cfg.Conn, a.pace.attempt, subjects.Lease(a.own.Tenant, a.own.App), r, &reply)
	return reply, err
}

// active sends the demand, and assigns shards, as long as the lease of that epoch is
// held. It returns an error when super knows a later allocator; the lease is given back
// then.
func (a *Allocator) active(ctx context.Context, h *state.AllocatorHolding) error {
	epoch := h.Epoch()
	a.log.Info("active", "epoch", epoch)
	defer a.log.Info("no longer active", "epoch", epoch)
	ctx, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer stop()
	beside.Go(func() { a.shards.assign(ctx, h) })
	d := newDemander(a, epoch)
	a.demanding.Store(d)
	defer a.demanding.Store(nil)
	beside.Go(func() { d.watch(ctx) })
	sub, err := a.cfg.Conn.SubscribeSync(subjects.Placing(a.own.Tenant, a.own.App, "*"))
	if err != nil {
		return fmt.Errorf("subscribe what is asked of placed objects: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only on a connection that is gone
	beside.Go(func() { receive(ctx, sub, a.onPlacing) })
	return a.rounds(ctx, "demand not delivered, sent again", a.demandNow, a.pace.resend, d.send)
}

func (a *Allocator) view() (View, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == nil {
		return View{}, false
	}
	return *a.current, true
}

// setView reports whether v is news.
func (a *Allocator) setView(v View) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	news := a.current == nil || a.current.Version != v.Version
	a.current = &v
	return news
}
