package state

import (
	"context"
	"log/slog"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// AllocatorLease configures HoldAllocator.
type AllocatorLease struct {
	// Ask sends a request to subjects.Lease of the app, once, and returns the answer to
	// it; an error of the core as it is, Unavailable if none answers before ctx ends.
	Ask    func(ctx context.Context, r kbroker.LeaseRequest) (kbroker.LeaseReply, error)
	Tenant kbroker.TenantID
	App    kbroker.AppName
	Holder kbroker.Incarnation
	Times  Times
	Clock  Clock        // nil: Boottime
	Log    *slog.Logger // nil: none
}

// HoldAllocator campaigns for the lease of an app's active allocator until ctx
// ends; as Store.Lead. It needs no Store: an allocator has no right to one, and
// holds its lease through the cores (see Store.Lease).
func HoldAllocator(ctx context.Context, cfg AllocatorLease, active func(ctx context.Context, epoch uint64) error) error {
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
		times: cfg.Times, clock: cfg.Clock, log: cfg.Log, every: observeEvery,
	}
	return l.run(ctx, func(ctx context.Context, h *holding) error { return active(ctx, h.record.Epoch) })
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
//     late write is without a core: a renewal extends nobody's term, as nobody heard
//     that it was accepted, and has observers wait longer; a taking has a holder that
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
