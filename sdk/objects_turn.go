package sdk

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"maps"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
)

// turn is one run of a method of an object, as its context knows it.
type turn struct {
	object   kbroker.Object
	epoch    uint64
	readOnly bool
	deleted  atomic.Bool
	calls    atomic.Uint64 // that it has made
	keeper   *keeper
	heard    *heard
	waits    atomic.Int64 // calls that it waits for
	apart    atomic.Bool  // the loop does not know of it yet

	mu       sync.Mutex
	timers   []timerSet
	tells    []*tell
	reminded []string // the reminders that there are, as it begins
	// reminders are those that it sets, and, as nil, those that it ends.
	reminders map[string]*due
	// toldBytes are those of their arguments.
	toldBytes int
	events    []*nats.Msg // that leave when it is stored
	nested    *nested     // nil: it has called no object yet
}

// turnOf is the turn that a context belongs to, or nil.
func turnOf(ctx context.Context) *turn {
	if r := requestOf(ctx); r != nil {
		return r.turn
	}
	return nil
}

// active is an object in memory. What is below once is its turn's, or that of its readers,
// to read; the keeper's loop makes a new one in place of changing it.
type active struct {
	object kbroker.Object
	number uint64 // of the activation
	kind   *kind
	used   *list.Element // in its kind's list
	raw    []byte        // as it is stored; nothing if it does not exist
	schema int           // of raw; 0: the first, or none
	exists bool

	once  sync.Once
	value any // *T, made of raw by the first run
	err   error
}

// afresh is the object as it is stored.
func (a *active) afresh() *active {
	return &active{object: a.object, number: a.number, kind: a.kind, used: a.used, raw: a.raw, schema: a.schema, exists: a.exists}
}

// open makes the value, in the first of its turns; timers are what OnActivate has set.
func (a *active) open(ctx *request) (timers []timerSet, err error) {
	a.once.Do(func() {
		a.err = kbroker.Errorf(kbroker.Internal, "%s was not activated: that panicked", a.object) // unless it comes to its end
		if a.value = a.kind.fresh(); a.exists {
			if a.value, err = a.kind.read(a.object, a.raw, a.schema); err != nil {
				a.err = err
				return
			}
		}
		timers, err = a.activate(ctx)
		a.err = err
	})
	return timers, a.err
}

// activate runs OnActivate, as a turn of its own that only reads.
func (a *active) activate(first *request) ([]timerSet, error) {
	if a.kind.activated == nil {
		return nil, nil
	}
	of := first.turn
	ctx := &request{
		base: first.base, client: first.client, id: first.id + "/activation", deadline: first.deadline, chain: first.chain, root: first.root,
		turn: &turn{object: a.object, epoch: of.epoch, readOnly: true, keeper: of.keeper, heard: of.heard},
	}
	defer ctx.end()
	if err := a.kind.activated(ctx, a.value); err != nil {
		return nil, notRun(kbroker.AsError(fmt.Errorf("%s was not activated: %w", a.object, err)))
	}
	return ctx.turn.wanted(), nil
}

// outcome is what a turn came to.
type outcome struct {
	turn     ownership.Turn
	failure  *kbroker.Error // what is answered in place of the reply
	panicked bool
	spoiled  bool // the value is not what is stored
	crossed  bool // a call of the turn was refused, as it crossed another
	// activated are the timers that OnActivate has set.
	activated []timerSet
	reminders map[string]*due // that it sets, and, as nil, ends
}

