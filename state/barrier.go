package state

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of the barrier.
const (
	nonceEvery   = 100 * time.Millisecond // at most one nonce in this time
	nonceAttempt = time.Second
)

// barrier writes nonces. A nonce's sequence is above that of everything that
// was stored before it was sent; one nonce serves all who asked before that.
type barrier struct {
	js   jetstream.JetStream
	host kbroker.HostID
	log  *slog.Logger
	// every is nonceEvery, but for tests that take hundreds of views.
	every time.Duration

	asked chan struct{} // capacity 1

	mu      sync.Mutex
	waiting map[chan uint64]struct{}
}

func newBarrier(js jetstream.JetStream, host kbroker.HostID, log *slog.Logger) *barrier {
	return &barrier{js: js, host: host, log: log, every: nonceEvery, asked: make(chan struct{}, 1), waiting: map[chan uint64]struct{}{}}
}

// wait returns the sequence of a nonce that was sent after wait was called. It
// needs run; it ends with ctx.
func (b *barrier) wait(ctx context.Context) (uint64, error) {
	ch := make(chan uint64, 1)
	b.mu.Lock()
	b.waiting[ch] = struct{}{}
	b.mu.Unlock()
	select {
	case b.asked <- struct{}{}:
	default:
	}
	select {
	case seq := <-ch:
		return seq, nil
	case <-ctx.Done():
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.waiting, ch)
		return 0, ctx.Err()
	}
}

// run writes nonces for those who wait until ctx ends, then returns nil.
func (b *barrier) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.asked:
		}
		for ctx.Err() == nil && b.serve(ctx) {
			sleep(ctx, b.every)
		}
	}
}

// serve writes one nonce and returns whether there was somebody to wait for it.
// Who waits is taken before the nonce is sent; a nonce without an answer
// serves nobody.
func (b *barrier) serve(ctx context.Context) bool {
	b.mu.Lock()
	served := make([]chan uint64, 0, len(b.waiting))
	for ch := range b.waiting {
		served = append(served, ch)
	}
	b.mu.Unlock()
	if len(served) == 0 {
		return false
	}
	seq, err := b.nonce(ctx)
	if err != nil {
		b.log.Debug("nonce not acknowledged; trying again", "err", err)
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ch := range served {
		if _, ok := b.waiting[ch]; ok {
			delete(b.waiting, ch)
			ch <- seq
		}
	}
	return true
}

func (b *barrier) nonce(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, nonceAttempt)
	defer cancel()
	ack, err := b.js.PublishMsg(ctx, newMsg(subjects.Control(subjects.KeyNonce(b.host)), []byte(nuid.Next())))
	if err != nil {
		return 0, fmt.Errorf("write a nonce: %w", err)
	}
	return ack.Sequence, nil
}
