package sdk

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// maxSessionBytes bounds the session of a request id: it is stored with the object.
const maxSessionBytes = 64

// heard is a request to an object, as it came.
type heard struct {
	reply    string
	id       string
	method   *objectMethod
	data     []byte
	deadline time.Time
	chain    chain
	root     root
	probes   bool // who asks hears who waits for whom

	// Of the keeper's loop.
	turn      *turn          // that runs it; nil: none does yet
	failure   *kbroker.Error // that its turn has ended with
	busy      time.Duration
	over      bool // its turn is
	crossed   bool // a call of its turn was refused, as it crossed another
	waits     waits
	timer     *timer          // that has begun it; nil: it was heard
	reminder  *reminder       // likewise
	overtaken bool            // it was ended, or set anew, while its turn waited, or may have been
	reminders map[string]*due // that its turn sets, and ends
	look      *look           // that it is, of a durable subscription
	follows   bool            // the refusal of a message: nobody waits for its answer
	// done is told the outcome in place of an answer; nil: it was heard.
	done func(*kbroker.Error)
}

// heads are the headers of replies; shared, never changed.
type heads = nats.Header

// headsOf are those of methods that only read, and of the others.
func headsOf(i *kbroker.InstanceFile) map[bool]heads {
	from := []string{string(i.Incarnation)}
	return map[bool]heads{
		false: {subjects.HeaderInstance: from},
		true:  {subjects.HeaderInstance: from, subjects.HeaderIdempotent: {"1"}},
	}
}

// hear is the callback of the subscription with a number.
func (k *keeper) hear(number uint64) func(*nats.Msg) {
	return func(m *nats.Msg) {
		if k.deaf.Load() {
			return
		}
		call, e := k.request(m)
		if e != nil && e.Code == kbroker.Moved {
			k.tellPlaced(m, e)
			return
		}
		if e != nil {
			k.refuse(m.Reply, e)
			return
		}
		if k.readNow(call) {
			return
		}
		taken := k.add(func(now time.Duration) {
			if e := k.quarantine.refuse(k.own, call.Object); e != nil {
				k.refuse(m.Reply, e)
				return
			}
			if len(k.lane(call.Data.(*heard)).waiting) >= maxHeard {
				k.refuse(m.Reply, k.overloaded("calls that wait for a place"))
				return
			}
			k.owner.Arrived(now, number, call)
			k.arrived(now, call)
		}, true)
		if !taken {
			k.refuse(m.Reply, k.overloaded("requests to look at"))
		}
	}
}

func (k *keeper) overloaded(what string) *kbroker.Error {
	return notRun(kbroker.Errorf(kbroker.Overloaded, "%s has %d %s, its bound", k.own.Instance, maxHeard, what).
		WithHint("more instances own fewer objects each: kbroker scale"))
}

// tellPlaced answers a call that came by the subject of a placed object, and its kind is not
// placed, or the other way round.
func (k *keeper) tellPlaced(m *nats.Msg, e *kbroker.Error) {
	_, shard, _, _, _ := subjects.ParseObjectMethod(m.Subject)
	if int64(k.now()) >= k.until.Load() {
		return
	}
	reply := errorReply(m.Reply, k.heads[false], e)
	reply.Header.Set(subjects.HeaderPlaced, strconv.FormatBool(!shard.OfOne()))
	k.send(reply)
}

// misplaced is the answer to who does not know whether the objects of a kind are placed, or takes
// them for what they were in another version.
func (k *keeper) misplaced(o kbroker.Object, placed bool) *kbroker.Error {
	if placed {
		return notRun(kbroker.Errorf(kbroker.Moved, "%s is a placed object", o))
	}
	return notRun(kbroker.Errorf(kbroker.Moved, "%s is no placed object", o))
}

