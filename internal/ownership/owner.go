package ownership

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

// Bounds of an owner.
const (
	// maxLoads bounds the objects that are loaded at a time: a takeover of many is no storm.
	maxLoads = 64
	// maxPutAway bounds the objects that are remembered with the revision that they were
	// put away at.
	maxPutAway = 100_000
	retryLeast = 20 * time.Millisecond
	retryMost  = time.Second
)

// OwnerConfig is who an Owner is, and its bounds.
type OwnerConfig struct {
	Incarnation kbroker.Incarnation
	Service     kbroker.ServiceName
	Host        kbroker.HostID
	Streams     int // of objects: shard s is in stream s mod Streams
	Times       Times
	Mailbox     int // calls of an object that wait; 0: 1000
	// Mailboxes are other bounds, of kinds that have one.
	Mailboxes map[kbroker.KindName]int
	// Durable are the kinds that are not stored before they answer.
	Durable map[kbroker.KindName]Durability
	// Follow is told from when on, and until when, it counts what becomes of a shard that is
	// another's: who hears of that may leave it out else. nil: nobody wants to know.
	Follow func(n kbroker.Shard, does bool)
}

// Owner is an incarnation that owns shards of objects. It does nothing by itself: the
// driver calls it with what happened and the time, boottime, and takes the effects.
// Not safe for concurrent use.
type Owner struct {
	cfg     OwnerConfig
	effects []Effect
	number  uint64 // of subscriptions, loads, activations and batches

	term     term
	lease    Lease
	rev      kbroker.Revision         // of the lease, as far as it is known
	sent     time.Duration            // of the attempt to renew that is under way
	renewal  map[uint64]time.Duration // when each number was sent first
	reading  time.Duration            // when the lease was asked for; 0: it was not
	attempts int                      // to renew, since one was accepted
	known    time.Duration            // when the revision of the lease was learned
	leaving  time.Duration            // when the first renewal was sent that says so; 0: none was
	told     bool                     // the lease that is stored says so
	begun    bool
	ended    bool

	shards  map[kbroker.Shard]*shard
	awake   map[kbroker.Shard]*shard // of which something is due, or may be: of many that are owned few
	commits []committer              // by stream
	loads   int
	waiting []*object // for a place among the loads
	retries []retry
	away    map[kbroker.Object]putAway

	relays   int       // messages under way
	stalled  []*object // that wait for a place among them
	cooling  map[outKey]int
	removals []removals // by stream
	scans    int
	toScan   []*shard

	figures Figures
}

// putAway is where an object was left by this incarnation.
type putAway struct {
	epoch uint64
	rev   kbroker.Revision
}

// retry is something that is done again later.
type retry struct {
	at time.Duration
	do func(now time.Duration)
}

// NewOwner returns an owner that asks for its lease at the first Tick.
func NewOwner(cfg OwnerConfig) *Owner {
	cfg.Mailbox, cfg.Streams = cmp.Or(cfg.Mailbox, 1000), max(cfg.Streams, 1)
	o := &Owner{
		cfg: cfg, term: term{times: cfg.Times}, shards: map[kbroker.Shard]*shard{}, awake: map[kbroker.Shard]*shard{}, renewal: map[uint64]time.Duration{},
		lease: Lease{Incarnation: cfg.Incarnation, Service: cfg.Service, Host: cfg.Host},
		away:  map[kbroker.Object]putAway{}, cooling: map[outKey]int{}, removals: make([]removals, cfg.Streams),
	}
	for s := range cfg.Streams {
		o.commits = append(o.commits, committer{owner: o, stream: s})
	}
	return o
}

// Effects takes what is to be done since it was called last.
func (o *Owner) Effects() []Effect {
	e := o.effects
	o.effects = nil
	return e
}

func (o *Owner) want(e Effect) {
	if o.ended {
		return
	}
	if a, ok := e.(Answer); ok && a.Calls[0].removes != 0 && a.Answer.Outcome != Done {
		o.notFollowed(a.Calls[0], a.Answer)
	}
	if a, ok := e.(Answer); ok && a.Answer.Outcome.refuses() {
		o.figures.Refused += uint64(len(a.Calls))
	}
	o.effects = append(o.effects, e)
}

func (o *Owner) next() uint64 {
	o.number++
	return o.number
}

// Valid reports whether the incarnation holds its lease now.
func (o *Owner) Valid(now time.Duration) bool { return !o.ended && o.term.valid(now) }

// HeldUntil is when the incarnation's term ends, if no renewal is accepted until then; 0:
// it holds no lease.
func (o *Owner) HeldUntil() time.Duration {
	if o.ended || !o.term.held {
		return 0
	}
	return o.term.since + o.term.times.HolderStops
}

