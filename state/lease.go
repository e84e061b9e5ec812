package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
)

// Lease is the record of the super lease.
type Lease struct {
	Holder   kbroker.HostID `json:"holder"`
	Process  string         `json:"process"`
	Epoch    uint64         `json:"epoch"` // grows with every change of the holder
	Released bool           `json:"released,omitempty"`
}

// leaseRecord is a lease as it is stored: the holder is a host for the super's
// lease and an incarnation for an allocator's.
type leaseRecord struct {
	Holder   string `json:"holder"`
	Process  string `json:"process"`
	Epoch    uint64 `json:"epoch"`
	Released bool   `json:"released,omitempty"`
}

func (r leaseRecord) lease() Lease {
	return Lease{Holder: kbroker.HostID(r.Holder), Process: r.Process, Epoch: r.Epoch, Released: r.Released}
}

// sameHolding reports whether both records are of one holding of the lease. A
// renewal changes nothing but the revision.
func (r leaseRecord) sameHolding(other leaseRecord) bool {
	return r.Holder == other.Holder && r.Process == other.Process && r.Epoch == other.Epoch
}

// Bounds of a campaign.
const (
	observeEvery = 500 * time.Millisecond
	leaseTick    = 50 * time.Millisecond // how often a holder looks at its clock
	releaseTime  = time.Second           // for giving the lease back
)

var (
	// errDeposed: somebody else holds the lease, or our term is over.
	errDeposed = errors.New("the lease is lost")
	// errUnknown: a write may or may not have been applied.
	errUnknown = errors.New("the outcome of the write is not known")
	// errRefused: the write was refused although the lease is ours.
	errRefused = errors.New("the write was refused")
)

// lease campaigns for and holds one lease: a record of a stream, judged by
// revisions and the observer's own clock.
//
//	watching --- released, or unchanged for ObserverActs ---> CAS epoch+1
//	   ^                                                          |
//	   |  refused                                                 | taken
//	   +----------------------------------------------------------+
//	   |                                                          v
//	   +--- term over, deposed, or lead returned (released) --- holding
type lease struct {
	store   leaseStore
	subject string      // of the stream
	me      leaseRecord // holder and process
	earlier string      // see Config
	times   Times
	clock   Clock
	log     *slog.Logger
	every   time.Duration // between two looks at the lease
	news    *LeaseNews    // nil: nothing is announced of it
}

// run campaigns and holds until ctx ends. While the lease is held, lead runs.
func (l *lease) run(ctx context.Context, lead func(ctx context.Context, h *holding) error) error {
	for ctx.Err() == nil {
		h := l.campaign(ctx)
		if h == nil {
			return nil
		}
		l.log.Info("lease taken", "object", l.subject, "epoch", h.record.Epoch)
		if err := h.run(ctx, lead); err != nil && ctx.Err() == nil {
			l.log.Warn("the holder of the lease gave up", "object", l.subject, "epoch", h.record.Epoch, "err", err)
		}
		l.log.Info("lease no longer held", "object", l.subject, "epoch", h.record.Epoch)
		sleep(ctx, l.every)
	}
	return nil
}

// leaseStore is where a lease is kept: for a core its stream, for an allocator a core.
type leaseStore interface {
	// read returns the lease and its revision as the stream's leader has them; a
	// revision of 0 means that there is none.
	read(ctx context.Context) (leaseRecord, uint64, error)
	// write rewrites the lease by compare-and-set, at most once, and returns its new
	// revision. After an error other than a refusal (see refused) it may have been
	// written, or may yet be.
	write(ctx context.Context, r leaseRecord, rev uint64) (uint64, error)
}

// streamLease is a lease as a record of a stream.
type streamLease struct {
	conn    *nats.Conn
	js      jetstream.JetStream
	stream  string
	subject string
}

func (l streamLease) read(ctx context.Context) (leaseRecord, uint64, error) {
	m, err := readLast(ctx, l.conn, l.stream, l.subject)
	if err != nil || m == nil {
		return leaseRecord{}, 0, err
	}
	var r leaseRecord
	if deleted(m.header) {
		return r, m.seq, nil
	}
	if err := json.Unmarshal(m.data, &r); err != nil {
		return r, m.seq, fmt.Errorf("lease %s at revision %d is not readable: %w", l.subject, m.seq, err)
	}
	return r, m.seq, nil
}