// request reads a message.
func (k *keeper) request(m *nats.Msg) (*ownership.Call, *kbroker.Error) {
	invalid := func(format string, args ...any) (*ownership.Call, *kbroker.Error) {
		return nil, notRun(kbroker.Errorf(kbroker.Invalid, format, args...))
	}
	_, shard, kindName, method, ok := subjects.ParseObjectMethod(m.Subject)
	if !ok {
		return invalid("%q names no method of an object", m.Subject)
	}
	token := m.Header.Get(subjects.HeaderObject)
	id, ok := subjects.UnescapeID(token)
	o := kbroker.Object{Kind: kindName, ID: id, Placed: shard.OfOne()}
	switch {
	case !ok:
		return invalid("the header %s is %.80q, want an id of 1 to %d bytes, escaped", subjects.HeaderObject, token, kbroker.MaxObjectIDBytes)
	case o.Shard() != shard:
		return invalid("%s is in shard %d, and was called in shard %d", o, o.Shard(), shard)
	}
	kind := k.kinds[kindName]
	if kind == nil {
		return nil, notRun(kbroker.Errorf(kbroker.NotFound, "%s has no objects of kind %s", k.own.App, kindName).
			WithHint("its kinds: %s", joined(k.kinds)))
	}
	if is := slices.Contains(k.own.Placed, kindName); is != o.Placed {
		return nil, k.misplaced(o, is)
	}
	o.Kind = kind.name // that of the message would keep its subject for as long as the object is known
	c := &heard{reply: m.Reply, method: kind.methods[method], data: m.Data, chain: chain(m.Header.Get(subjects.HeaderChain))}
	if c.method == nil {
		return nil, notRun(kbroker.Errorf(kbroker.NotFound, "objects of kind %s have no method %s", kindName, method).
			WithHint("their methods: %s", joined(kind.methods)))
	}
	if e := c.chain.refuse(k.own.App, o); e != nil {
		return nil, e
	}
	session, sequence, err := sessionOf(m)
	if err != nil {
		return invalid("%v", err)
	}
	once := m.Header.Get(subjects.HeaderOnce)
	if len(once) > maxSessionBytes {
		return invalid("the header %s has %d bytes, at most %d are allowed", subjects.HeaderOnce, len(once), maxSessionBytes)
	}
	if c.id = session + ":" + strconv.FormatUint(sequence, 10); once != "" {
		c.id = once + ":1" // the calls that its turn makes are named by this
	}
	if c.root, ok = parseRoot(m.Header.Get(subjects.HeaderRoot)); !ok {
		c.root = root{time.Now().UnixMicro(), c.id}
	}
	c.probes = ok && c.chain != "" && subjects.IsInbox(m.Reply)
	timeout, bounded := parseTimeout(m.Header)
	if !bounded {
		timeout = maxTimeout
	}
	now := time.Now()
	c.deadline = now.Add(timeout)
	confirmed, _ := strconv.ParseUint(m.Header.Get(subjects.HeaderConfirmed), 10, 64)
	return &ownership.Call{
		Object: o, Session: session, Sequence: sequence, Once: once, Hash: hashOf(method, m.Data), Confirmed: confirmed,
		Age: ageOf(m, now), ReadOnly: c.method.readOnly, Linearizable: c.method.readOnly && m.Header.Get(subjects.HeaderLinearizable) == "1",
		Expires: k.now() + max(timeout, 1), Data: c,
	}, nil
}

func joined[K ~string, V any](all map[K]V) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		names = append(names, string(name))
	}
	return strings.Join(names, ", ")
}

// sessionOf splits the request's id. One without an id is a call of its own, the same if it
// comes twice.
func sessionOf(m *nats.Msg) (session string, sequence uint64, err error) {
	id := m.Header.Get(subjects.HeaderRequestID)
	if id == "" {
		sum := sha256.Sum256([]byte(m.Reply))
		return hex.EncodeToString(sum[:16]), 1, nil
	}
	session, sequence, ok := splitID(id)
	if !ok {
		return "", 0, fmt.Errorf("the header %s is %.80q, want <session>:<sequence>, the session of 1 to %d letters, digits, dots, - and _", subjects.HeaderRequestID, id, maxSessionBytes)
	}
	return session, sequence, nil
}

// splitID splits <session>:<sequence>.
func splitID(id string) (session string, sequence uint64, ok bool) {
	i := strings.LastIndexByte(id, ':')
	if i < 1 || i > maxSessionBytes {
		return "", 0, false
	}
	session = id[:i]
	for _, c := range []byte(session) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return "", 0, false
		}
	}
	sequence, err := strconv.ParseUint(id[i+1:], 10, 64)
	return session, sequence, err == nil
}

// hashOf tells what is asked from what else could be asked under the same id.
func hashOf(method string, data []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(method)) // never fails
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(data)
	return h.Sum64()
}

// ageOf is how long ago a call was begun, by the clock of its caller; of one that does not
// say, by the clocks of both hosts.
func ageOf(m *nats.Msg, now time.Time) time.Duration {
	if age, err := strconv.ParseInt(m.Header.Get(subjects.HeaderAge), 10, 64); err == nil && age >= 0 {
		return min(time.Duration(age), maxTimeout/time.Millisecond) * time.Millisecond
	}
	sent, err := strconv.ParseInt(m.Header.Get(subjects.HeaderSent), 10, 64)
	if err != nil {
		return 0
	}
	return max(now.Sub(time.UnixMilli(sent)), 0)
}

