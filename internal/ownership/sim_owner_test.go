package ownership

import (
	"fmt"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// simOwner drives an Owner, as the SDK does.
type simOwner struct {
	*proc
	host  int
	me    kbroker.Incarnation
	o     *Owner
	state map[kbroker.Object]*activation
	lent  map[kbroker.Object]Lend
	subs  map[uint64]kbroker.Shard // that the network delivers
	last  map[uint64]time.Duration // when the last message of each arrives

	dues     map[dueKey]*simDue // that it knows
	scanning map[kbroker.Shard]map[dueKey]bool
	wanted   map[*Call][]simDue // of turns under way
}

type activation struct {
	number uint64
	list   []string
}

const simTick = 10 * time.Millisecond

// start starts an incarnation on a host.
func (w *world) start(host int) {
	w.starts[host]++
	name := fmt.Sprintf("%c.%d", 'A'+host, w.starts[host])
	if !ruleIncarnation {
		name = fmt.Sprintf("%c", 'A'+host)
	}
	o := &simOwner{
		proc: w.proc(name), host: host, me: kbroker.Incarnation(name), state: map[kbroker.Object]*activation{}, lent: map[kbroker.Object]Lend{},
		subs: map[uint64]kbroker.Shard{}, last: map[uint64]time.Duration{},
		dues: map[dueKey]*simDue{}, scanning: map[kbroker.Shard]map[dueKey]bool{}, wanted: map[*Call][]simDue{},
	}
	mailbox := 8
	if w.f.busy {
		mailbox = 2
	}
	cfg := OwnerConfig{Incarnation: o.me, Streams: 2, Times: simTimes, Mailbox: mailbox}
	if w.f.interval {
		cfg.Durable = map[kbroker.KindName]Durability{"a": {Interval: simInterval}}
	}
	o.o = NewOwner(cfg)
	w.say("%s starts", name)
	w.owners = append(w.owners, o)
	w.store.heard = append(w.store.heard, o.hear)
	var tick func()
	tick = func() {
		if !o.o.ended {
			o.o.Tick(o.clock())
			if w.f.idle && w.chance(0.1) {
				o.o.PutAway(w.objects[w.r.IntN(len(w.objects))])
			}
			o.refuse()
			o.effects()
			w.counts(o.o)
			o.after(simTick, tick)
		}
	}
	o.do(byDecision, tick)
	var poll func()
	poll = func() { // level, not edge
		for _, s := range w.shards() {
			o.readShard(s)
		}
		again := w.between(300*time.Millisecond, 600*time.Millisecond)
		if w.f.frozen {
			again *= 5 // it is not by this that who was frozen learns what it has lost
		}
		o.after(again, poll)
	}
	o.do(byDecision, poll)
}

// refuse refuses a call that waits, as one that crosses another.
func (o *simOwner) refuse() {
	if !o.w.f.crossing || !o.w.chance(0.1) {
		return
	}
	waiting := o.o.Waiting(o.w.objects[o.w.r.IntN(len(o.w.objects))])
	if len(waiting) > 0 && o.o.Refuse(o.clock(), waiting[o.w.r.IntN(len(waiting))], "a world") {
		o.w.refused++
	}
}

// hear is a change of the store that was announced.
func (o *simOwner) hear(key string, value []byte, rev kbroker.Revision) {
	if o.w.unheard() || o.w.f.frozen && o.w.chance(0.3) || o.dead || o.frozen || o.apart() {
		return
	}
	o.w.after(o.w.hop(), func() { o.do(byAnnouncement, func() { o.see(key, value, rev) }) })
}

func (o *simOwner) see(key string, value []byte, rev kbroker.Revision) {
	switch k := subjects.ParseOwnKey(key); k.Table {
	case subjects.OwnAssign:
		o.o.Assigned(o.clock(), k.Shard, decodeAs[Assignment](o.w, value), rev)
	case subjects.OwnRelease:
		o.o.Released(o.clock(), k.Shard, decodeAs[Release](o.w, value), rev)
	}
	o.effects()
}

func (o *simOwner) readShard(n kbroker.Shard) {
	for _, key := range []string{subjects.KeyAssign(n), subjects.KeyRelease(n)} {
		o.w.store.read(o.proc, time.Second, key, func(r storedRecord, ok bool) {
			if ok && r.rev != 0 {
				o.see(key, r.value, r.rev)
			}
		})
	}
}

const simWithin = 150 * time.Millisecond

// effects does what the machine wants done.
func (o *simOwner) effects() {
	for _, e := range o.o.Effects() {
		if o.w.f.pause && o.w.chance(o.w.rare(0.002)) { // between a decision and what follows from it
			o.pause(o.w.between(0, 1200*time.Millisecond))
		}
		o.do(byDecision, func() { o.effect(e) })
	}
}

func (o *simOwner) effect(e Effect) {
	w := o.w
	switch e := e.(type) {
	case Renew:
		w.store.write(o.proc, simTimes.RenewAttempt, []kbroker.Write{e.Write}, func(out Written, rev kbroker.Revision) {
			o.o.LeaseWritten(o.clock(), e.Sent, out, rev)
			o.effects()
		})
		o.renewing()
	case ReadLease:
		w.store.read(o.proc, simWithin, subjects.KeyLease(o.me), func(r storedRecord, ok bool) {
			if ok {
				o.o.LeaseRead(o.clock(), decodeAs[Lease](o.w, r.value), r.rev)
				o.effects()
			}
		})
	case ReadShard:
		o.readShard(e.Shard)
	case Listen:
		if s := o.o.shards[e.Shard]; s != nil && s.role == owning {
			w.serves(o.me, e.Shard, s.epoch)
		}
		o.releaseDues(e.Shard) // those that turns have set which went on when it was left
		w.after(w.hop(), func() {
			if o.dead {
				return
			}
			w.say("%s hears shard %d (%d)", o.name, e.Shard, e.Number)
			o.subs[e.Number] = e.Shard
			w.after(w.hop(), func() {
				o.do(byRequest, func() { o.o.Listening(o.clock(), e.Shard, e.Number); o.effects() })
			})
		})
	case Deafen:
		o.releaseDues(e.Shard)
		w.after(w.hop(), func() {
			w.say("%s hears shard %d no more (%d)", o.name, e.Shard, e.Number)
			delete(o.subs, e.Number)
			w.after(max(w.hop(), o.last[e.Number]-w.now+1), func() {
				o.do(byRequest, func() { o.o.Silent(o.clock(), e.Shard, e.Number); o.effects() })
			})
		})
	case WriteRelease:
		w.store.write(o.proc, simWithin, []kbroker.Write{e.Write}, func(out Written, _ kbroker.Revision) {
			o.o.ReleaseWritten(o.clock(), e.Shard, e.Number, out)
			o.effects()
		})
		o.parting(decodeAs[Release](w, e.Write.Value))
	case Load:
		w.store.read(o.proc, simWithin, subjects.KeyState(e.Object), func(r storedRecord, ok bool) {
			rec := Record{}
			if r.rev != 0 {
				rec, _ = Decode(r.value)
			}
			o.o.Loaded(o.clock(), e.Object, e.Number, rec, r.rev, ok)
			o.effects()
		})
	case Commit:
		w.store.write(o.proc, simWithin, e.Writes, func(out Written, first kbroker.Revision) {
			o.o.Committed(o.clock(), e.Stream, e.Number, out, first)
			o.effects()
		})
	case Inspect:
		w.store.readAll(o.proc, simWithin, e.Keys, func(all []storedRecord, ok bool) {
			var found []Found
			for _, r := range all {
				rec := Record{}
				if r.rev != 0 {
					rec, _ = Decode(r.value)
				}
				found = append(found, Found{rec, r.rev})
			}
			o.o.Inspected(o.clock(), e.Stream, e.Number, found, ok)
			o.effects()
		})
	case ScanOut:
		o.scanDues(e.Shard)
		w.store.read(o.proc, simWithin, "", func(_ storedRecord, ok bool) {
			o.o.ScannedOut(o.clock(), e.Shard, e.Epoch, w.senders(e.Shard), ok)
			o.effects()
		})
	case LoadOut:
		w.store.read(o.proc, simWithin, "", func(_ storedRecord, ok bool) {
			o.o.OutLoaded(o.clock(), e.Object, e.Number, w.outbox(e.Object), ok)
			o.effects()
		})
	case Relay:
		o.relay(e)
	case Remove:
		w.store.write(o.proc, simWithin, e.Writes, func(out Written, _ kbroker.Revision) {
			o.o.Removed(o.clock(), e.Stream, e.Number, out)
			o.effects()
		})
	case Activate:
		w.say("%s activates %s [%s]", o.name, e.Object, e.Record.State)
		o.state[e.Object] = &activation{e.Activation, list(e.Record.State)}
	case Lend:
		o.lent[e.Object] = e
	case Put:
		if a := o.state[e.Object]; a != nil && a.number == e.Activation {
			delete(o.state, e.Object)
		}
	case Run:
		o.run(e)
	case Answer:
		o.turned(e.Calls[0], e.Answer)
		for _, c := range e.Calls {
			o.answer(c, e.Answer)
		}
	case Over:
		w.say("%s is over: %s", o.name, e.Reason)
		o.end()
		w.ends = append(w.ends, w.now)
		w.after(w.between(0, 200*time.Millisecond), func() { w.start(o.host) })
	}
}

// end has the process do nothing any more.
func (o *simOwner) end() {
	o.dead = true
	clear(o.subs)
}

// run is a turn or a read of the application: it keeps the names of calls.
func (o *simOwner) run(e Run) {
	w, a := o.w, o.state[e.Object]
	if a == nil || a.number != e.Activation {
		w.fail("%s runs a call of %s that is not there", o.name, e.Object)
		return
	}
	w.serves(o.me, e.Object.Shard(), e.Epoch)
	call := e.Call.Data.(*attempt)
	switch {
	case call.message != nil:
		o.take(e, a, call)
		return
	case call.due != nil:
		o.runDue(e, a, call)
		return
	}
	takes := w.between(0, 2*time.Millisecond)
	if w.chance(0.02) {
		takes = w.between(0, 400*time.Millisecond)
	}
	if e.Call.ReadOnly {
		seen := len(a.list)
		w.say("%s reads %s: %d", o.name, e.Object, seen)
		o.after(takes, func() {
			o.o.ReadDone(o.clock(), e.Object, e.Activation, e.Call, Reply{Outcome: Done, Data: []byte(fmt.Sprint(seen))})
			o.effects()
		})
		return
	}
	w.say("%s runs %s on %s", o.name, call.id, e.Object)
	o.after(takes, func() {
		turn := Turn{Reply: Reply{Outcome: Failed}}
		if !w.chance(0.03) {
			did, sends := w.sends(call.id)
			did, o.wanted[e.Call] = w.reminders(e.Object, did)
			a.list = append(a.list[:len(a.list):len(a.list)], did)
			turn = Turn{
				Sends: sends, Writes: dueWrites(o.wanted[e.Call]),
				Reply: Reply{Outcome: Done, Data: []byte(fmt.Sprint(len(a.list)))}, Changed: true, Exists: true, State: []byte(strings.Join(a.list, ",")),
			}
		}
		o.o.Turned(o.clock(), e.Object, e.Activation, turn)
		o.effects()
	})
}

// readNow has a call read past the owner, if it can.
func (o *simOwner) readNow(c *Call) bool {
	l, a := o.lent[c.Object], o.state[c.Object]
	if !c.ReadOnly || l.Gate == nil || a == nil || a.number != l.Activation || !o.o.Valid(o.clock()) || !l.Gate.Enter() {
		return false
	}
	w, seen := o.w, len(a.list)
	w.say("%s reads %s by its gate: %d", o.name, c.Object, seen)
	w.gated++
	o.after(w.between(0, 3*time.Millisecond), func() {
		if o.o.Valid(o.clock()) && !l.Gate.Dead() {
			o.answer(c, Reply{Outcome: Done, Data: []byte(fmt.Sprint(seen))})
		}
		if l.Gate.Leave() {
			o.o.ReadersLeft(o.clock(), c.Object, l.Activation)
			o.effects()
		}
	})
	return true
}

// answer sends a reply.
func (o *simOwner) answer(c *Call, r Reply) {
	w, a := o.w, c.Data.(*attempt)
	w.say("%s answers %s: %s %s", o.name, a.id, r.Outcome, r.Data)
	if a.due != nil {
		o.reminded(a.due, r)
		return
	}
	if w.f.lost && w.chance(w.rare(0.05)) {
		return
	}
	if m := a.message; m != nil {
		w.after(w.hop(), func() { m.from.do(byAnswer, func() { m.from.toldAnswer(a, r) }) })
		return
	}
	w.after(w.hop(), func() { a.caller.answered(a, r) })
}
