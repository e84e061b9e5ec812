package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/boottime"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// App is one instance of a service. Made by New, filled by Handle, run once by
// Main or Run.
type App struct {
	client   *Client
	identity kbroker.InstanceFile
	log      *slog.Logger
	grace    time.Duration
	methods  []*method
	kinds    []*kind
	topics   []*topic
	durable  []*durableTopic
	keeper   *keeper // of the objects; nil: it has none
	leases   func(*kbroker.InstanceFile) ownership.Times
	clock    func() time.Duration // of leases, idle times and timers
	due      <-chan struct{}      // the clock was turned; nil: nobody turns it
	cut      <-chan struct{}      // closed: end at once, as if killed; nil: nobody does
	err      error                // what New and Handle found wrong
	started  time.Time
	phase    atomic.Int32
	drains   chan struct{}                         // the load meter hears that it begins to
	figures  atomic.Pointer[kbroker.ObjectFigures] // of the objects; nil: it has none
}

// Phases of an app.
const (
	phaseStarting int32 = iota
	phaseReady
	phaseDraining
)

const (
	// flushTimeout bounds one round trip to the bus.
	flushTimeout = 2 * time.Second
	// farewell bounds the last flush of a leaving app.
	farewell = 500 * time.Millisecond
	// cancelled is how long handlers get after their context ended with the
	// grace.
	cancelled = 500 * time.Millisecond
	// connectPoll is how often a starting app looks for its connection.
	connectPoll = 20 * time.Millisecond
)

// New makes the app that this process is. Who that is says the instance file
// of its agent (KBROKER_INSTANCE); without one, for development, the option As
// or the app.yaml of the working directory. What is wrong with either is
// returned by Run. It does not connect; Run and the first call do.
func New(opts ...Option) *App {
	o := collect(opts)
	a := &App{log: o.log, grace: o.grace, started: time.Now(), drains: make(chan struct{}, 1), leases: timesOf, clock: boottime.Now}
	client, target, err := o.client("dev")
	if err != nil {
		a.err = err
		return a
	}
	a.client = client
	if target.Instance != nil {
		a.identity = *target.Instance
	} else {
		a.identity, a.err = developer(o.as, target)
	}
	client.app, client.start = a.identity.App, a.identity.Incarnation
	client.knowPlaced(&a.identity)
	return a
}

// Instance names this instance, unique in its tenant.
func (a *App) Instance() kbroker.InstanceID { return a.identity.Instance }

// Client makes calls over the app's connection. nil if New found no cluster;
// Run returns the reason.
func (a *App) Client() *Client { return a.client }

// Service is a service to call over the app's connection; see Service.
func (a *App) Service(name string) Target {
	t := Service(name)
	t.client = a.client
	return t
}

func (a *App) add(m *method) {
	err := m.check()
	for _, other := range a.methods {
		if other.name == m.name {
			err = kbroker.Errorf(kbroker.Invalid, "method %s is handled twice", m.name)
		}
	}
	a.err = errors.Join(a.err, err)
	a.methods = append(a.methods, m)
}

// Main runs the app until it is told to leave (SIGTERM, SIGINT, or its
// placement has gone) and ends the process: with 0, or with 1 and the reason on
// the log when it could not run or handlers did not finish in the grace. A
// second signal ends it at once.
func (a *App) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	if err := a.Run(ctx); err != nil {
		e := kbroker.AsError(err)
		a.log.Error("app failed", "err", err, "code", e.Code, "hint", e.Hint)
		os.Exit(1)
	}
	os.Exit(0)
}

// errLeave ends an app whose placement has gone.
var errLeave = errors.New("placed elsewhere")

// Run serves until ctx ends or the instance's placement says that it must
// leave; then it drains and returns nil. Other errors: what New or Handle found
// wrong; Unavailable - no cluster within reach (an instance waits instead), or
// the connection was closed for good; Failed - handlers did not finish within
// the grace. The app's client is closed afterwards.
func (a *App) Run(ctx context.Context) error {
	if a.client != nil {
		defer a.client.Close()
	}
	if a.err != nil {
		return a.err
	}
	if err := a.checkKinds(); err != nil {
		return err
	}
	defer a.showAlive()() // also while it drains
	t, err := a.client.open(ctx)
	if err != nil {
		return err
	}
	serving, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	handlers, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	subs, err := a.subscribe(handlers, t)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer leave(nil) // before the wait
	endObjects, err := a.keep(t, &wg)
	if err != nil {
		return err
	}
	defer endObjects()
	if a.identity.Host != "" {
		w, err := newWatch(a, t)
		if err != nil {
			return err
		}
		wg.Go(func() { w.run(serving, func() { leave(errLeave) }) })
	}
	defer a.tellLoad(t)() // also while it drains
	wg.Go(func() { a.becomeReady(serving, t) })
	wg.Go(func() { a.watchTopics(serving, leave) })
	var lost error
	select {
	case <-serving.Done():
		if refused, ok := errors.AsType[refusedTopic](context.Cause(serving)); ok {
			lost = refused
		}
		a.log.Info("leaving", "err", context.Cause(serving))
		a.keeper.handOver(ctx)
	case <-a.keeper.ends():
		lost = a.keeper.failure()
		a.log.Error("leaving: the lease of what this instance owns is lost", "instance", a.identity.Instance, "err", lost)
	case <-a.cut:
		a.keeper.giveUp()
		return nil
	case <-a.client.ended:
		lost = kbroker.Errorf(kbroker.Unavailable, "the connection to the cluster was closed for good").WithHint("was the instance's credential revoked?")
	}
	err = a.drain(t, subs, giveUp)
	return errors.Join(lost, err)
}