// Tick is to be called often, as what is due by the clock is looked at then alone.
func (o *Owner) Tick(now time.Duration) {
	if o.ended {
		return
	}
	if o.end(now); o.ended {
		return
	}
	switch due := now-o.sent >= o.patience(); {
	case !o.begun, o.sent != 0 && due && o.reading == 0: // the attempt was not answered
		o.renew(now)
	case o.sent == 0 && now-o.term.since >= o.cfg.Times.Renew && o.reading == 0:
		o.lease.Number++
		o.renew(now)
	case o.reading != 0 && now-o.reading >= o.cfg.Times.RenewAttempt:
		o.readLease(now)
	}
	o.tellLeaving(now)
	var due []retry
	o.retries = slices.DeleteFunc(o.retries, func(r retry) bool {
		if r.at <= now {
			due = append(due, r)
			return true
		}
		return false
	})
	for _, r := range due {
		r.do(now)
	}
	for _, s := range sorted(o.awake) {
		s.tick(now)
		if s.quiet() || o.shards[s.number] != s {
			delete(o.awake, s.number)
		}
	}
	o.releaseMore(now)
}

func (o *Owner) later(at time.Duration, do func(now time.Duration)) {
	o.retries = append(o.retries, retry{at, do})
}

// Assigned is an assignment as it was read through a leader, or announced.
func (o *Owner) Assigned(now time.Duration, n kbroker.Shard, a Assignment, rev kbroker.Revision) {
	if o.ended {
		return
	}
	s := o.shard(n)
	if rev < s.rev {
		return // an older one, late
	}
	s.assigned(now, a, rev)
	o.forget(now, s)
}

// Released is a release as it was read through a leader, or announced.
func (o *Owner) Released(now time.Duration, n kbroker.Shard, r Release, rev kbroker.Revision) {
	if o.ended {
		return
	}
	s := o.shard(n)
	if rev < s.releaseRev {
		return
	}
	s.release, s.releaseRev = r, rev
	s.settle(now)
	o.forget(now, s)
}

// shard is the one of a number, made if there is none.
func (o *Owner) shard(n kbroker.Shard) *shard {
	s := o.shards[n]
	if s == nil {
		s = &shard{owner: o, number: n, objects: map[kbroker.Object]*object{}, calls: map[*object]bool{}}
		o.shards[n] = s
		if o.cfg.Follow != nil {
			o.cfg.Follow(n, true)
		}
	}
	s.wake()
	return s
}

// forget drops a shard that is somebody else's and was never ours. A placed object that was
// released is dropped later: an assignment that is late is refused until then.
func (o *Owner) forget(now time.Duration, s *shard) {
	if s.number.OfOne() && s.role == none && s.hearing == deaf && s.assignment.Owner == "" && s.dropped == 0 && s.rev != 0 {
		at := max(now, 1)
		s.dropped = at
		o.later(now+o.cfg.Times.Window, func(time.Duration) {
			if s.role == none && s.dropped == at && o.shards[s.number] == s {
				o.drop(s)
			}
		})
		return
	}
	if s.number.OfOne() && s.dropped != 0 && s.assignment.Owner == "" {
		return
	}
	s.dropped = 0
	if s.role == none && s.releasedEpoch == 0 && s.hearing == deaf && len(s.objects) == 0 {
		if s.assignment.Next != o.cfg.Incarnation && s.assignment.Owner != o.cfg.Incarnation {
			o.drop(s)
		}
	}
}

func (o *Owner) drop(s *shard) {
	if o.shards[s.number] != s {
		return
	}
	delete(o.shards, s.number)
	if o.cfg.Follow != nil {
		o.cfg.Follow(s.number, false)
	}
}

func (o *Owner) sorted() []*shard { return sorted(o.shards) }

func sorted(some map[kbroker.Shard]*shard) []*shard {
	all := make([]*shard, 0, len(some))
	for _, s := range some {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *shard) int { return cmp.Compare(a.number, b.number) })
	return all
}

// Listening is the answer to Listen.
func (o *Owner) Listening(now time.Duration, n kbroker.Shard, number uint64) {
	if s := o.shards[n]; s != nil && !o.ended && s.subscription == number && s.hearing == tuning {
		s.hearing = listening
		s.served(now)
		s.settle(now)
		if s.role == owning && !s.volatile() {
			s.scan(now) // whatever it knew of what the shard's objects have to do may be gone
		}
	}
}

