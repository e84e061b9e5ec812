package state

import (
	"context"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"

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
// campaign per Store. An error: the connection is closed.
//
// Before lead runs, and again after a commit of unknown outcome, heads are
// mended that a crash left behind; see mend.
func (s *Store) Lead(ctx context.Context, lead func(ctx context.Context, l *Leader) error) error {
	l := s.superLease()
	sub, err := s.hear(l)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // it fails when the connection is closed
	return l.run(ctx, func(ctx context.Context, h *holding) error {
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

// hear has a campaign for the lease know what is announced of it.
func (s *Store) hear(l *lease) (*nats.Subscription, error) {
	l.news = &LeaseNews{}
	sub, err := s.cfg.Conn.Subscribe(subjects.Changed(subjects.KeySuperLease), func(m *nats.Msg) {
		if rev, ok := headerUint(m.Header, subjects.HeaderSequence); ok {
			l.news.Heard(kbroker.Revision(rev), l.clock())
		}
	})
	if err != nil {
		return nil, fmt.Errorf("hear of the lease: %w", err)
	}
	return sub, nil
}

func (s *Store) superLease() *lease {
	stored := streamLease{conn: s.cfg.Conn, js: s.js, stream: subjects.ControlStream, subject: subjects.Control(subjects.KeySuperLease)}
	return &lease{
		store: stored, subject: stored.subject,
		me: leaseRecord{Holder: string(s.cfg.Host), Process: s.cfg.Process}, earlier: s.cfg.Earlier,
		times: s.cfg.Times, clock: s.cfg.Clock, log: s.cfg.Log, every: observeEvery,
	}
}
