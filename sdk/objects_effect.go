package sdk

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// effect does what the machine wants done. Nothing in here waits.
func (k *keeper) effect(now time.Duration, e ownership.Effect) {
	switch e := e.(type) {
	case ownership.Renew:
		// The machine itself sends it again; an answer counts however late it comes.
		k.write([]kbroker.Write{e.Write}, leaseWithin, func(now time.Duration, w ownership.Written, rev kbroker.Revision) {
			k.owner.LeaseWritten(now, e.Sent, w, rev)
		})
	case ownership.ReadLease:
		key := subjects.KeyLease(k.own.Incarnation)
		k.read(kbroker.OwnReadRequest{Keys: []string{key}}, func(now time.Duration, found []kbroker.Stored, ok bool) {
			if ok {
				k.leaseRead(now, found[0])
			}
		})
	case ownership.ReadShard:
		k.asking.shards[e.Shard] = true
	case ownership.Listen:
		// Turns that went on when it was left have set some since: who owned it meanwhile may
		// have moved or ended those. All are found when it is heard.
		k.reminders.release(e.Shard)
		ear := &ear{shard: e.Shard, number: e.Number, made: make(chan struct{})}
		k.ears[e.Number] = ear
		k.work.Go(func() { k.listen(ear) })
	case ownership.Deafen:
		ear := k.ears[e.Number]
		delete(k.ears, e.Number)
		k.quarantine.release(e.Shard)
		k.timers.release(e.Shard)
		k.reminders.release(e.Shard)
		k.work.Go(func() { k.silence(k.base, ear) })
	case ownership.WriteRelease:
		k.releases.add(e)
	case ownership.Load:
		k.load(e)
	case ownership.Commit:
		k.write(e.Writes, writeWithin, func(now time.Duration, w ownership.Written, first kbroker.Revision) {
			k.owner.Committed(now, e.Stream, e.Number, w, first)
		})
	case ownership.Inspect:
		k.inspect(e)
	case ownership.ScanOut:
		k.scanOut(e)
		k.scanDue(e.Shard)
	case ownership.LoadOut:
		k.loadOut(e)
	case ownership.Relay:
		k.relay(e)
	case ownership.Remove:
		k.write(e.Writes, writeWithin, func(now time.Duration, w ownership.Written, _ kbroker.Revision) {
			k.owner.Removed(now, e.Stream, e.Number, w)
		})
	case ownership.Activate:
		k.activate(now, e)
	case ownership.Put:
		if a := k.active[e.Object]; a != nil && a.number == e.Activation {
			k.idle.forget(a)
			k.gates.forget(e.Object)
			delete(k.active, e.Object)
		}
	case ownership.Lend:
		if a := k.active[e.Object]; a != nil && a.number == e.Activation {
			k.gates.owned[e.Object] = e
			k.gates.lend(a)
		}
	case ownership.Run:
		k.begin(e)
	case ownership.Answer:
		for _, c := range e.Calls {
			k.answer(now, c, e)
		}
	case ownership.Over:
		k.over(e.Reason)
	}
}

// leaseRead tells the machine of its lease. One that was taken away is as one that was
// revoked: only who has revoked it takes it away.
func (k *keeper) leaseRead(now time.Duration, s kbroker.Stored) {
	l := ownership.Lease{Revoked: s.Revision != 0 && !s.Exists()}
	if s.Exists() && !k.decoded(s, &l) {
		return
	}
	k.owner.LeaseRead(now, l, s.Revision)
}

func (k *keeper) load(e ownership.Load) {
	k.read(kbroker.OwnReadRequest{Keys: []string{subjects.KeyState(e.Object)}}, func(now time.Duration, found []kbroker.Stored, ok bool) {
		var r ownership.Record
		if ok && found[0].Exists() {
			var err error
			if r, err = ownership.Decode(found[0].Value); err != nil {
				k.log.Error("object not loaded", "object", e.Object, "rev", found[0].Revision, "err", err)
				ok = false
			}
		}
		var rev kbroker.Revision
		if ok {
			rev = found[0].Revision
		}
		k.owner.Loaded(now, e.Object, e.Number, r, rev, ok)
	})
}

func (k *keeper) inspect(e ownership.Inspect) {
	k.read(kbroker.OwnReadRequest{Keys: e.Keys}, func(now time.Duration, found []kbroker.Stored, ok bool) {
		var all []ownership.Found
		for _, s := range found {
			f := ownership.Found{Revision: s.Revision}
			if s.Exists() && subjects.ParseOwnKey(s.Key).Table == subjects.OwnState {
				r, err := ownership.Decode(s.Value)
				if err != nil {
					k.log.Error("object not readable", "object", s.Key, "rev", s.Revision, "err", err)
					ok = false
				}
				f.Record = r
			}
			all = append(all, f)
		}
		k.owner.Inspected(now, e.Stream, e.Number, all, ok)
	})
}

func (k *keeper) activate(now time.Duration, e ownership.Activate) {
	kind := k.kinds[e.Object.Kind]
	a := &active{object: e.Object, number: e.Activation, kind: kind, raw: e.Record.State, schema: e.Record.Schema, exists: e.Record.Exists}
	k.gates.forget(e.Object)
	k.active[e.Object] = a
	k.idle.use(a, now)
	if kind.maxActive > 0 {
		k.grown = append(k.grown, kind)
	}
}

// replace makes a the one that is in memory.
func (k *keeper) replace(a *active) {
	k.gates.withdraw(a.object)
	k.active[a.object] = a
}

// ear is a subscription to the requests of a shard.
type ear struct {
	shard  kbroker.Shard
	number uint64
	made   chan struct{} // closed when sub is there, or will never be
	sub    subscription
}

// listen subscribes, and says so when the broker knows it.
func (k *keeper) listen(e *ear) {
	again := time.NewTicker(connectPoll)
	defer again.Stop()
	for {
		sub, err := k.t.subscribe(subjects.ShardMethods(k.own.App, e.shard), "", k.hear(e.number))
		if err == nil {
			e.sub = sub
			break
		}
		select {
		case <-k.base.Done():
			close(e.made)
			return
		case <-again.C:
		}
	}
	close(e.made)
	for {
		try, cancel := context.WithTimeout(k.base, flushTimeout)
		err := k.t.flush(try)
		cancel()
		if err == nil {
			break
		}
		select {
		case <-k.base.Done():
			return
		case <-again.C:
		}
	}
	k.post(func(now time.Duration) { k.owner.Listening(now, e.shard, e.number) })
}

// silence unsubscribes, and says so when all that was delivered has been heard, not before:
// the next owner begins upon it. If the connection is gone nothing more comes either.
func (k *keeper) silence(ctx context.Context, e *ear) {
	<-e.made
	if e.sub != nil {
		if err := e.sub.drain(ctx); err != nil && !errors.Is(err, errNotConnected) && !errors.Is(err, nats.ErrConnectionClosed) {
			k.log.Warn("subscription of a shard not drained", "shard", int(e.shard), "err", err)
			return
		}
	}
	k.post(func(now time.Duration) { k.owner.Silent(now, e.shard, e.number) })
}

// silenceWithin bounds the wait for what was delivered, of an app that is to end.
const silenceWithin = 5 * time.Second
