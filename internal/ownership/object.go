package ownership

import (
	"cmp"
	"fmt"
	"time"

	"github.com/kbroker/kbroker"
)

// phase of an object in memory.
type phase int

const (
	cold       phase = iota // waits for its turn to be loaded
	loading                 // its record is being read
	claiming                // the claim is under way
	idle                    // may run
	turning                 // a turn runs
	committing              // what the turn did is under way to the store
)

func (p phase) String() string {
	return [...]string{"cold", "loading", "claiming", "idle", "turning", "committing"}[p]
}

// object is one that is in memory.
type object struct {
	shard      *shard
	id         kbroker.Object
	phase      phase
	activation uint64
	load       uint64 // number of the Load under way
	loadedAt   time.Duration
	backoff    time.Duration

	rec     Record // as stored at rev, without the state
	rev     kbroker.Revision
	queue   []*Call // that wait; changed by setQueue alone
	joined  map[*Call][]*Call
	readers int
	gate    *Gate // nil: nobody has read it yet
	running *Call // the turn
	placed  bool  // it has one of the places of those that are loaded
	unsaved unsaved
	out     outbox
	gone    bool
}

// call takes a request.
func (s *shard) call(now time.Duration, c *Call) {
	x := s.objects[c.Object]
	if x == nil {
		x = &object{shard: s, id: c.Object}
		s.objects[c.Object] = x
		x.begin()
		x.appear(now)
	}
	if w := x.same(c); w != nil {
		if w.Hash != c.Hash {
			s.owner.want(Answer{[]*Call{c}, Reply{Outcome: Misused, Reason: "another call has its id"}})
			return
		}
		if x.joined == nil {
			x.joined = map[*Call][]*Call{}
		}
		if len(x.joined[w]) < maxJoined {
			x.joined[w] = append(x.joined[w], c)
		}
		return
	}
	if len(x.queue) >= cmp.Or(s.owner.cfg.Mailboxes[c.Object.Kind], s.owner.cfg.Mailbox) {
		s.owner.want(Answer{[]*Call{c}, Reply{Outcome: Overloaded, Reason: "the object's mailbox is full"}})
		return
	}
	c.since = now
	x.setQueue(append(x.queue, c))
	s.calls[x] = true
	s.wake()
	x.run(now)
}

// setQueue has these calls of the object wait, and no others.
func (x *object) setQueue(calls []*Call) {
	x.owner().figures.Waiting += len(calls) - len(x.queue)
	x.queue = calls
}

// maxJoined bounds the copies of a call that wait for its answer.
const maxJoined = 8

// same is the call with the same id that waits or runs.
func (x *object) same(c *Call) *Call {
	is := func(w *Call) bool {
		return w != nil && !w.ReadOnly && w.Session == c.Session && w.Sequence == c.Sequence
	}
	if c.ReadOnly {
		return nil
	}
	if is(x.running) {
		return x.running
	}
	for _, w := range x.queue {
		if is(w) {
			return w
		}
	}
	return nil
}

// all are a call and those that have joined it.
func (x *object) all(c *Call) []*Call {
	all := append([]*Call{c}, x.joined[c]...)
	delete(x.joined, c)
	return all
}

func (x *object) owner() *Owner { return x.shard.owner }

// age of the object, as its ring counts.
func (x *object) age(now time.Duration) time.Duration { return x.rec.Age + now - x.loadedAt }

// remove takes the object out of memory.
func (x *object) remove() {
	x.gone = true
	if x.gate != nil {
		x.gate.kill()
	}
	if x.activation != 0 && x.phase >= idle {
		x.owner().want(Put{x.id, x.activation})
	}
	x.owner().figures.Messages -= len(x.out.messages)
	x.out.messages = nil
	delete(x.shard.objects, x.id)
	x.leavePlace()
}

// abandon takes it out with all that waits. Nothing is said of that: the same message may
// have been heard by the next owner, who executes it.
func (x *object) abandon() {
	x.running = nil
	x.setQueue(nil)
	x.remove()
}

