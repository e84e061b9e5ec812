package state

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Leader is the held super lease: the only way to write what super owns.
type Leader struct {
	store *Store
	held  *holding
	torn  chan struct{} // capacity 1: heads may have to be mended
}

// Epoch of the lease that is held.
func (l *Leader) Epoch() uint64 { return l.held.record.Epoch }

// Lead campaigns for the super lease until ctx ends, then returns nil. While
// the lease is held, lead runs; its ctx ends with the lease. When lead returns,
// the lease is released and, unless ctx has ended, campaigned for again. One
// campaign per Store.
//
// Before lead runs, and again after a commit of unknown outcome, heads are
// mended that a crash left behind; see mend.
func (s *Store) Lead(ctx context.Context, lead func(ctx context.Context, l *Leader) error) error {
	return s.superLease().run(ctx, func(ctx context.Context, h *holding) error {
		l := &Leader{store: s, held: h, torn: make(chan struct{}, 1)}
		l.mendUntilWhole(ctx)
		if ctx.Err() != nil {
			return nil
		}
		mending, stop := context.WithCancel(ctx)
		var mender sync.WaitGroup
		mender.Go(func() {
			for {
				select {
				case <-mending.Done():
					return
				case <-l.torn:
					l.mendUntilWhole(mending)
				}
			}
		})
		err := lead(ctx, l)
		stop()
		mender.Wait()
		return err
	})
}

func (s *Store) superLease() *lease {
	return &lease{
		conn: s.cfg.Conn, js: s.js,
		stream: subjects.ControlStream, subject: subjects.Control(subjects.KeySuperLease),
		me: leaseRecord{Holder: string(s.cfg.Host), Process: s.cfg.Process}, earlier: s.cfg.Earlier,
		times: s.cfg.Times, clock: s.cfg.Clock, log: s.cfg.Log, every: observeEvery,
	}
}

// AllocatorLease configures HoldAllocator.
type AllocatorLease struct {
	Conn   *nats.Conn
	Tenant kbroker.TenantID
	App    kbroker.AppName
	Holder kbroker.Incarnation
	Times  Times
	Clock  Clock        // nil: Boottime
	Log    *slog.Logger // nil: none
}

// HoldAllocator campaigns for the lease of an app's active allocator until ctx
// ends; as Store.Lead. It needs no Store: an allocator is a client.
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
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return fmt.Errorf("open jetstream: %w", err)
	}
	stream, _ := subjects.Ownership(cfg.Tenant, cfg.App)
	l := &lease{
		conn: cfg.Conn, js: js, stream: stream, subject: subjects.AllocatorLease(cfg.Tenant, cfg.App),
		me:    leaseRecord{Holder: string(cfg.Holder), Process: string(cfg.Holder)},
		times: cfg.Times, clock: cfg.Clock, log: cfg.Log, every: observeEvery,
	}
	return l.run(ctx, func(ctx context.Context, h *holding) error { return active(ctx, h.record.Epoch) })
}
