package ownership

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Messages that an object's turns send are stored with what the turns did, in the object's
// outbox, and relayed by who owns it then, until the receiver has taken each, or refused it:
//
//	turn --batch--> waiting --relay--> taken -----------------------> removed
//	                   ^  |  \--------> refused --a turn of the sender--> removed, in its batch
//	                   \--/ not known, or not now
//
// An owner relays nothing of an object that it has not claimed: what an earlier one has
// under way, to remove a message in the batch of the turn that follows its refusal, is dead
// then. Those to one receiver go one after the other, in the order of their numbers. The
// receiver keeps one mark of all of an outbox, with what it has refused last, so that a
// message has one outcome, however often and however late it is relayed.
const (
	// OutboxSession is what the sessions of outboxes begin with: their sequences are the
	// numbers of messages.
	OutboxSession = "o."
	// maxRelays bounds the messages of all objects that are under way at a time.
	maxRelays = 256
	// maxScans bounds the shards that are looked through at a time.
	maxScans = 8
	// scanAgain is after how many terms of a lease an owner looks once more through a shard
	// that it has begun to serve: what an earlier owner has sent to the store arrives sooner,
	// or not at all.
	scanAgain = 2
	// maxRemovals bounds the messages that are removed by a batch.
	maxRemovals  = 100
	relayLeast   = 50 * time.Millisecond
	relayMost    = 5 * time.Second
	maxTries     = 20     // that the backoff grows by
	maxCooling   = 10_000 // messages whose tries are remembered over a load of their object
	outboxWindow = time.Hour
)

// Send is a message that a turn sends.
type Send struct {
	To    string // those to one receiver stay in order
	Value []byte
}

// Message is one of an outbox.
type Message struct {
	Number   uint64
	Revision kbroker.Revision
	Send
}

// IsOutbox reports whether a request id is that of a message of an outbox.
func IsOutbox(id string) bool { return ordered(id) }

// ordered reports whether the requests of a session are those of an outbox.
func ordered(session string) bool { return strings.HasPrefix(session, OutboxSession) }

// outbox is what an object has to send.
type outbox struct {
	known    bool   // all of it
	maybe    bool   // a turn has sent something, which may be stored
	claimed  uint64 // the record's Sent when it was claimed: what is below was another owner's
	stalled  bool   // it waits for a place among those under way
	load     uint64 // number of the LoadOut under way
	backoff  time.Duration
	messages []*message // by number
}

// message is one that is not removed yet.
type message struct {
	Message
	mine    bool // a turn of this activation sent it: nobody has relayed it before
	relayed bool // it is under way
	tries   int
	failing bool // a turn of the sender is to follow its refusal
	again   time.Duration
}

// outKey names a message of an object.
type outKey struct {
	object kbroker.Object
	number uint64
}

// openOutbox is for an object that was activated.
func (x *object) openOutbox(fresh bool) {
	x.out.claimed = x.rec.Sent
	if x.rec.Sent == 0 || !fresh {
		x.out.known = true // an object is put away with nothing to send
		return
	}
	x.loadOutbox()
}

func (x *object) loadOutbox() {
	x.out.load = x.owner().next()
	x.owner().want(LoadOut{x.id, x.out.load})
}

// OutLoaded is the answer to LoadOut: all messages that are stored of the object, in the
// order of their numbers. ok is false if they could not be read, which is tried again.
func (o *Owner) OutLoaded(now time.Duration, id kbroker.Object, number uint64, found []Message, ok bool) {
	x := o.object(id)
	if o.ended || x == nil || x.out.load != number {
		return
	}
	if o.look(now); o.ended {
		return
	}
	if !ok {
		x.out.backoff = min(max(2*x.out.backoff, retryLeast), retryMost)
		o.later(now+x.out.backoff, func(time.Duration) {
			if !x.gone && x.out.load == number {
				x.loadOutbox()
			}
		})
		return
	}
	x.out.known, x.out.load = true, 0
	for _, m := range found {
		// One behind the record's number is left of a batch that was not written to its end;
		// one that was sent since the claim is known.
		if m.Number <= x.out.claimed || !ruleOutboxSent {
			known := &message{Message: m, tries: o.cooling[outKey{id, m.Number}]}
			if known.tries > 0 {
				x.wait(now, known)
			}
			x.out.messages = append(x.out.messages, known)
			o.figures.Messages++
		}
	}
	slices.SortFunc(x.out.messages, func(a, b *message) int { return cmp.Compare(a.Number, b.Number) })
	x.relay(now)
}

// sent notes what a turn has stored in the outbox, first at a revision, and removed from it.
func (x *object) sent(now time.Duration, it *item, first kbroker.Revision) {
	if n := it.call.removes; n != 0 {
		if it.unsure {
			x.owner().remove(now, x.id, Message{Number: n, Revision: it.after[0].Expected})
		}
		x.removed(n)
	}
	for i, s := range it.sends {
		m := Message{Number: it.next.Sent - uint64(len(it.sends)-1-i), Revision: first + kbroker.Revision(i), Send: s}
		x.out.messages = append(x.out.messages, &message{Message: m, mine: true})
		x.owner().figures.Messages++
	}
	x.relay(now)
}