func (l streamLease) write(ctx context.Context, r leaseRecord, rev uint64) (uint64, error) {
	m := newRecord(l.subject, r)
	expect(m, rev)
	ack, err := l.js.PublishMsg(ctx, m)
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// refused reports whether an error of a write says that it was not taken, and never
// will be.
func refused(err error) bool {
	return code(err) == codeWrongSequence || errors.Is(err, kbroker.Conflict) || errors.Is(err, kbroker.Refused) || errors.Is(err, kbroker.Invalid) || busy(err)
}

// busy reports whether it was not taken for a reason of the moment.
func busy(err error) bool { return code(err) == codeInFlight || errors.Is(err, kbroker.Overloaded) }

// campaign watches the lease until it can be taken, and takes it. It returns
// nil when ctx ends.
func (l *lease) campaign(ctx context.Context) *holding {
	w := watch{times: l.times, me: l.me, earlier: l.earlier, news: l.news}
	within, tried := l.times.RenewAttempt, uint64(0)
	for {
		asked := l.clock()
		record, rev, err := l.store.read(ctx)
		if err != nil {
			l.log.Debug("lease not read", "object", l.subject, "err", err)
			w.failed()
		} else {
			if record.Holder == l.me.Holder && record.Process == l.me.Process && record.Epoch == tried {
				// The attempt was stored, and its answer late: it was not lost.
				within = min(2*within, l.times.HolderStops/2)
			}
			if w.saw(record, rev, asked, l.clock()) {
				if h := l.acquire(ctx, record, rev, within); h != nil {
					return h
				}
				tried = record.Epoch + 1
			}
		}
		now := l.clock()
		if sleep(ctx, min(asked+l.every-now, w.due(now))); ctx.Err() != nil {
			return nil
		}
	}
}

// watch judges a lease by what was read of it. Pure: no clock, no I/O.
type watch struct {
	times   Times
	me      leaseRecord
	earlier string
	news    *LeaseNews

	seen   bool
	rev    uint64
	since  time.Duration // when rev was first known
	outage bool          // the last read failed
	grace  time.Duration // nobody is judged before
}

// LeaseNews is what was announced last of a lease, by the clock of its observer. A holder
// whose host dies takes the leader of the stream with it, often: what it renewed a moment
// before is read only when there is another one, seconds later, and would count from then.
// The zero value has heard nothing. Safe for concurrent use.
type LeaseNews struct {
	mu  sync.Mutex
	rev uint64
	at  time.Duration
}

// Heard notes that the lease was announced at a revision, and when that was heard.
func (n *LeaseNews) Heard(rev kbroker.Revision, at time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if uint64(rev) != n.rev { // of several announcements the first counts
		n.rev, n.at = uint64(rev), at
	}
}

// first is when a revision was known first, which was read at a time. What was heard of a
// later one is forgotten: the stream may be another one, with the same revisions again.
func (n *LeaseNews) first(rev uint64, read time.Duration) time.Duration {
	if n == nil {
		return read
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case rev < n.rev:
		n.rev, n.at = 0, 0
	case rev == n.rev && rev != 0:
		return min(n.at, read)
	}
	return read
}

// failed notes that the lease could not be read.
func (w *watch) failed() { w.outage = true }

// saw notes a read that was asked for and answered at these times, and returns
// whether the lease may be taken over now. An absent lease (revision 0) is
// unknown since the first look.
func (w *watch) saw(r leaseRecord, rev uint64, asked, answered time.Duration) bool {
	if w.outage {
		w.outage, w.grace = false, answered+w.times.OutageGrace
	}
	if !w.seen || rev != w.rev {
		w.seen, w.rev, w.since = true, rev, w.news.first(rev, answered)
	}
	switch {
	case rev == 0:
	case r.Released:
		return true
	case r.Holder == w.me.Holder && (r.Process == w.me.Process || w.earlier != "" && r.Process == w.earlier):
		return true // nobody but this campaign can be leading by it
	}
	return asked-w.since >= w.times.ObserverActs && asked >= w.grace
}

// due is in how long the lease will have been unchanged for long enough: a look that is
// later has everybody wait for it. It is a long time where that does not depend on time.
func (w *watch) due(now time.Duration) time.Duration {
	if at := max(w.since+w.times.ObserverActs, w.grace); w.seen && at > now {
		return at - now
	}
	return w.times.ObserverActs
}

// acquire takes the lease over from the record at rev. It returns nil when that
// was not acknowledged within a time. If it was applied all the same, the next look shows a
// record of this campaign, which is taken over at once under a higher epoch:
// the term must be counted from a write that is known to be the one applied.
func (l *lease) acquire(ctx context.Context, old leaseRecord, rev uint64, within time.Duration) *holding {
	mine := l.me
	mine.Epoch = old.Epoch + 1
	sent := l.clock()
	seq, err := l.write(ctx, mine, rev, within)
	if err != nil {
		l.log.Debug("lease not taken", "object", l.subject, "epoch", mine.Epoch, "err", err)
		return nil
	}
	return &holding{lease: l, record: mine, rev: seq, sent: sent}
}

// write is one attempt to rewrite the lease by compare-and-set.
func (l *lease) write(ctx context.Context, r leaseRecord, rev uint64, timeout time.Duration) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return l.store.write(ctx, r, rev)
}

// holding is one holding of a lease, under one epoch.
type holding struct {
	lease  *lease
	record leaseRecord

	writing sync.Mutex // one write behind the lease at a time, its answer included
	rev     uint64     // of the lease, as last known; guarded by writing
	// unanswered is when the first write on rev was sent whose outcome is not known; 0: there is
	// none. If the lease has a later revision it is one of these that made it. Guarded by writing.
	unanswered time.Duration

	mu   sync.Mutex
	sent time.Duration // when the last write of the lease was sent that was acknowledged, or read
	lost bool
}

