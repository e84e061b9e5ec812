package sdk

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// rateOver is the time over which turns are counted for their rate.
	rateOver = 5 * time.Second
	// maxRecent bounds the objects of a kind, those that were used last, of which the busy
	// ones are named.
	maxRecent = 1000
	// maxErrorBytes bounds an error of a turn that is kept.
	maxErrorBytes = 300
	// removeWithin bounds a deletion that somebody has asked for.
	removeWithin = 5 * time.Second
	// removal is the method of that turn, in words: no method can have that name.
	removal = "(deletion)"
)

// rate counts what happens now and then. The zero value has counted nothing.
type rate struct {
	since       time.Duration // when the count began
	count, last uint64        // now, and in the window before
}

func (r *rate) add(now time.Duration, n uint64) {
	r.roll(now)
	r.count += n
}

func (r *rate) roll(now time.Duration) {
	switch age := now - r.since; {
	case r.since == 0 || age >= 2*rateOver:
		*r = rate{since: now}
	case age >= rateOver:
		*r = rate{since: r.since + rateOver, last: r.count}
	}
}

// perSecond is over the last one to two windows.
func (r *rate) perSecond(now time.Duration) float64 {
	r.roll(now)
	if r.last == 0 {
		return float64(r.count) / max(now-r.since, time.Second).Seconds()
	}
	return float64(r.count+r.last) / (now - r.since + rateOver).Seconds()
}

// note takes that a turn of the object has ended.
func (u *use) note(now time.Duration, e *kbroker.Error) {
	u.ended(now, 1)
	u.failed(now, e)
}

// ended counts turns.
func (u *use) ended(now time.Duration, n uint64) {
	u.turns += n
	u.rate.add(now, n)
}

func (u *use) failed(now time.Duration, e *kbroker.Error) {
	if e != nil {
		text := strings.ToValidUTF8(e.Message[:min(len(e.Message), maxErrorBytes)], "")
		u.failure, u.failedAt = fmt.Sprintf("%s: %s", e.Code, text), now
	}
}

// beSeen answers the cores that ask what is owned here. A cluster that is older lets nobody
// ask.
func (k *keeper) beSeen() error {
	_, err := k.t.subscribe(subjects.Keeper(k.own.Tenant, k.own.Incarnation), "", k.asked)
	if err != nil {
		return fmt.Errorf("subscribe to questions of cores: %w", err)
	}
	return nil
}

// asked takes a question. What somebody else than a core asks is not answered.
func (k *keeper) asked(m *nats.Msg) {
	if !subjects.IsKept(m.Reply, k.own.Tenant, k.own.Incarnation) {
		return
	}
	var r kbroker.KeeperRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		k.tell(m.Reply, nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err))
		return
	}
	to := m.Reply
	if !k.add(func(now time.Duration) { k.attend(now, to, r) }, true) {
		k.tell(to, nil, k.overloaded("requests to look at"))
	}
}

// tell answers a core.
func (k *keeper) tell(to string, reply *kbroker.KeeperReply, e *kbroker.Error) {
	m := &nats.Msg{Subject: to}
	if e != nil {
		m = errorReply(to, nil, e)
	} else if body, err := json.Marshal(reply); err == nil {
		m.Data = body
	}
	if err := k.t.publish(m); err != nil {
		k.log.Warn("a core is not answered", "err", err)
	}
}