// perform runs a call on an object.
func (k *keeper) perform(ctx *request, a *active, c *heard) outcome {
	as := outcome{turn: ownership.Turn{Exists: a.exists, State: a.raw, Schema: a.schema}}
	fail := func(e *kbroker.Error) outcome {
		as.failure = e
		return as
	}
	switch {
	case c.overtaken:
		return as
	case c.method.removes:
		return deleted(ctx, a, c)
	}
	var reply []byte
	e, panicked := k.guarded(a, c, func() (e *kbroker.Error) {
		var err error
		if as.activated, err = a.open(ctx); err != nil {
			as.spoiled = true // the next one tries again
			return kbroker.AsError(err)
		}
		if ctx.Err() != nil {
			return notRun(kbroker.Errorf(kbroker.DeadlineExceeded, "the deadline of %s of %s passed before its turn", c.method.name, a.object))
		}
		as.spoiled = !c.method.readOnly
		if c.reminder != nil && (!a.exists || c.reminder.due.missed(time.Now())) {
			return nil // the object was deleted since, or the time was missed
		}
		reply, e = c.method.run(ctx, a.value, c.data)
		return e
	})
	if as.panicked = panicked; panicked {
		as.turn.Reply.Outcome, as.failure = ownership.Broken, e
		return as
	}
	if c.method.readOnly {
		as.turn.Reply.Data = reply
		return fail(e)
	}
	if e != nil {
		return fail(e)
	}
	switch gone := ctx.turn.deleted.Load(); {
	case c.reminder != nil && !a.exists:
		as.spoiled, as.turn.Changed = false, as.leaves(ctx.turn, c, a)
		return as
	case gone:
		as.turn.Reply.Data = reply
		as.turn.Changed, as.turn.Exists, as.turn.State = as.leaves(ctx.turn, c, a) || ctx.turn.hasNested() || a.exists, false, nil
		as.turn.Schema = 0
		return as
	}
	state, in, err := a.kind.write(a.value)
	switch {
	case err != nil:
		return fail(executedYes(fmt.Errorf("encode the state of %s: %w", a.object, err)))
	case len(state) > kbroker.MaxObjectBytes:
		return fail(tooLarge(a.object, fmt.Sprintf("a state of %d bytes", len(state))))
	case len(state) > largeState && !a.kind.warned.Swap(true):
		k.log.Warn("objects of a kind are large; each turn that changes one writes all of it", "kind", a.kind.name, "object", a.object, "bytes", len(state))
	}
	as.turn.Reply.Data, as.spoiled = reply, false
	if as.turn.Changed = as.leaves(ctx.turn, c, a) || ctx.turn.hasNested() || !a.exists || in != a.schema || !bytes.Equal(state, a.raw); as.turn.Changed {
		as.turn.Exists, as.turn.State, as.turn.Schema = true, state, in
	}
	return as
}

func tooLarge(o kbroker.Object, what string) *kbroker.Error {
	e := kbroker.Errorf(kbroker.Failed, "%s is more than is stored of %s: at most %d, with what is known of its latest calls", what, o, kbroker.MaxObjectBytes).
		WithHint("the turn was taken back; keep less in one object")
	e.Executed = kbroker.ExecutedYes
	return e
}

// leaves adds to a turn that has come to its end what it leaves beside the state, and reports
// whether there is something.
func (as *outcome) leaves(t *turn, c *heard, a *active) bool {
	as.reminders = t.wantedReminders()
	if t.deleted.Load() {
		as.reminders = map[string]*due{}
		for _, name := range t.reminded { // others are found to be of no object when they are due
			as.reminders[name] = nil
		}
	}
	as.turn.Sends, as.turn.Writes = t.sends(), reminderWrites(a.object, as.reminders)
	if c.reminder != nil {
		done := c.rescheduled(as.reminders, a.exists && !t.deleted.Load())
		as.turn.After = reminderWrites(a.object, done)
		if as.reminders == nil {
			as.reminders = map[string]*due{}
		}
		maps.Copy(as.reminders, done)
	}
	return len(as.turn.Sends)+len(as.turn.Writes)+len(as.turn.After) > 0
}