// Silent is the answer to Deafen.
func (o *Owner) Silent(now time.Duration, n kbroker.Shard, number uint64) {
	if s := o.shards[n]; s != nil && !o.ended && s.subscription == number && s.hearing == fading {
		s.hearing = deaf
		s.settle(now)
		o.forget(now, s)
	}
}

// Arrived is a request that was heard under a subscription. It is answered by an Answer,
// or not at all: by who holds no lease, and by who does not know whether it owns the
// object. One whose answer has not come is then asked for again, elsewhere.
func (o *Owner) Arrived(now time.Duration, number uint64, c *Call) {
	if o.ended {
		return
	}
	if o.look(now); o.ended {
		return
	}
	s := o.shards[c.Object.Shard()]
	switch {
	case s == nil || s.subscription != number && s.role == owning:
		return // of a subscription that is over
	case s.role == released && o.Valid(now), s.role == releasing && s.hearing == deaf && o.Valid(now):
		o.want(Answer{[]*Call{c}, Reply{Outcome: Moved}})
	case s.role == owning || s.role == releasing:
		s.call(now, c)
	}
}

// ReleaseWritten is what became of a WriteRelease.
func (o *Owner) ReleaseWritten(now time.Duration, n kbroker.Shard, number uint64, w Written) {
	if s := o.shards[n]; s != nil && !o.ended && s.writing != nil && s.writing.Number == number {
		s.releaseWritten(now, w)
		o.forget(now, s)
	}
}

// object is the one that is in memory, or nil.
func (o *Owner) object(id kbroker.Object) *object {
	if s := o.shards[id.Shard()]; s != nil {
		return s.objects[id]
	}
	return nil
}

// PutAway takes an object out of memory that has nothing to do, and reports whether it did:
// one that is not stored yet is saved first, and put away then.
func (o *Owner) PutAway(id kbroker.Object) bool {
	x := o.object(id)
	if x == nil || x.phase != idle || x.readers > 0 || len(x.queue) > 0 || !x.out.known || len(x.out.messages) > 0 || !x.empty() {
		return false
	}
	if x.unsaved.is {
		x.unsaved.due, x.unsaved.away = 0, true // Tick saves it
		o.later(0, x.run)
		return false
	}
	if x.durability().Volatile {
		x.remove()
		return true
	}
	if len(o.away) >= maxPutAway {
		for k := range o.away { // any: it is claimed again, which costs a write
			delete(o.away, k)
			break
		}
	}
	o.away[id] = putAway{x.shard.epoch, x.rev}
	x.remove()
	return true
}

// Owned are the shards that the incarnation serves, with their epochs.
func (o *Owner) Owned() map[kbroker.Shard]uint64 {
	out := map[kbroker.Shard]uint64{}
	for n, s := range o.shards {
		if s.role == owning {
			out[n] = s.epoch
		}
	}
	return out
}

// Serves is how many shards the incarnation serves, without placed objects, and how many
// placed objects it knows to be on it, or to come to it.
func (o *Owner) Serves() (shards, placed int) {
	for n, s := range o.shards {
		switch me := o.cfg.Incarnation; {
		case n.OfOne() && (s.assignment.Owner == me || s.assignment.Next == me):
			placed++
		case !n.OfOne() && s.role == owning:
			shards++
		}
	}
	return shards, placed
}

// Holds is how many shards the incarnation has not let go of: those that it serves, and
// those whose release is not known to be written.
func (o *Owner) Holds() int {
	n := 0
	for _, s := range o.shards {
		if s.role == owning || s.role == releasing || s.writing != nil {
			n++
		}
	}
	return n
}

// Busy reports whether a call of an object is in work or waits.
func (o *Owner) Busy() bool {
	for _, s := range o.shards {
		if s.busy() {
			return true
		}
	}
	return false
}

// Quiet reports whether nothing is under way, and nothing due until then, but a renewal, and more
// attempts at one: where the store is slow to take them nobody looks at the clock more often for it.
func (o *Owner) Quiet(until time.Duration) bool {
	due := func(r retry) bool { return r.at <= until }
	renews := o.sent != 0 && o.attempts == 1 || o.reading != 0
	return o.begun && len(o.awake) == 0 && !slices.ContainsFunc(o.retries, due) && !renews
}

// String is for people: what the owner holds.
func (o *Owner) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s lease@%d", o.cfg.Incarnation, o.rev)
	for _, s := range o.sorted() {
		fmt.Fprintf(&b, " %d:%s e%d %s", s.number, s.role, s.epoch, s.hearing)
		for id, x := range s.objects {
			fmt.Fprintf(&b, " %s=%s@%d", id, x.phase, x.rev)
		}
	}
	return b.String()
}