// outWrites are the writes of the messages of a turn, whose last one has the number last.
func (x *object) outWrites(last uint64, sends []Send) []kbroker.Write {
	var writes []kbroker.Write
	for i, s := range sends {
		writes = append(writes, kbroker.Write{Key: subjects.KeyOut(x.id, last-uint64(len(sends)-1-i)), Value: s.Value})
	}
	return writes
}

// relay sends what may go now.
func (x *object) relay(now time.Duration) {
	o := x.owner()
	if x.gone || !x.out.known || len(x.out.messages) == 0 || !o.Valid(now) || x.shard.role != owning {
		return
	}
	busy := map[string]bool{}
	for _, m := range x.out.messages {
		if busy[m.To] {
			continue
		}
		busy[m.To] = true // also while it follows a refusal: its receiver knows the last one alone
		if m.relayed || m.failing || now < m.again {
			continue
		}
		if o.relays >= maxRelays {
			if !x.out.stalled {
				x.out.stalled = true
				o.stalled = append(o.stalled, x)
			}
			return
		}
		o.relays++
		m.relayed = true
		o.want(Relay{Object: x.id, Activation: x.activation, Message: m.Message, First: m.mine && m.tries == 0})
	}
}

// Relayed is what became of a Relay. With a call it was refused for good, and the call is
// one of the sender, which is to follow; the message is removed with what that does.
func (o *Owner) Relayed(now time.Duration, id kbroker.Object, activation, number uint64, taken bool, follow *Call) {
	o.relays--
	defer o.unstall(now)
	x := o.object(id)
	if o.ended || x == nil || x.activation != activation {
		return
	}
	if o.lookBack(now); o.ended {
		return
	}
	i := slices.IndexFunc(x.out.messages, func(m *message) bool { return m.Number == number })
	if i < 0 {
		return
	}
	m := x.out.messages[i]
	m.relayed = false
	switch {
	case taken:
		x.removed(number)
		o.remove(now, x.id, m.Message)
	case follow != nil && x.shard.role == owning:
		m.failing = true
		follow.removes = number
		x.shard.begin(now, follow)
	default:
		x.cool(now, m)
	}
	x.relay(now)
}

// cool has a message be relayed again later.
func (x *object) cool(now time.Duration, m *message) {
	m.tries = x.owner().tried(outKey{x.id, m.Number})
	x.wait(now, m)
}

func (x *object) wait(now time.Duration, m *message) {
	m.again = now + min(relayLeast<<m.tries, relayMost)
	x.owner().later(m.again, x.relay)
}

// notFollowed is for a call that was to follow a refusal, and did not come to be stored:
// the message is relayed again, and has the same outcome. Of one that has followed before
// the message is left, where a batch may be cut off.
func (o *Owner) notFollowed(c *Call, r Reply) {
	if r.Outcome == Again || r.Outcome == Expired {
		o.later(0, func(now time.Duration) {
			if x := o.object(c.Object); x != nil {
				x.follow(now, c.removes)
			}
		})
		return
	}
	tries := o.tried(outKey{c.Object, c.removes})
	o.later(0, func(now time.Duration) {
		x := o.object(c.Object)
		if x == nil {
			return
		}
		for _, m := range x.out.messages {
			if m.Number == c.removes && m.failing {
				m.failing, m.tries = false, tries
				x.wait(now, m)
			}
		}
	})
}

// follow removes a message whose refusal was followed before.
func (x *object) follow(now time.Duration, number uint64) {
	for _, m := range x.out.messages {
		if m.Number == number {
			x.owner().remove(now, x.id, m.Message)
			x.removed(number)
			x.relay(now)
			return
		}
	}
}

// tried counts a try of a message.
func (o *Owner) tried(k outKey) int {
	tries := min(o.cooling[k]+1, maxTries)
	if o.cooling[k] > 0 || len(o.cooling) < maxCooling {
		o.cooling[k] = tries
	}
	return tries
}

// removal is the write that removes a message in the batch of a turn, if the call follows a
// refusal.
func (x *object) removal(c *Call) []kbroker.Write {
	for _, m := range x.out.messages {
		if c.removes != 0 && m.Number == c.removes {
			return []kbroker.Write{{Key: subjects.KeyOut(x.id, m.Number), Expected: m.Revision}}
		}
	}
	return nil
}

// removed forgets a message.
func (x *object) removed(number uint64) {
	before := len(x.out.messages)
	x.out.messages = slices.DeleteFunc(x.out.messages, func(m *message) bool { return m.Number == number })
	x.owner().figures.Messages -= before - len(x.out.messages)
	delete(x.owner().cooling, outKey{x.id, number})
}

func (o *Owner) unstall(now time.Duration) {
	for len(o.stalled) > 0 && o.relays < maxRelays && !o.ended {
		x := o.stalled[0]
		o.stalled = o.stalled[1:]
		x.out.stalled = false
		x.relay(now)
	}
}