// subscribe joins everything; the methods' subscriptions are returned.
func (a *App) subscribe(handlers context.Context, t transport) ([]subscription, error) {
	if _, err := t.subscribe(subjects.Ping(a.identity.Tenant, a.identity.Incarnation), "", func(m *nats.Msg) { a.pong(t, m) }); err != nil {
		return nil, fmt.Errorf("subscribe ping: %w", err)
	}
	if err := a.discoverable(t); err != nil {
		return nil, err
	}
	var subs []subscription
	for _, m := range a.methods {
		sub, err := m.serve(a, handlers, t)
		if err != nil {
			return nil, fmt.Errorf("serve method %s: %w", m.name, err)
		}
		subs = append(subs, sub)
	}
	for _, topic := range a.topics {
		sub, err := topic.listen(a, handlers, t)
		if err != nil {
			return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
		}
		subs = append(subs, sub)
	}
	return subs, nil
}

// becomeReady waits until the broker has processed all subscriptions, and the lease of the
// objects is held.
func (a *App) becomeReady(ctx context.Context, t transport) {
	poll := time.NewTicker(connectPoll)
	defer poll.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, flushTimeout)
		err := t.flush(try)
		cancel()
		if err == nil {
			if !a.keeper.await(ctx) {
				return
			}
			if a.phase.CompareAndSwap(phaseStarting, phaseReady) {
				a.log.Info("ready", "instance", a.identity.Instance)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
	}
}

// pong answers the agent.
func (a *App) pong(t transport, m *nats.Msg) {
	phase := a.phase.Load()
	requests, errs, _ := a.counted()
	b, err := json.Marshal(kbroker.PingReply{
		Incarnation: a.identity.Incarnation,
		Requests:    &requests, Errors: &errs, Objects: a.figures.Load(),
		Ready:    phase == phaseReady,
		Draining: phase == phaseDraining,
	})
	if err != nil || !subjects.IsPong(m.Reply, a.identity.Tenant, a.identity.Host) && !subjects.IsInbox(m.Reply) {
		return
	}
	if err := t.publish(&nats.Msg{Subject: m.Reply, Data: b}); err != nil {
		a.log.Warn("ping not answered", "err", err)
	}
}

// drain leaves without losing a request: out of the queue group, then what was
// delivered runs to its end, then the answers leave. A bus that is gone delays
// nothing but running handlers.
func (a *App) drain(t transport, subs []subscription, giveUp func()) error {
	a.phase.Store(phaseDraining)
	stir(a.drains)
	ctx, cancel := context.WithTimeout(context.Background(), a.grace)
	defer cancel()
	var wg sync.WaitGroup
	var gone atomic.Bool
	if a.keeper != nil {
		wg.Go(func() { a.keeper.leave(ctx) })
	}
	for _, s := range subs {
		wg.Go(func() {
			if err := s.drain(ctx); err != nil {
				a.log.Warn("subscription not drained", "err", err)
				gone.Store(true)
			}
		})
	}
	wg.Wait()
	err := a.idle(ctx)
	if err != nil {
		giveUp()
		a.keeper.giveUp()
		last, stop := context.WithTimeout(context.Background(), cancelled)
		defer stop()
		err = a.idle(last)
	}
	if !gone.Load() {
		bye, stop := context.WithTimeout(context.Background(), farewell)
		defer stop()
		if e := t.flush(bye); e != nil {
			a.log.Warn("last answers may not have left", "err", e)
		}
	}
	if err != nil {
		return kbroker.Errorf(kbroker.Failed, "handlers still ran %v after the app had to leave", a.grace)
	}
	return nil
}

func (a *App) idle(ctx context.Context) error {
	if err := a.keeper.rest(ctx); err != nil {
		return err
	}
	for _, m := range a.methods {
		if err := m.idle(ctx); err != nil {
			return err
		}
	}
	for _, topic := range a.topics {
		if err := topic.close(ctx); err != nil {
			return err
		}
	}
	return nil
}
