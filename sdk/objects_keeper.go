package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/pulse"
)

// Bounds of what an instance does for its objects.
const (
	// maxTurns bounds the turns and reads of all objects that an instance runs at a time,
	// maxNested those that other turns wait for.
	maxTurns  = DefaultConcurrency
	maxNested = 4 * DefaultConcurrency
	// maxHeard bounds the requests that were heard and not looked at yet, and the turns and
	// reads that wait for a place.
	maxHeard = 10_000
	// tickEvery is how often is looked at what is due.
	tickEvery = 50 * time.Millisecond
	// tickIdle is that of who has nothing to do: each look wakes the process up, and of its
	// kind there may be hundreds on a host.
	tickIdle = 250 * time.Millisecond
	// tickLeast is how much later that is done again at least, whatever happens.
	tickLeast = 10 * time.Millisecond
	// handOverShare is the part of its grace for which an app that leaves waits for the
	// next of its shards to be taken over.
	handOverShare = 2
	// handOverWithin is how long an app whose placement has gone, and that nobody else has
	// asked to end, serves what nobody takes over. Super leaves it its credential for longer.
	handOverWithin = 90 * time.Second
)

// keeper keeps the objects of an instance: it drives an ownership.Owner, which decides.
// One goroutine, that of run, has the owner and all that is not said otherwise; everybody
// else posts to it what has happened.
//
//	NATS --heard--> post --> Owner --effects--> NATS, turns
//	cores, turns, the clock --^
type keeper struct {
	app   *App
	own   *kbroker.InstanceFile
	t     transport
	log   *slog.Logger
	self  []byte // as records name the incarnation
	kinds map[kbroker.KindName]*kind
	heads map[bool]heads // of replies, by whether the method only reads

	base context.Context // of all turns: ends when nothing that they do counts any more
	stop context.CancelFunc
	work sync.WaitGroup // what waits for the bus

	held chan struct{} // closed when the lease is held first
	lost chan struct{} // closed when it is lost; why is set then
	gone chan struct{} // closed when the app leaves and owns nothing any more
	why  string

	deaf  atomic.Bool  // the lease is lost: nothing is heard
	until atomic.Int64 // when the lease ends, on the boottime clock

	mu      sync.Mutex
	wake    chan struct{}
	events  []func(now time.Duration)
	waiting int // of the events, those that are requests
	closed  bool

	owner      *ownership.Owner
	concerns   concerns
	ears       map[uint64]*ear
	active     map[kbroker.Object]*active
	gates      gates
	idle       idling
	quarantine quarantine
	turns      rate // of all objects
	shardLoads shardLoads
	crossings  crossings
	reminders  reminders
	feeds      []*feed
	places     places
	timers     timers
	pressure   pressure
	eased      time.Duration // when it was said last that memory is short
	grown      []*kind       // kinds of objects that came into memory just now
	releases   releases
	asking     asking
	roots      lane
	nested     lane
	handing    bool // it is to own nothing any more, and serves until then
	leaving    bool
	holds      int           // shards, while it leaves
	moved      time.Duration // when one of them was let go last
	complained time.Duration // about a core that refuses
	figured    time.Duration // when the figures were told last
	queued     atomic.Int64  // calls that wait for their object, as of the last tick
	busiest    atomic.Pointer[loadOfShards]
}

func newKeeper(a *App, t transport, times ownership.Times) *keeper {
	k := &keeper{
		app: a, own: &a.identity, t: t, log: a.log, self: strconv.AppendQuote(nil, string(a.identity.Incarnation)), kinds: map[kbroker.KindName]*kind{}, heads: headsOf(&a.identity),
		held: make(chan struct{}), lost: make(chan struct{}), gone: make(chan struct{}), wake: make(chan struct{}, 1),
		ears: map[uint64]*ear{}, active: map[kbroker.Object]*active{}, gates: newGates(), idle: idling{}, quarantine: newQuarantine(), crossings: newCrossings(),
		timers: newTimers(), reminders: newReminders(), feeds: feedsOf(a), places: places{}, pressure: newPressure(),
		asking: asking{shards: map[kbroker.Shard]bool{}}, roots: lane{bound: maxTurns}, nested: lane{bound: maxNested},
	}
	mailboxes, durable := map[kbroker.KindName]int{}, map[kbroker.KindName]ownership.Durability{}
	for _, kind := range a.kinds {
		kind.schema.decide(k.own, kind.name)
		if kind.durable != (ownership.Durability{}) {
			durable[kind.name] = kind.durable
		}
		k.kinds[kind.name], mailboxes[kind.name] = kind, kind.mailbox
	}
	k.base, k.stop = context.WithCancel(context.Background())
	k.owner = ownership.NewOwner(ownership.OwnerConfig{
		Incarnation: k.own.Incarnation, Service: k.own.Service, Host: k.own.Host,
		Streams: k.own.ObjectStreams, Times: times, Mailboxes: mailboxes, Durable: durable, Follow: k.concerns.follow,
	})
	return k
}

