package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// AllocatorLease configures HoldAllocator.
type AllocatorLease struct {
	// Ask sends a request to subjects.Lease of the app, once, and returns the answer to
	// it; an error of the core as it is, Unavailable if none answers before ctx ends.
	Ask func(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error)
	// Write likewise sends a batch to subjects.Own of the holder; nil: it writes none.
	Write  func(ctx context.Context, r kbroker.OwnWriteRequest) (kbroker.OwnWriteReply, error)
	Tenant kbroker.TenantID
	App    kbroker.AppName
	Holder kbroker.Incarnation
	News   *LeaseNews // what the caller hears announced of the lease, by Clock; nil: nothing
	Times  Times
	Clock  Clock        // nil: Boottime
	Log    *slog.Logger // nil: none
}

// HoldAllocator campaigns for the lease of an app's active allocator until ctx
// ends; as Store.Lead. It needs no Store: an allocator has no right to one, and
// holds its lease through the cores (see Store.Lease, Store.OwnWrite).
func HoldAllocator(ctx context.Context, cfg AllocatorLease, active func(ctx context.Context, h *AllocatorHolding) error) error {
	if cfg.Clock == nil {
		cfg.Clock = Boottime
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Times.check(); err != nil {
		return err
	}
	l := &lease{
		store: coreLease(cfg.Ask), subject: subjects.AllocatorLease(cfg.Tenant, cfg.App),
		me:    leaseRecord{Holder: string(cfg.Holder), Process: string(cfg.Holder)},
		times: cfg.Times, clock: cfg.Clock, log: cfg.Log, every: observeEvery, news: cfg.News,
	}
	return l.run(ctx, func(ctx context.Context, h *holding) error {
		return active(ctx, &AllocatorHolding{held: h, write: cfg.Write})
	})
}

// AllocatorHolding is one holding of an app's lease. Safe for concurrent use.
type AllocatorHolding struct {
	held  *holding
	write func(ctx context.Context, r kbroker.OwnWriteRequest) (kbroker.OwnWriteReply, error)
}

// Epoch is that of the holding; it grows with every change of the holder.
func (h *AllocatorHolding) Epoch() uint64 { return h.held.record.Epoch }

// Write writes a batch of the app's ownership behind the lease, which it renews: at most
// kbroker.MaxBatchWrites-1 records. The reply is about these alone. One at a time, and none
// beside a renewal.
//
// Errors: Conflict - a record is not where the batch expects it, nothing was written.
// Overloaded - nothing was written, the same batch may be taken now. Refused - the lease
// is lost, nothing was written and nothing will be: the ctx of active ends. Invalid - it
// is no batch of an allocator, nothing was written. Unavailable - it may have been
// written, or may yet be: read. It is fenced for as long as it is late: it names the
// lease's revision.
func (h *AllocatorHolding) Write(ctx context.Context, writes []kbroker.Write) (kbroker.OwnWriteReply, error) {
	for attempt := 1; ; attempt++ {
		reply, err := h.batch(ctx, writes)
		refused, isRefusal := errors.AsType[*refusal](err)
		switch {
		case err == nil:
			return kbroker.OwnWriteReply{First: reply.At(1)}, nil
		case errors.Is(err, errDeposed):
			return kbroker.OwnWriteReply{}, kbroker.Errorf(kbroker.Refused, "epoch %d of the lease of an allocator is over: %v", h.Epoch(), err)
		case isRefusal && refused.stale && attempt <= commitRetries:
			sleep(ctx, commitPause)
		case isRefusal:
			return kbroker.OwnWriteReply{}, notWritten(refused.cause)
		default:
			return kbroker.OwnWriteReply{}, unavailable(err, "write %d records behind the lease of an allocator", len(writes))
		}
	}
}

// batch is one attempt of Write.
func (h *AllocatorHolding) batch(ctx context.Context, writes []kbroker.Write) (reply kbroker.OwnWriteReply, err error) {
	r := h.held.record
	value, err := json.Marshal(kbroker.AllocatorLease{Holder: kbroker.Incarnation(r.Holder), Epoch: r.Epoch})
	if err != nil {
		return reply, fmt.Errorf("encode the lease: %w", err)
	}
	err = h.held.behind(ctx, func(ctx context.Context, rev uint64) (uint64, error) {
		ctx, cancel := context.WithTimeout(ctx, min(batchAttempt, h.held.lease.times.HolderStops/2))
		defer cancel()
		first := kbroker.Write{Key: subjects.KeyAllocatorLease, Expected: kbroker.Revision(rev), Value: value}
		var err error
		if reply, err = h.write(ctx, kbroker.OwnWriteRequest{Writes: append([]kbroker.Write{first}, writes...)}); err == nil && uint64(reply.First) <= rev {
			err = kbroker.Errorf(kbroker.Internal, "a core answers revision %d to a batch behind %d", reply.First, rev)
		}
		return uint64(reply.First), err
	})
	return reply, err
}

// notWritten is the answer of a core that has written nothing, as its caller needs it: that
// it does not let this allocator write so does not say that the lease is lost.
func notWritten(cause error) error {
	e := *kbroker.AsError(cause)
	if e.Executed = kbroker.ExecutedNo; e.Code == kbroker.Refused {
		e.Code = kbroker.Invalid
	}
	return &e
}

// coreLease is an app's lease as a core reads and writes it.
type coreLease func(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error)

func (ask coreLease) read(ctx context.Context) (leaseRecord, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	reply, err := ask(ctx, kbroker.LeaseRequest{})
	if err != nil || reply.Lease == nil {
		return leaseRecord{}, reply.Sequence, err
	}
	return recordOf(*reply.Lease), reply.Sequence, nil
}

func (ask coreLease) write(ctx context.Context, r leaseRecord, rev uint64) (uint64, error) {
	reply, err := ask(ctx, kbroker.LeaseRequest{
		Write:    &kbroker.AllocatorLease{Holder: kbroker.Incarnation(r.Holder), Epoch: r.Epoch, Released: r.Released},
		Expected: rev,
	})
	if err != nil {
		return 0, err
	}
	if reply.Sequence <= rev { // no answer to an accepted write
		return 0, kbroker.Errorf(kbroker.Internal, "a core answers sequence %d to a write behind %d", reply.Sequence, rev)
	}
	return reply.Sequence, nil
}

// recordOf is an allocator's lease as it is stored: a start is a process.
func recordOf(l kbroker.AllocatorLease) leaseRecord {
	return leaseRecord{Holder: string(l.Holder), Process: string(l.Holder), Epoch: l.Epoch, Released: l.Released}
}

// Lease reads or writes the lease of an app for one of its allocators; see
// kbroker.LeaseRequest. Further errors: Invalid, the value is no lease of the app.
//
// A core decides nothing and remembers nothing between two requests: it reads through
// the stream's leader, and writes what it was sent by one compare-and-set, which is
// repeated only if nobody had it. So what holds for one at the stream holds for one behind a
// core, whichever core takes which of its requests:
//
//   - The term is counted from before the request was sent, which is before the core
//     got it: a pause anywhere on the way makes it shorter.
//   - A core that was paused between the request and the write writes late, maybe after
//     the allocator gave the attempt up. A sequence comes once, so the write is refused
//     if anything was written since the allocator read. If nothing was, it is what a
//     late write is without a core: a renewal has observers wait longer, and extends the
//     term from when the first write was sent that may be it, if it is read to be there; a taking has a holder that
//     does not act by it, finds its own name, and takes the lease again under a higher
//     epoch; a release is that of a holding that is over. No holder is displaced by it:
//     who took or renewed the lease since has written.
//   - A core that dies after the write, or cannot reach the stream's leader, or waits
//     for a majority, has no answer or Unavailable: the allocator reads, through any
//     core, whose lease it is.
//   - A read that is late is older than its answer, and not older than its question:
//     an observer counts from the first answer to the last question.
//   - Two cores write for two allocators: the stream takes one.
//
// It stores its own encoding of the few fields of a lease, and only under the subject
// of the app's lease: there is nothing else that a request could have written.
func (s *Store) Lease(ctx context.Context, k AppKey, r kbroker.LeaseRequest) (kbroker.LeaseReply, error) {
	stream, _ := subjects.Ownership(k.Tenant, k.App)
	stored := streamLease{conn: s.cfg.Conn, js: s.js, stream: stream, subject: subjects.AllocatorLease(k.Tenant, k.App)}
	if r.Write == nil {
		record, rev, err := stored.read(ctx)
		if err != nil {
			return kbroker.LeaseReply{}, unavailable(err, "read the lease of app %s", k.App)
		}
		reply := kbroker.LeaseReply{Sequence: rev}
		if rev != 0 {
			reply.Lease = &kbroker.AllocatorLease{Holder: kbroker.Incarnation(record.Holder), Epoch: record.Epoch, Released: record.Released}
		}
		return reply, nil
	}
	if !IsAllocatorOf(k.App, r.Write.Holder) {
		return kbroker.LeaseReply{}, kbroker.Errorf(kbroker.Invalid, "%.80q is no start of an allocator of app %s", r.Write.Holder, k.App)
	}
	seq, err := stored.write(ctx, recordOf(*r.Write), r.Expected)
	switch {
	case err == nil:
		return kbroker.LeaseReply{Sequence: seq}, nil
	case refused(err):
		return kbroker.LeaseReply{}, kbroker.Errorf(kbroker.Conflict, "the lease of app %s is not at sequence %d: %v", k.App, r.Expected, err)
	}
	return kbroker.LeaseReply{}, unavailable(err, "write the lease of app %s", k.App)
}

// maxHolder bounds the name of a holder: three names and a start.
const maxHolder = 256

// IsAllocatorOf reports whether i, a start of an instance, is <app>-allocator-<number>.<start>. Names have
// dashes, numbers and starts none, so it is of one app alone.
func IsAllocatorOf(app kbroker.AppName, i kbroker.Incarnation) bool {
	own, ok := strings.CutPrefix(string(i), string(app)+"-"+string(kbroker.AllocatorService)+"-")
	number, start, dot := strings.Cut(own, ".")
	return ok && dot && len(i) <= maxHolder && isPlain(number) && isPlain(start)
}

func isPlain(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}