// reload begins anew with what the store has; what waits goes on waiting.
func (x *object) reload(now time.Duration, running Outcome, why string) {
	s, queue, joined := x.shard, x.queue, x.joined
	if x.running != nil {
		x.owner().want(Answer{x.all(x.running), Reply{Outcome: running, Reason: why}})
	}
	x.running = nil
	x.setQueue(nil)
	x.remove()
	if len(queue) == 0 && x.rec.Sent == 0 && !x.out.maybe { // else it may have something to send
		s.settle(now)
		return
	}
	y := &object{shard: s, id: x.id, joined: joined}
	y.setQueue(queue)
	s.objects[x.id], s.calls[y] = y, true
	s.wake()
	y.begin()
	y.appear(now)
}

// run starts what may run now.
func (x *object) run(now time.Duration) {
	o := x.owner()
	if x.unsaved.is && now >= x.unsaved.due && o.Valid(now) && x.save(now) {
		return
	}
	for !x.gone && len(x.queue) > 0 {
		quiet := x.phase == idle
		if !ruleQuietCommit || !ruleQuietRead && x.queue[0].ReadOnly {
			quiet = quiet || x.phase == committing
		}
		c := x.queue[0]
		if !quiet || !c.ReadOnly && x.readers > 0 || ruleGate && (!c.ReadOnly || c.Linearizable) && !x.empty() {
			return
		}
		if ruleTurnLease && !o.Valid(now) {
			return
		}
		x.setQueue(x.queue[1:])
		if c.Expires != 0 && now >= c.Expires {
			o.want(Answer{x.all(c), Reply{Outcome: TooLate}})
			continue
		}
		if c.ReadOnly && !c.Linearizable {
			x.readers++
			o.want(Run{x.id, x.activation, x.shard.epoch, c})
			continue
		}
		if c.removes != 0 && len(x.removal(c)) == 0 { // the object was loaded since
			o.want(Answer{x.all(c), Reply{Outcome: Unknown, Reason: "the message that it follows is not known"}})
			continue
		}
		if answer, ok := x.known(now, c); ok {
			x.answer(now, c, answer)
			continue
		}
		x.phase, x.running = turning, c
		o.want(Run{x.id, x.activation, x.shard.epoch, c})
	}
	x.reopen()
	if len(x.queue) == 0 && x.phase == idle && x.readers == 0 && x.shard.role == releasing {
		x.shard.settle(now)
	}
}

// known is the answer to a call that is not to run; false: it is.
func (x *object) known(now time.Duration, c *Call) (Reply, bool) {
	if c.ReadOnly {
		return Reply{}, false
	}
	c.Age, c.since = c.Age+now-c.since, now // it has waited since it came
	v, e := x.rec.knows(c, x.age(now), x.owner().cfg.Times)
	switch v {
	case isKnown:
		return Reply{Outcome: Again, Data: e.Reply, Cut: e.Cut, Refused: e.Refused}, true
	case isOther:
		return Reply{Outcome: Misused, Reason: "another call took effect under its id"}, true
	case isExpired:
		return Reply{Outcome: Expired}, true
	case isTooMany:
		return Reply{Outcome: Overloaded, Reason: "the object remembers as many calls as it may: their callers have not confirmed that they were answered"}, true
	}
	return Reply{}, false
}

// answer answers a call, if the lease is still held.
func (x *object) answer(now time.Duration, c *Call, r Reply) {
	if all := x.all(c); !ruleReplyLease || x.owner().Valid(now) {
		x.owner().want(Answer{all, r})
	}
}

// tick answers what has waited for too long.
func (x *object) tick(now time.Duration) {
	var left []*Call
	for _, c := range x.queue {
		if c.Expires != 0 && now >= c.Expires {
			x.owner().want(Answer{x.all(c), Reply{Outcome: TooLate}})
			continue
		}
		left = append(left, c)
	}
	x.setQueue(left)
	if x.phase == idle {
		x.run(now)
	}
}