// attend does what a core asks for, on the loop.
func (k *keeper) attend(now time.Duration, to string, r kbroker.KeeperRequest) {
	if r.Kind == "" {
		k.tell(to, &kbroker.KeeperReply{Keeper: k.look(now)}, nil)
		return
	}
	o := kbroker.Object{Kind: r.Kind, ID: r.Object, Placed: slices.Contains(k.own.Placed, r.Kind)}
	kind := k.kinds[r.Kind]
	switch err := o.Check(); {
	case err != nil:
		k.tell(to, nil, kbroker.AsError(err))
		return
	case kind == nil:
		k.tell(to, nil, notRun(kbroker.Errorf(kbroker.NotFound, "%s has no objects of kind %s", k.own.Instance, r.Kind).WithHint("its kinds: %s", joined(k.kinds))))
		return
	case r.Verb != "" && (!k.owner.See(o).Serves || !k.owner.Valid(now)):
		k.tell(to, nil, notRun(kbroker.Errorf(kbroker.Moved, "%s does not own %s now", k.own.Instance, o)))
		return
	}
	said := ""
	switch r.Verb {
	case "":
	case kbroker.ObjectDeactivate:
		if said = k.deactivate(now, o); said == "" {
			k.tell(to, nil, notRun(kbroker.Errorf(kbroker.Overloaded, "%s is busy, or not stored yet: it stays in memory", o).WithHint("it can be put away when no call of it runs or waits")))
			return
		}
	case kbroker.ObjectRelease:
		if said = fmt.Sprintf("%s is not in quarantine", o); k.quarantine.free(o) {
			said = fmt.Sprintf("%s is not in quarantine any more", o)
			k.log.Info("an operator has ended the quarantine of an object", "object", o)
		}
	case kbroker.ObjectRemove:
		k.remove(now, to, kind, o, r.ID)
		return
	default:
		k.tell(to, nil, notRun(kbroker.Errorf(kbroker.Invalid, "an owner of objects does not know %q", r.Verb)))
		return
	}
	k.tell(to, &kbroker.KeeperReply{Object: k.lookAt(now, o), Message: said}, nil)
}

// deactivate puts an object away; empty: it is busy.
func (k *keeper) deactivate(now time.Duration, o kbroker.Object) string {
	if a := k.active[o]; a != nil && a.used != nil {
		if !k.putAway(now, a.used) {
			return ""
		}
		return fmt.Sprintf("%s is not in memory any more; its next call loads it again", o)
	}
	if k.owner.See(o).Active {
		return ""
	}
	return fmt.Sprintf("%s was not in memory", o)
}

// free ends the quarantine of an object, and reports whether it was there. Panics before do
// not count any more.
func (q quarantine) free(o kbroker.Object) bool {
	was := q.in[o] > 0
	delete(q.in, o)
	delete(q.panics, o)
	return was
}

// remove deletes an object by a turn, as any other: it waits for those before it, and its
// outbox is still sent. Nothing of the application runs, so that also an object goes that
// it cannot read.
func (k *keeper) remove(now time.Duration, to string, kind *kind, o kbroker.Object, id string) {
	session := "rm-" + id
	if _, _, ok := splitID(session + ":1"); !ok || id == "" {
		k.tell(to, nil, notRun(kbroker.Errorf(kbroker.Invalid, "%.80q names no request", id)))
		return
	}
	h := &heard{
		id: session + ":1", method: &objectMethod{kind: kind.name, name: removal, removes: true},
		deadline: time.Now().Add(removeWithin),
	}
	h.root = root{time.Now().UnixMicro(), h.id}
	h.done = func(e *kbroker.Error) {
		if e != nil {
			k.tell(to, nil, e)
			return
		}
		k.quarantine.free(o)
		k.log.Info("an operator has deleted an object", "object", o)
		k.tell(to, &kbroker.KeeperReply{Message: fmt.Sprintf("%s is deleted", o)}, nil)
	}
	if !k.owner.Begin(now, &ownership.Call{
		Object: o, Session: session, Sequence: 1, Hash: hashOf(removal, nil), Expires: now + removeWithin, Data: h,
	}) {
		h.done(notRun(kbroker.Errorf(kbroker.Moved, "%s does not own %s now", k.own.Instance, o)))
	}
}