// run calls lead and renews until lead has returned, then releases the lease.
// lead's ctx ends with the term.
func (h *holding) run(ctx context.Context, lead func(ctx context.Context, h *holding) error) error {
	term, end := context.WithCancel(ctx)
	var others sync.WaitGroup
	others.Go(func() { h.watchTerm(term, end) })
	others.Go(func() { h.renew(term) })
	err := lead(term, h)
	end()
	others.Wait()
	h.release(context.WithoutCancel(ctx))
	return err
}

// watchTerm ends the term when the lease is lost.
func (h *holding) watchTerm(ctx context.Context, end context.CancelFunc) {
	tick := time.NewTicker(leaseTick)
	defer tick.Stop()
	for !h.over() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	end()
}

// over reports whether the term is over. Once true it stays true.
func (h *holding) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lease.clock()-h.sent >= h.lease.times.HolderStops {
		h.lost = true
	}
	return h.lost
}

// depose ends the holding for ever.
func (h *holding) depose() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost = true
}

// extend counts the term from sent.
func (h *holding) extend(sent time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent = max(h.sent, sent)
}

func (h *holding) sinceSent() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lease.clock() - h.sent
}

// renew rewrites the lease whenever the last write of it is LeaseRenew old; an
// attempt without an answer is repeated at once.
func (h *holding) renew(ctx context.Context) {
	l := h.lease
	tick := time.NewTicker(leaseTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for h.sinceSent() >= l.times.LeaseRenew && !h.over() && ctx.Err() == nil {
			err := h.behind(ctx, func(ctx context.Context, rev uint64) (uint64, error) {
				return l.write(ctx, h.record, rev, l.times.RenewAttempt)
			})
			if err == nil || errors.Is(err, errDeposed) {
				break
			}
			l.log.Debug("lease not renewed; trying again", "object", l.subject, "epoch", h.record.Epoch, "err", err)
			sleep(ctx, pauseMin)
		}
	}
}

// behind makes one write that rewrites the lease by compare-and-set on rev and
// returns the lease's new revision. Writes are serialized here.
//
// errDeposed: the lease is lost, nothing will be written any more. errRefused (a
// *refusal): nothing was written, the lease is still ours. errUnknown: no answer.
func (h *holding) behind(ctx context.Context, write func(ctx context.Context, rev uint64) (uint64, error)) error {
	h.writing.Lock()
	defer h.writing.Unlock()
	if h.over() {
		return errDeposed
	}
	expected := h.rev
	sent := h.lease.clock()
	seq, err := write(ctx, expected)
	if err == nil {
		h.rev, h.unanswered = seq, 0
		h.extend(sent)
		return nil
	}
	if h.unanswered == 0 && !refused(err) {
		h.unanswered = max(sent, 1)
	}
	mine, readErr := h.resync(context.WithoutCancel(ctx))
	switch {
	case readErr == nil && !mine:
		h.depose()
		return fmt.Errorf("%w: %w", errDeposed, err)
	case refused(err):
		if readErr != nil {
			return fmt.Errorf("%w: %w", errUnknown, err)
		}
		return &refusal{stale: h.rev != expected || busy(err), cause: err}
	}
	return fmt.Errorf("%w: %w", errUnknown, err)
}

// refusal is a write that the store refused while the lease is ours.
type refusal struct {
	stale bool // the same write may be taken now: the lease had another revision, or a write was under way
	cause error
}

func (r *refusal) Error() string   { return errRefused.Error() + ": " + r.cause.Error() }
func (r *refusal) Unwrap() []error { return []error{errRefused, r.cause} }

// errOlder is that a read has shown a record of the lease that was left behind.
var errOlder = errors.New("the lease was read as it was before")

// resync learns from the stream's leader whether the lease is still ours, and
// if so its revision. A renewal of ours whose answer was lost, or late, may have been
// applied, and may be applied even later than this read. One that was counts from when the
// first of those was sent that may be it: so a store that answers late, each time, costs
// nobody its lease.
func (h *holding) resync(ctx context.Context) (mine bool, err error) {
	record, rev, err := h.lease.store.read(ctx)
	if err != nil {
		return false, err
	}
	if rev == 0 || record.Released || !record.sameHolding(h.record) {
		return false, nil
	}
	switch {
	case rev < h.rev: // by a leader that was deposed and does not know it yet: it says nothing
		return false, errOlder
	case rev > h.rev:
		if h.unanswered != 0 {
			h.extend(h.unanswered)
		}
		h.rev, h.unanswered = rev, 0
	}
	return true, nil
}

// release gives the lease back, so that the next holder need not wait. What
// cannot be given back runs out.
func (h *holding) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	h.writing.Lock()
	defer h.writing.Unlock()
	released := h.record
	released.Released = true
	for ctx.Err() == nil {
		if _, err := h.lease.write(ctx, released, h.rev, h.lease.times.RenewAttempt); err == nil {
			return
		}
		if mine, err := h.resync(ctx); err == nil && !mine {
			return // released by an attempt without an answer, or somebody else's
		}
		sleep(ctx, pauseMin)
	}
}
