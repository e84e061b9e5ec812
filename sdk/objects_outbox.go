package sdk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/boottime"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// relayWithin bounds one relay of a message, with all its attempts.
const relayWithin = DefaultTimeout

// maxRefusedBytes bounds the message of an error that an object keeps.
const maxRefusedBytes = 512

// sends are what a turn has told others.
func (t *turn) sends() []ownership.Send {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []ownership.Send
	for _, m := range t.tells {
		all = append(all, m.send(m.encode()))
	}
	return all
}

// outboxID is what the requests of an object's outbox, and those that follow refusals, have
// in common.
func outboxID(app kbroker.AppName, o kbroker.Object) string {
	sum := sha256.Sum256([]byte(string(app) + "/" + o.String()))
	return hex.EncodeToString(sum[:16])
}

// scanOut finds the objects of a shard with messages.
func (k *keeper) scanOut(e ownership.ScanOut) {
	k.read(kbroker.OwnReadRequest{Match: subjects.MatchOuts(e.Shard)}, func(now time.Duration, found []kbroker.Stored, ok bool) {
		var objects []kbroker.Object
		for _, s := range found {
			key := subjects.ParseOwnKey(s.Key)
			if k.kinds[key.Object.Kind] != nil && !slices.Contains(objects, key.Object) {
				objects = append(objects, key.Object)
			}
		}
		k.owner.ScannedOut(now, e.Shard, e.Epoch, objects, ok)
	})
}

// loadOut reads the messages of an object.
func (k *keeper) loadOut(e ownership.LoadOut) {
	k.read(kbroker.OwnReadRequest{Match: subjects.MatchOutsOf(e.Object)}, func(now time.Duration, found []kbroker.Stored, ok bool) {
		var messages []ownership.Message
		for _, s := range found {
			m, err := decodeTell(s.Value)
			if err != nil { // it stays there, for who can read it
				k.log.Error("message of an object not readable", "object", e.Object, "key", s.Key, "err", err)
				continue
			}
			messages = append(messages, ownership.Message{
				Number: subjects.ParseOwnKey(s.Key).Number, Revision: s.Revision, Send: m.send(s.Value),
			})
		}
		k.owner.OutLoaded(now, e.Object, e.Number, messages, ok)
	})
}

// relay sends a message.
func (k *keeper) relay(e ownership.Relay) {
	m, err := decodeTell(e.Message.Value)
	m.last = k.places[place{e.Object, m.To.topic}]
	k.work.Go(func() {
		if err == nil {
			err = k.sendTell(e, m)
		}
		k.post(func(now time.Duration) { k.relayed(now, e, m, err) })
	})
}

// sendTell makes the call of a message, under its id, or publishes its event.
func (k *keeper) sendTell(e ownership.Relay, m *tell) error {
	ctx, cancel := context.WithTimeout(k.base, k.timeFor(e.Object, m))
	defer cancel()
	if m.To.topic != "" {
		return k.publishTold(ctx, e, m)
	}
	id := ownership.OutboxSession + outboxID(k.own.App, e.Object) + ":" + strconv.FormatUint(e.Message.Number, 10)
	to := m.target()
	to.client = k.app.client
	_, err := to.call(ctx, m.Method, m.data, []CallOption{func(c *call) {
		c.id, c.repeat = id, isIdempotent
		if m.ofHandler() { // what takes long is not to run twice for that
			c.repeat = notIdempotent
		}
		if !e.First { // as far as is known it may have run then
			c.since = max(boottime.Now()-max(time.Since(m.At), 0), 1)
		}
	}})
	return err
}

