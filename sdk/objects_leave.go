package sdk

import (
	"context"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
)

// handOver has the cluster move everything to others, and serves on until it has, at most
// until ctx ends, the lease is lost or handOverWithin is over. Of an app whose agent is there
// ctx ends soon: its agent has seen that it must leave, too. That of a lost host has only
// itself to ask: if it left while no allocator is there, nobody would own what it does.
func (k *keeper) handOver(ctx context.Context) {
	if k == nil {
		return
	}
	k.post(func(now time.Duration) {
		k.owner.Leave(now)
		k.handing = true
	})
	ctx, cancel := context.WithTimeout(ctx, handOverWithin)
	defer cancel()
	select {
	case <-k.gone:
	case <-k.lost:
	case <-ctx.Done():
	}
}

// leave has the cluster move everything to others, and returns when it has, when nobody
// takes it, or when ctx ends; then nothing more is heard.
func (k *keeper) leave(ctx context.Context) {
	k.post(func(now time.Duration) {
		k.owner.Leave(now)
		k.leaving, k.holds, k.moved = true, k.owner.Holds(), now
	})
	select {
	case <-k.gone:
	case <-k.lost:
	case <-ctx.Done():
		k.log.Warn("what this instance owns was not taken over within the grace", "instance", k.own.Instance)
	}
	quiet, cancel := context.WithTimeout(context.Background(), silenceWithin)
	defer cancel()
	var left sync.WaitGroup
	asked := make(chan struct{})
	k.post(func(time.Duration) {
		for _, e := range k.ears {
			left.Go(func() { k.silence(quiet, e) })
		}
		close(asked)
	})
	<-asked
	left.Wait()
	k.deaf.Store(true)
}

// rest waits until no call is in work.
func (k *keeper) rest(ctx context.Context) error {
	if k == nil {
		return nil
	}
	poll := time.NewTicker(connectPoll)
	defer poll.Stop()
	for {
		idle := make(chan bool, 1)
		k.post(func(time.Duration) {
			idle <- k.roots.idle() && k.nested.idle() && k.gates.running.Load() == 0 && (closed(k.lost) || !k.owner.Busy())
		})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case is := <-idle:
			if is {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
		}
	}
}

// giveUp ends the contexts of all turns.
func (k *keeper) giveUp() {
	if k != nil {
		k.stop()
	}
}

// over ends everything: the machine has lost its lease.
func (k *keeper) over(reason string) {
	k.why = reason
	k.deaf.Store(true)
	k.stop()
	clear(k.active)
	k.gates.clear()
	for _, e := range k.ears {
		k.work.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), silenceWithin)
			defer cancel()
			k.silence(ctx, e)
		})
	}
	shut(k.lost)
}

// failure is why the app has to end, or nil.
func (k *keeper) failure() error {
	if k == nil || !closed(k.lost) {
		return nil
	}
	return kbroker.Errorf(kbroker.Unavailable, "%s may own objects no more: %s", k.own.Incarnation, k.why).
		WithHint("a new start of %s goes on, with a lease of its own", k.own.Instance)
}

// ends is closed when the lease is lost; without objects never.
func (k *keeper) ends() <-chan struct{} {
	if k == nil {
		return nil
	}
	return k.lost
}