// answer sends the outcome of a call.
func (k *keeper) answer(now time.Duration, call *ownership.Call, a ownership.Answer) {
	c := call.Data.(*heard)
	e := failureOf(call, a)
	if a.Answer.Outcome == ownership.Done && e == nil && call == a.Calls[0] {
		k.turnedWell(now, call.Object, c.turn)
		c.turn.stored()
		k.reminders.apply(call.Object, c.reminders)
	}
	if c.timer != nil {
		k.fired(now, c, a.Answer.Outcome, e)
		c.method.count(c.busy, e)
		return
	}
	if c.reminder != nil {
		k.reminded(c, a.Answer.Outcome, e)
		c.method.count(c.busy, e)
		return
	}
	if c.follows {
		if e != nil {
			k.log.Warn("the turn that follows a refusal failed, and is tried again", "object", call.Object, "method", c.method.name, "err", e)
		}
		c.method.count(c.busy, e)
		return
	}
	if c.done != nil {
		c.done(e)
		return
	}
	if e != nil {
		reply := errorReply(c.reply, k.heads[c.method.readOnly], e)
		markCrossing(reply, e, a.Answer.Outcome == ownership.Crossed || a.Calls[0].Data.(*heard).crossed)
		k.send(reply)
	} else {
		k.send(&nats.Msg{Subject: c.reply, Header: k.heads[c.method.readOnly], Data: a.Answer.Data})
	}
	c.method.count(c.busy, e)
}

// failureOf is the error that a call is answered with, or nil.
func failureOf(call *ownership.Call, a ownership.Answer) *kbroker.Error {
	ran := a.Calls[0].Data.(*heard) // the others have joined it
	o, method, reason := call.Object, ran.method.name, a.Answer.Reason
	of := func(executed kbroker.Executed, e *kbroker.Error) *kbroker.Error {
		e.Executed = executed
		return e
	}
	switch a.Answer.Outcome {
	case ownership.Done, ownership.Failed:
		return ran.failure
	case ownership.Again:
		if a.Answer.Refused != nil {
			return refusedBefore(a.Answer.Refused)
		}
		if a.Answer.Cut {
			return of(kbroker.ExecutedYes, kbroker.Errorf(kbroker.AnswerLost, "%s of %s took effect before, and its answer was too large to be kept", method, o))
		}
		return nil
	case ownership.Broken:
		if ran.failure != nil {
			return ran.failure
		}
		return of(kbroker.ExecutedUnknown, kbroker.Errorf(kbroker.Internal, "%s of %s did not come to an end", method, o))
	case ownership.Moved:
		return of(kbroker.ExecutedNo, kbroker.Errorf(kbroker.Moved, "%s is on its way to another instance", o))
	case ownership.Overloaded:
		return of(kbroker.ExecutedNo, kbroker.Errorf(kbroker.Overloaded, "%s of %s: %s", method, o, reason))
	case ownership.Misused:
		return of(kbroker.ExecutedNo, kbroker.Errorf(kbroker.Invalid, "%s of %s under the id %s: %s", method, o, ran.id, reason).
			WithHint("a request id is of one call, and of all its attempts"))
	case ownership.Expired:
		return of(kbroker.ExecutedUnknown, kbroker.Errorf(kbroker.Expired, "%s of %s under the id %s is too old to tell whether it has taken effect", method, o, ran.id).
			WithHint("calls are known for a minute"))
	case ownership.TooLate:
		return of(kbroker.ExecutedNo, kbroker.Errorf(kbroker.DeadlineExceeded, "the deadline of %s of %s passed before its turn", method, o))
	case ownership.Crossed:
		return of(kbroker.ExecutedNo, kbroker.Errorf(kbroker.Deadlock, "%s waits for %s, which waits for it: %s", o, method, reason).
			WithHint("of calls that cross each other the younger one is refused; who began it sends it again"))
	case ownership.TooLarge:
		return tooLarge(o, reason)
	case ownership.Unknown:
	}
	return of(kbroker.ExecutedUnknown, kbroker.Errorf(kbroker.Unavailable, "it is not known what became of %s of %s: %s", method, o, reason))
}

// refuse answers a request that is no call, if the lease is held: of who has lost it, and
// does not know it yet, the next owner may have heard the same request, and execute it.
func (k *keeper) refuse(reply string, e *kbroker.Error) {
	if int64(k.now()) < k.until.Load() {
		k.send(errorReply(reply, k.heads[false], e))
	}
}

// send publishes an answer; see method.reply.
func (k *keeper) send(m *nats.Msg) {
	if !subjects.IsInbox(m.Subject) {
		return
	}
	err := k.t.publish(m)
	if errors.Is(err, nats.ErrMaxPayload) {
		e := executedYes(kbroker.Errorf(kbroker.Invalid, "the answer has %d bytes, more than the cluster takes", len(m.Data)))
		err = k.t.publish(errorReply(m.Subject, k.heads[false], e))
	}
	if err != nil {
		k.log.Warn("answer not sent", "err", err)
	}
}

func (m *objectMethod) count(busy time.Duration, e *kbroker.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.add(busy, e)
}