// relayed tells the machine what became of a message.
func (k *keeper) relayed(now time.Duration, e ownership.Relay, m *tell, err error) {
	taken := err == nil || errors.Is(err, kbroker.AnswerLost)
	switch {
	case m.To.topic == "":
	case taken:
		k.places.put(place{e.Object, m.To.topic}, m.last)
	case k.base.Err() == nil:
		k.complain(now, "store", err)
	}
	var follow *ownership.Call
	if !taken && m.isOver(kbroker.AsError(err)) {
		k.log.Warn("a call that an object told was refused", "object", e.Object, "to", m.To.String(), "method", m.Method, "err", err)
		if follow = k.followOf(e, m, kbroker.AsError(err)); follow == nil {
			taken = true // nobody wants to know
		}
	}
	k.owner.Relayed(now, e.Object, e.Activation, e.Message.Number, taken, follow)
	k.settle(now)
}

// isFinal reports whether an error says that a call will not take effect, however often it is
// sent again.
func isFinal(e *kbroker.Error) bool {
	switch e.Code {
	case kbroker.Unavailable, kbroker.Overloaded, kbroker.DeadlineExceeded, kbroker.Moved, kbroker.Deadlock:
		return false // an Internal that has run is any error of a method; a panic is not known to have
	case kbroker.Expired:
		return true
	case kbroker.NotFound, kbroker.Invalid:
		return e.Executed != kbroker.ExecutedUnknown
	}
	return e.Executed == kbroker.ExecutedYes
}

// isOver reports whether an error says that a message is done with.
func (t *tell) isOver(e *kbroker.Error) bool {
	switch {
	case t.To.topic != "":
		return false // until it is stored
	case t.Event == "":
		return isFinal(e)
	case e.Code == kbroker.NotFound && e.Executed == kbroker.ExecutedNo:
		return false // an instance of another version may have the method
	case t.ofHandler():
		return e.Code == kbroker.Invalid && e.Executed != kbroker.ExecutedUnknown || e.Code == kbroker.NotFound
	}
	return isFinal(e)
}

// followOf is the call of the sender that follows a refusal, or nil.
func (k *keeper) followOf(e ownership.Relay, m *tell, why *kbroker.Error) *ownership.Call {
	if m.OnFailure == "" {
		return nil
	}
	in := json.RawMessage(m.data)
	if !json.Valid(in) {
		in, _ = json.Marshal(m.data) // bytes
	}
	data, err := json.Marshal(Failure{Target: m.To.String(), Method: m.Method, In: in, Error: why})
	method := k.kinds[e.Object.Kind].methods[m.OnFailure]
	if err != nil || method == nil || method.readOnly {
		k.log.Error("nobody takes the failure of a call that an object told", "object", e.Object, "method", m.OnFailure, "err", err)
		return nil
	}
	session := "f." + outboxID(k.own.App, e.Object)
	id := session + ":" + strconv.FormatUint(e.Message.Number, 10)
	c := &heard{id: id, method: method, data: data, deadline: time.Now().Add(relayWithin), root: root{time.Now().UnixMicro(), id}, follows: true}
	return &ownership.Call{Object: e.Object, Session: session, Sequence: e.Message.Number, Hash: hashOf(m.OnFailure, data), Confirmed: e.Message.Number, Data: c}
}

// judge completes the turn of a message of an outbox, or one that follows a refusal: such a
// call is stored whatever it does, or has not run.
func (c *heard) judge(did *outcome) {
	e := did.failure
	switch {
	case e == nil || did.panicked:
	case c.told() && isFinal(e):
		kept := *e
		kept.Message = kept.Message[:min(len(kept.Message), maxRefusedBytes)]
		kept.Hint = ""
		did.turn.Refused, _ = json.Marshal(kept) // strings
	case c.told() || c.follows:
		did.turn.Reply.Outcome = ownership.Failed
	}
}

// told reports whether the request is a message of an outbox.
func (c *heard) told() bool { return ownership.IsOutbox(c.id) }

// refusedBefore is what a message was refused with.
func refusedBefore(data []byte) *kbroker.Error {
	e := &kbroker.Error{}
	if err := json.Unmarshal(data, e); err != nil || e.Code == "" {
		e = kbroker.Errorf(kbroker.Failed, "it was refused before")
	}
	e.Executed = kbroker.ExecutedYes
	return e
}
