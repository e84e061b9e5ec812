package sdk

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// assignedEvery is how often an instance reads who owns what, give or take that part of it:
	// changes are published, but a message can be lost.
	assignedEvery  = 30 * time.Second
	assignedJitter = 6
	// assignedAgain is how soon it does again when nobody has answered.
	assignedAgain = time.Second
)

// watch hears the changes of who owns what.
func (k *keeper) watch() error {
	for _, match := range []string{subjects.MatchAssigns, subjects.MatchReleases} {
		if _, err := k.t.subscribe(subjects.Owned(k.own.Tenant, k.own.App, match+".>"), "", k.announced); err != nil {
			return fmt.Errorf("subscribe who owns what: %w", err)
		}
	}
	if len(k.own.Placed) == 0 {
		return nil
	}
	if _, err := k.t.subscribe(subjects.PlacedOn(k.own.Tenant, k.own.App, k.own.Incarnation), "", k.placed); err != nil {
		return fmt.Errorf("subscribe which placed objects are on this instance: %w", err)
	}
	return nil
}

// placed is what the allocator says of placed objects: records, as they are stored.
func (k *keeper) placed(m *nats.Msg) {
	var told kbroker.OwnReadReply
	if err := told.UnmarshalBinary(m.Data); err != nil || k.deaf.Load() {
		return
	}
	k.post(func(now time.Duration) {
		for _, r := range told.Records {
			if subjects.ParseOwnKey(r.Key).Shard.OfOne() {
				k.seen(now, r)
			}
		}
	})
}

// announced is a record that was changed.
func (k *keeper) announced(m *nats.Msg) {
	rev, err := strconv.ParseUint(m.Header.Get(subjects.HeaderSequence), 10, 64)
	_, _, key, ok := subjects.OwnershipKey(m.Subject)
	if err != nil || !ok || k.deaf.Load() {
		return
	}
	n, names := subjects.ParseOwnKey(key).Shard, bytes.Contains(m.Data, k.self)
	if !k.concerns.begin(n, names) {
		return
	}
	k.post(func(now time.Duration) {
		k.seen(now, kbroker.Stored{Key: key, Revision: kbroker.Revision(rev), Value: m.Data})
		k.concerns.end(n)
	})
}

// concerns are for how many reasons it counts what is heard of each shard: as it is followed, and
// for each announcement of it that is about to be taken; reads are those under way, of any. All
// instances of an app hear of all its shards; with most they have nothing to do. Safe for
// concurrent use.
type concerns struct {
	of    [kbroker.Shards]atomic.Int32
	reads atomic.Int32
}

// begin reports whether an announcement of a shard counts, which names this instance or does not:
// then end follows when it was taken. Those that come meanwhile count, too, and those behind a
// read, which may show that the shard is to be this instance's.
func (c *concerns) begin(n kbroker.Shard, names bool) bool {
	if n.OfOne() {
		return true
	}
	if !names && c.of[n].Load() == 0 && c.reads.Load() == 0 {
		return false
	}
	c.of[n].Add(1)
	return true
}

func (c *concerns) end(n kbroker.Shard) { c.follow(n, false) }

// follow is ownership.OwnerConfig.Follow.
func (c *concerns) follow(n kbroker.Shard, does bool) {
	switch {
	case n.OfOne():
	case does:
		c.of[n].Add(1)
	default:
		c.of[n].Add(-1)
	}
}

// follow reads all assignments, once the lease is there, until ctx ends: about so often, if one
// was written since.
func (k *keeper) follow(ctx context.Context, every time.Duration) {
	select {
	case <-ctx.Done():
		return
	case <-k.held:
	}
	next := time.NewTimer(0)
	defer next.Stop()
	back := k.app.client.back.wait()
	answered := make(chan bool, 1)
	var since kbroker.Revision // what was written until then is known
	for {
		select {
		case <-ctx.Done():
			return
		case <-back:
			back, since = k.app.client.back.wait(), 0 // of another store, perhaps, or of one that was put back
			next.Reset(rand.N(afterReconnect))
			continue
		case <-next.C:
		}
		k.concerns.reads.Add(1)
		k.readOn(kbroker.OwnReadRequest{Match: subjects.MatchAssigns, Since: since}, 0, found{}, func(now time.Duration, all found, ok bool) {
			k.see(now, all.records, ok)
			k.concerns.reads.Add(-1)
			if ok {
				since = all.at
			}
			answered <- ok
		})
		select {
		case <-ctx.Done():
			return
		case ok := <-answered:
			wait := every - every/assignedJitter + rand.N(2*every/assignedJitter)
			if !ok {
				wait = assignedAgain
			}
			next.Reset(wait)
		}
	}
}