// look is what the instance owns. It is asked for on the loop: what it takes must not grow
// with the objects in memory.
func (k *keeper) look(now time.Duration) *kbroker.KeeperSeen {
	shards, _ := k.owner.Serves()
	seen := &kbroker.KeeperSeen{
		Shards: shards, Active: map[kbroker.KindName]int{}, Mailbox: k.owner.Figures().Waiting, TurnsPerS: k.turns.perSecond(now),
	}
	var hot []kbroker.ObjectHot
	for name, kind := range k.kinds {
		used := k.idle[kind]
		if used == nil {
			seen.Active[name] = 0
			continue
		}
		seen.Active[name] = used.Len()
		at := used.Front()
		for range maxRecent {
			if at == nil || now-at.Value.(*use).at > 2*rateOver {
				break
			}
			u := at.Value.(*use)
			hot = append(hot, kbroker.ObjectHot{
				Object: string(k.own.App) + "/" + u.object.String(), TurnsPerS: u.rate.perSecond(now), Mailbox: k.owner.See(u.object).Waiting,
			})
			at = at.Next()
		}
	}
	slices.SortFunc(hot, func(a, b kbroker.ObjectHot) int {
		return cmp.Or(cmp.Compare(b.TurnsPerS, a.TurnsPerS), cmp.Compare(b.Mailbox, a.Mailbox), cmp.Compare(a.Object, b.Object))
	})
	seen.Hot = hot[:min(len(hot), kbroker.MaxHotObjects)]
	for o := range k.quarantine.in {
		seen.Quarantined = append(seen.Quarantined, kbroker.ObjectQuarantine{Object: string(k.own.App) + "/" + o.String(), Reason: k.quarantine.reason(o)})
	}
	slices.SortFunc(seen.Quarantined, func(a, b kbroker.ObjectQuarantine) int { return cmp.Compare(a.Object, b.Object) })
	seen.Quarantined = seen.Quarantined[:min(len(seen.Quarantined), kbroker.MaxHotObjects)]
	return seen
}

// lookAt is what the instance knows of an object.
func (k *keeper) lookAt(now time.Duration, o kbroker.Object) *kbroker.ObjectSeen {
	is := k.owner.See(o)
	seen := &kbroker.ObjectSeen{
		Serves: is.Serves && k.owner.Valid(now), Active: is.Active, Phase: is.Phase, Mailbox: is.Waiting, Quarantine: k.quarantine.reason(o),
		Durable: durability(k.kinds[o.Kind].durable),
	}
	if a := k.active[o]; a != nil {
		if u := a.noted(); u != nil {
			seen.Turns, seen.TurnsPerS = u.turns, u.rate.perSecond(now)
			if u.failure != "" {
				seen.LastError, seen.LastErrorAgo = u.failure, (now - u.failedAt).Seconds()
			}
		}
	}
	return seen
}

// noted is what is counted of an object in memory.
func (a *active) noted() *use {
	if a.used == nil {
		return nil
	}
	return a.used.Value.(*use)
}

// reason is why an object is in quarantine; empty: it is not.
func (q quarantine) reason(o kbroker.Object) string {
	if q.in[o] == 0 {
		return ""
	}
	return fmt.Sprintf("its turns have panicked %d times within %v", q.in[o], panicWindow)
}

// deleted is the turn of a removal.
func deleted(ctx *request, a *active, c *heard) outcome {
	as := outcome{turn: ownership.Turn{Exists: a.exists, State: a.raw, Schema: a.schema}}
	if ctx.Err() != nil {
		as.failure = notRun(kbroker.Errorf(kbroker.DeadlineExceeded, "the deadline of the deletion of %s passed before its turn", a.object))
		return as
	}
	if !a.exists {
		as.failure = kbroker.Errorf(kbroker.NotFound, "%s is not stored: there is nothing to delete", a.object)
		as.failure.Executed = kbroker.ExecutedNo
		return as
	}
	ctx.turn.deleted.Store(true) // its timers and reminders go as well
	as.leaves(ctx.turn, c, a)
	as.turn.Changed, as.turn.Exists, as.turn.State, as.turn.Schema = true, false, nil, 0
	return as
}