// guarded runs the application's part; its panic is an answer.
func (k *keeper) guarded(a *active, c *heard, run func() *kbroker.Error) (e *kbroker.Error, panicked bool) {
	defer func() {
		if p := recover(); p != nil {
			k.log.Error("turn panicked", "object", a.object, "method", c.method.name, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			panicked = true
			e = kbroker.Errorf(kbroker.Internal, "%s of %s panicked", c.method.name, a.object).WithHint("what it did to the object was taken back; the instance's log has the stack")
			e.Executed = kbroker.ExecutedUnknown
		}
	}()
	return run(), false
}

// begin is for the effect Run: a turn, when there is a place for one more.
func (k *keeper) begin(e ownership.Run) {
	a, c := k.active[e.Object], e.Call.Data.(*heard)
	if a == nil || a.number != e.Activation {
		return // it was put away: the machine has asked for nothing of it since
	}
	k.idle.use(a, k.now())
	c.turn = &turn{object: e.Object, epoch: e.Epoch, readOnly: c.method.readOnly, keeper: k, heard: c, reminded: k.reminders.names(e.Object)}
	if r := c.reminder; r != nil {
		c.overtaken = k.reminders.get(r.id) != r || !r.sure
	}
	k.crossings.begun(c)
	l := k.lane(c)
	l.waiting = append(l.waiting, func() { k.turn(e, a, c) })
	l.next()
}

// lane is a number of turns that run at a time.
type lane struct {
	bound   int
	running atomic.Int64 // changed by the loop alone
	waiting []func()
}

// lane is that of a call: those that turns make have one of their own, so that turns which
// wait for them do not take their places.
func (k *keeper) lane(c *heard) *lane {
	if c.chain != "" {
		return &k.nested
	}
	return &k.roots
}

// next begins the turns that have a place. They are waited for by rest.
func (l *lane) next() {
	for l.running.Load() < int64(l.bound) && len(l.waiting) > 0 {
		begin := l.waiting[0]
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]
		l.running.Add(1)
		go begin()
	}
}

func (l *lane) idle() bool { return l.running.Load() == 0 && len(l.waiting) == 0 }

// busy is the part of the bound that runs. Safe for concurrent use.
func (l *lane) busy() float64 { return float64(l.running.Load()) / float64(l.bound) }

// turn is on a goroutine of its own.
func (k *keeper) turn(e ownership.Run, a *active, c *heard) {
	began := time.Now()
	ctx := &request{
		base: k.base, client: k.app.client, id: c.id, deadline: c.deadline, chain: c.chain, root: c.root,
		turn: c.turn,
	}
	did := outcome{turn: ownership.Turn{Reply: ownership.Reply{Outcome: ownership.Broken}}}
	defer func() { // also if the method ends its goroutine
		ctx.end()
		did.crossed = ctx.crossed.Load()
		k.post(func(now time.Duration) { k.turned(now, e, a, c, did, time.Since(began)) })
	}()
	did = k.perform(ctx, a, c)
}

// turned tells the machine what a turn did.
func (k *keeper) turned(now time.Duration, e ownership.Run, a *active, c *heard, did outcome, busy time.Duration) {
	l := k.lane(c)
	l.running.Add(-1)
	l.next()
	c.failure, c.busy, c.crossed, c.reminders = did.failure, busy, did.crossed, did.reminders
	c.judge(&did)
	k.crossings.over(c)
	k.timers.apply(now, e.Object, k.own.Incarnation, did.activated, true)
	stored := 0
	if did.turn.Changed {
		stored = len(did.turn.State)
	}
	k.counted(now, e.Object, 1, busy, stored)
	if u := a.noted(); u != nil && !c.method.removes {
		u.note(now, did.failure)
	}
	if did.panicked {
		k.quarantine.panicked(now, e.Object)
		k.gates.forget(e.Object)
	}
	if current := k.active[e.Object]; current == a {
		switch {
		case did.panicked || did.spoiled && !did.turn.Changed:
			k.replace(a.afresh())
		case did.turn.Changed:
			next := a
			if !did.turn.Exists {
				next = a.afresh()
				k.replace(next)
			}
			next.raw, next.schema, next.exists = did.turn.State, did.turn.Schema, did.turn.Exists
		}
	}
	if c.method.readOnly && !e.Call.Linearizable {
		if k.active[e.Object] == a {
			k.gates.lend(a)
		}
		k.owner.ReadDone(now, e.Object, e.Activation, e.Call, did.turn.Reply)
		return
	}
	k.owner.Turned(now, e.Object, e.Activation, did.turn)
}