// ReadDone is the end of a Run that only reads.
func (o *Owner) ReadDone(now time.Duration, id kbroker.Object, activation uint64, c *Call, r Reply) {
	x := o.object(id)
	if o.ended || x == nil || x.activation != activation {
		return
	}
	if o.lookBack(now); o.ended {
		return
	}
	x.readers--
	x.lend()
	o.figures.Reads++
	x.answer(now, c, r)
	x.run(now)
}

// Turn is what a turn did.
type Turn struct {
	Reply   Reply           // Done, Failed or Broken
	Changed bool            // State or Exists differ from what they were, or Writes has something
	Exists  bool            // false: it is deleted
	State   []byte          // the whole state
	Schema  int             // of the state
	Sends   []Send          // messages to others
	Refused []byte          // what a message of an outbox is refused with, if it is: known from then on
	Writes  []kbroker.Write // further records of the shard, stored with the state
	After   []kbroker.Write // likewise, of what is done with: stored behind it
}

// Turned is the end of a Run.
func (o *Owner) Turned(now time.Duration, id kbroker.Object, activation uint64, t Turn) {
	x := o.object(id)
	if o.ended || x == nil || x.activation != activation || x.phase != turning && ruleQuietCommit || x.running == nil {
		return
	}
	if o.lookBack(now); o.ended {
		return
	}
	c := x.running
	o.figures.Turns++
	if x.durability().Volatile && len(t.Writes)+len(t.After)+len(t.Sends) > 0 {
		t = Turn{Reply: Reply{Outcome: Broken, Reason: "it is to be stored, which nothing of its kind is"}}
	}
	switch {
	case t.Reply.Outcome != Done: // what it did is taken back
		x.running = nil
		x.answer(now, c, t.Reply)
		x.takeBack(now)
	case !t.Changed && !c.leavesMark() && (!c.Linearizable || x.durability().Volatile):
		x.running, x.phase = nil, idle
		x.answer(now, c, t.Reply)
		x.run(now)
	default:
		next := x.rec
		if c.ReadOnly {
			next.Age = x.age(now)
		} else {
			next = x.rec.after(c, x.age(now), o.cfg.Times)
			next.remember(c, t.Reply.Data, t.Refused)
		}
		next.State, next.Exists, next.Schema = t.State, t.Exists, t.Schema
		next.Sent += uint64(len(t.Sends))
		t.Reply.Refused = t.Refused
		next.Epoch, next.Owner = x.shard.epoch, o.cfg.Incarnation
		if !next.fits() {
			x.running = nil
			x.answer(now, c, Reply{Outcome: TooLarge, Reason: fmt.Sprintf("a state of %d bytes, with what is known of %d callers' calls", len(next.State), len(next.Ring))})
			x.takeBack(now)
			return
		}
		if x.answersEarly(t) {
			x.keep(now, next, t.Reply)
			return
		}
		it := &item{x: x, activation: x.activation, next: next, sends: t.Sends, call: c, reply: t.Reply}
		it.writes, it.after = append(x.outWrites(next.Sent, t.Sends), t.Writes...), append(x.removal(c), t.After...)
		if !it.fits() {
			x.running = nil
			x.answer(now, c, Reply{Outcome: TooLarge, Reason: fmt.Sprintf("a state of %d bytes, with %d messages and reminders", len(next.State), len(it.writes)+len(it.after))})
			x.takeBack(now)
			return
		}
		x.unsaved, x.phase = unsaved{}, committing
		x.out.maybe = x.out.maybe || len(t.Sends) > 0
		o.committer(x).add(now, it)
	}
}

// stored is the end of a write of the object: it is at rev now.
func (x *object) stored(now time.Duration, it *item, rev kbroker.Revision) {
	if x.gone || x.activation != it.activation {
		return
	}
	x.rev, x.rec = rev, it.next
	if it.claim {
		x.activate(now)
		x.openOutbox(true)
		return
	}
	x.rec.State = nil
	x.loadedAt = now
	x.phase, x.running = idle, nil
	if it.call == nil {
		x.saved(now)
		return
	}
	x.answer(now, it.call, it.reply)
	x.sent(now, it, rev-kbroker.Revision(len(it.writes)))
	x.run(now)
}