// timesOf are the times of the cluster's leases.
func timesOf(i *kbroker.InstanceFile) ownership.Times {
	if i.StockRaft {
		return ownership.Stock
	}
	return ownership.Tuned
}

func (k *keeper) now() time.Duration { return k.app.clock() }

// post has the loop do something soon, in the order of the posts.
func (k *keeper) post(do func(now time.Duration)) { k.add(do, false) }

// add reports whether the event was taken: requests are up to a bound.
func (k *keeper) add(do func(now time.Duration), request bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.closed:
		return true
	case request && k.waiting >= maxHeard:
		return false
	case request:
		k.waiting++
	}
	k.events = append(k.events, do)
	stir(k.wake)
	return true
}

func (k *keeper) take() []func(time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := k.events
	k.events, k.waiting = nil, 0
	return all
}

// run keeps the objects until ctx ends.
func (k *keeper) run(ctx context.Context) {
	defer k.work.Wait()
	defer k.stop()
	defer k.close()
	every := tickEvery
	since := k.app.started
	tick := time.NewTimer(pulse.Until(since, every))
	defer tick.Stop()
	var last time.Duration
	for {
		now := k.now()
		if last == 0 || now-last >= tickLeast {
			last = now
			k.tick(now)
		}
		if next := k.pause(now); next != every {
			every = next
			tick.Reset(pulse.Until(since, every))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			tick.Reset(pulse.Until(since, every))
			continue
		case <-k.app.due:
			last = 0 // tick, however little has passed
			continue
		case <-k.wake:
		}
		for _, do := range k.take() {
			now := k.now()
			do(now)
			k.settle(now)
		}
	}
}

// pause is how long the next look may wait.
func (k *keeper) pause(now time.Duration) time.Duration {
	if k.leaving || k.handing || len(k.feeds) > 0 || len(k.crossings.queued) > 0 || !k.owner.Quiet(now+tickIdle) ||
		k.timers.dueWithin(now, tickIdle) || k.reminders.dueWithin(tickIdle) {
		return tickEvery
	}
	return tickIdle
}

// tick does what is due by the clock.
func (k *keeper) tick(now time.Duration) {
	k.collect(now)
	k.owner.Tick(now)
	k.sweep(now)
	k.relieve(now)
	k.lookForCrossings(now)
	k.fire(now)
	k.remind(now)
	k.feed(now)
	k.settle(now)
	k.figure(now)
}

// close takes no more events.
func (k *keeper) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed, k.events = true, nil
}

// settle does what the machine wants, and says what others wait for.
func (k *keeper) settle(now time.Duration) {
	for _, e := range k.owner.Effects() {
		k.effect(now, e)
	}
	k.bound(now)
	k.until.Store(int64(k.owner.HeldUntil()))
	k.release()
	k.lookUp()
	if k.owner.Valid(now) {
		shut(k.held)
	}
	if k.handing && k.owner.Holds() == 0 {
		shut(k.gone)
	}
	if !k.leaving {
		return
	}
	switch holds := k.owner.Holds(); {
	case holds == 0:
		shut(k.gone)
	case holds != k.holds || len(k.owner.Owned()) < holds: // one is on its way
		k.holds, k.moved = holds, now
	case now-k.moved > k.app.grace/handOverShare && !closed(k.gone):
		k.log.Warn("nobody takes over what this instance owns; it leaves all the same", "instance", k.own.Instance, "shards", holds)
		shut(k.gone)
	}
}

// keep begins to keep the app's objects; end ends it.
func (a *App) keep(t transport, wg *sync.WaitGroup) (end func(), err error) {
	if len(a.kinds) == 0 {
		return func() {}, nil
	}
	boundMemory(&a.identity)
	k := newKeeper(a, t, a.leases(&a.identity))
	if err := errors.Join(k.watch(), k.beSeen()); err != nil {
		return nil, err
	}
	a.keeper = k
	ctx, end := context.WithCancel(context.Background())
	wg.Go(func() { k.run(ctx) })
	wg.Go(func() { k.follow(ctx, assignedEvery) })
	return end, nil
}

// await returns true when the lease is held; an app without objects needs none.
func (k *keeper) await(ctx context.Context) bool {
	if k == nil {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-k.held:
		return true
	}
}

// shut closes a channel that may be closed already; by one goroutine.
func shut(c chan struct{}) {
	if !closed(c) {
		close(c)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// complain says once a minute what cannot be cured here.
func (k *keeper) complain(now time.Duration, what string, err error) {
	if k.complained != 0 && now-k.complained < time.Minute {
		return
	}
	k.complained = max(now, 1)
	k.log.Error(fmt.Sprintf("a core does not %s what this instance owns", what), "instance", k.own.Instance, "err", err)
}
