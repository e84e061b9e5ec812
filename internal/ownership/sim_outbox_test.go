package ownership

import (
	"slices"
	"strconv"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// In worlds with messages a turn may send some: the object's list says so, as "id>target".
// The receiver's list has "m:id" then, or the sender's "f:id" if it was refused.

// told is a message under way, or the call of the sender that follows a refusal.
type told struct {
	from  *simOwner
	relay Relay
	id    string // of the call whose turn has sent it
	sent  int
}

// sends draws what a turn of a call does.
func (w *world) sends(id string) (did string, sends []Send) {
	if !w.f.tells || !w.chance(0.4) {
		return id, nil
	}
	to := w.objects[w.r.IntN(len(w.objects))]
	did = id + ">" + to.String()
	return did, []Send{{To: to.String(), Value: []byte(did)}}
}

// senders are the objects of a shard that have messages stored.
func (w *world) senders(n kbroker.Shard) (found []kbroker.Object) {
	for _, o := range w.objects {
		if o.Shard() == n && len(w.outbox(o)) > 0 {
			found = append(found, o)
		}
	}
	return found
}

// outbox is what is stored of an object's messages.
func (w *world) outbox(o kbroker.Object) (found []Message) {
	for _, key := range w.store.below(subjects.MatchOuts(o.Shard()) + ".") {
		k, r := subjects.ParseOwnKey(key), w.store.recs[key]
		if k.Object != o {
			continue
		}
		if !w.f.cut && !slices.Contains(w.store.now(o), string(r.value)) {
			w.fail("P1 a message of %s is stored, and the turn that sent it is not: %s", o, r.value)
		}
		_, to, _ := strings.Cut(string(r.value), ">")
		found = append(found, Message{Number: k.Number, Revision: r.rev, Send: Send{To: to, Value: r.value}})
	}
	slices.SortFunc(found, func(a, b Message) int { return int(a.Number) - int(b.Number) })
	return found
}

// relay sends a message, again and again for a while.
func (o *simOwner) relay(e Relay) {
	w := o.w
	kind, id, _ := strings.Cut(e.Message.To, ":")
	of, _, _ := strings.Cut(string(e.Message.Value), ">")
	m := &told{from: o, relay: e, id: of}
	a := &attempt{id: "m:" + m.id, object: kbroker.Object{Kind: kbroker.KindName(kind), ID: id, Placed: m.from.w.f.placed}, message: m}
	w.say("%s relays message %d of %s to %s", o.name, e.Message.Number, e.Object, e.Message.To)
	var send func()
	send = func() {
		if a.over || o.dead {
			return
		}
		if m.sent++; m.sent > 3 {
			o.relayed(a, false, nil)
			return
		}
		c := Call{Object: a.object, Session: OutboxSession + e.Object.String(), Sequence: e.Message.Number, Hash: 1, Data: a}
		w.deliver(&c, w.now, false)
		if w.f.dup && w.chance(0.3) {
			late := c
			w.after(w.between(0, 5*simTimes.Window/2), func() { w.deliver(&late, w.now, false) })
		}
		o.after(w.between(50*1e6, 200*1e6), send)
	}
	send()
}

func (o *simOwner) relayed(a *attempt, taken bool, follow *Call) {
	e := a.message.relay
	a.over = true
	o.do(byAnswer, func() {
		o.o.Relayed(o.clock(), e.Object, e.Activation, e.Message.Number, taken, follow)
		o.effects()
	})
}

// toldAnswer is the answer to a message.
func (o *simOwner) toldAnswer(a *attempt, r Reply) {
	w, m := o.w, a.message
	if a.over {
		return
	}
	switch {
	case r.Outcome != Done && r.Outcome != Again:
		return // it is sent again
	case r.Refused == nil:
		o.relayed(a, true, nil)
	default:
		e := m.relay
		follow := &Call{
			Object: e.Object, Session: "f." + e.Object.String(), Sequence: e.Message.Number, Hash: 1,
			Data: &attempt{id: "f:" + m.id, object: e.Object, message: m, over: true},
		}
		w.say("%s learns that message %d of %s was refused", o.name, e.Message.Number, e.Object)
		o.relayed(a, false, follow)
	}
}

// take is a turn of the receiver of a message, or that which follows a refusal.
func (o *simOwner) take(e Run, a *activation, call *attempt) {
	w := o.w
	w.say("%s runs %s on %s", o.name, call.id, e.Object)
	o.after(w.between(0, 2e6), func() {
		turn := Turn{Reply: Reply{Outcome: Done, Data: []byte(strconv.Itoa(len(a.list) + 1))}, Changed: true, Exists: true}
		switch {
		case w.chance(0.05):
			turn = Turn{Reply: Reply{Outcome: Failed}}
		case strings.HasPrefix(call.id, "m:") && w.chance(0.2):
			turn.Changed, turn.Refused = false, []byte("no")
			turn.Exists, turn.State = len(a.list) > 0, []byte(strings.Join(a.list, ","))
		default:
			a.list = append(a.list[:len(a.list):len(a.list)], call.id)
			turn.State = []byte(strings.Join(a.list, ","))
		}
		o.o.Turned(o.clock(), e.Object, e.Activation, turn)
		o.effects()
	})
}

// delivered holds, at the end, that each message that a stored turn has sent has exactly one
// outcome, and that no other has one.
func (w *world) delivered() {
	if w.failed != "" || !w.f.tells {
		return
	}
	pending := func() (n int) {
		for _, o := range w.objects {
			done := w.store.now(o)
			for _, m := range w.outbox(o) {
				if slices.Contains(done, string(m.Value)) { // else it is left of a batch
					n++
				}
			}
		}
		return n
	}
	for until := w.now + 2*restWait; w.failed == "" && pending() > 0 && w.now < until; {
		w.steps(w.now + 50*1e6)
	}
	if n := pending(); n > 0 {
		w.fail("P5 %d messages are not delivered when all is well again", n)
	}
	outcomes := map[string]int{}
	var sent []string
	for _, o := range w.objects {
		for _, did := range w.store.now(o) {
			id, target, ok := strings.Cut(did, ">")
			switch {
			case ok:
				sent = append(sent, id+" "+target)
			case strings.HasPrefix(did, "m:"):
				outcomes[did[2:]+" "+o.String()]++
			case strings.HasPrefix(did, "f:"):
				outcomes[did[2:]]++
			}
		}
	}
	for _, s := range sent {
		id, _, _ := strings.Cut(s, " ")
		if n := outcomes[s] + outcomes[id]; n != 1 {
			w.fail("P1 the message %s has %d outcomes: taken %d times, refused %d times", s, n, outcomes[s], outcomes[id])
		}
		delete(outcomes, s)
		delete(outcomes, id)
		w.told++
	}
	for id := range outcomes {
		w.fail("P1 the message %s has an outcome, and was not sent", id)
	}
}
