package sdk

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Target is what a call goes to.
type Target struct {
	client  *Client // nil: that of the handler's context, or of the process
	app     kbroker.AppName
	service kbroker.ServiceName // of a service
	object  kbroker.Object      // of an object
	err     error
}

// Service is a service to call, by "app/service", or "app" for the app's
// service of the same name. A name that is not valid fails the call. Inside a
// handler it is called over the app's connection, elsewhere over that of the
// first New or Dial of the process.
func Service(name string) Target {
	app, service, found := strings.Cut(name, "/")
	if !found {
		service = app
	}
	err := kbroker.CheckName("app", app)
	if err == nil {
		err = kbroker.CheckName("service", service)
	}
	return Target{app: kbroker.AppName(app), service: kbroker.ServiceName(service), err: err}
}

// String is "app/service" or "app/kind:id".
func (t Target) String() string {
	if t.isObject() {
		return string(t.app) + "/" + t.object.String()
	}
	return string(t.app) + "/" + string(t.service)
}

// toCall is what the spec of a service that calls it names.
func (t Target) toCall() string {
	if t.isObject() {
		return string(t.app) + "/*"
	}
	return t.String()
}

// CallOption changes one call.
type CallOption func(*call)

// Timeout bounds the call; the context's deadline holds as well.
func Timeout(d time.Duration) CallOption {
	return func(c *call) { c.timeout = d }
}

// RequestID sets the id of the call, instead of one that the client makes. It
// is for programs that repeat a call of their own after a restart. An object knows
// the id for a minute: a program must not repeat its call later than that.
func RequestID(id string) CallOption {
	return func(c *call) { c.id = id }
}

// IdempotentCall says that this call may be sent again although it may have
// run already, whatever the service declares.
func IdempotentCall() CallOption {
	return func(c *call) { c.repeat = isIdempotent }
}

// Call sends in to a method and returns its answer. in is sent as JSON, a
// []byte as it is; the same holds for Out. See the package documentation for
// deadlines, resends and what an error says. errors.Is(err,
// context.DeadlineExceeded) and context.Canceled tell why a call gave up.
func Call[Out any](ctx context.Context, to Target, method string, in any, opts ...CallOption) (Out, error) {
	reply, err := to.call(ctx, method, in, opts)
	if err != nil {
		var none Out
		return none, err
	}
	out, err := decode[Out](reply.Data)
	if err != nil {
		e := kbroker.Errorf(kbroker.Invalid, "the answer of %s %s is not a %T: %v", to, method, out, err)
		e.Executed = kbroker.ExecutedYes
		return out, e
	}
	return out, nil
}

func (t Target) call(ctx context.Context, method string, in any, opts []CallOption) (*nats.Msg, error) {
	client, within := t.client, requestOf(ctx)
	if client == nil {
		client = clientOf(within)
	}
	switch {
	case t.err != nil:
		return nil, notRun(kbroker.AsError(t.err))
	case client == nil:
		return nil, notRun(kbroker.Errorf(kbroker.Invalid, "call of %s: this process has no client", t).WithHint("make one with sdk.New or sdk.Dial first"))
	}
	if err := subjects.CheckMethod(method); err != nil {
		return nil, notRun(kbroker.AsError(err))
	}
	data, err := encode(in)
	if err != nil {
		return nil, notRun(kbroker.Errorf(kbroker.Invalid, "the argument of %s %s: %v", t, method, err))
	}
	c := client.desks.get()
	defer client.desks.put(c)
	c.client, c.to, c.method, c.data, c.timeout = client, t, method, data, DefaultTimeout
	if t.isObject() {
		c.aim(client.isPlaced(t))
	} else {
		c.subject = subjects.Method(t.app, t.service, method)
	}
	deadline, bounded := ctx.Deadline()
	if bounded {
		c.timeout = time.Until(deadline)
	}
	for _, set := range opts {
		set(c)
	}
	if bounded {
		c.timeout = min(c.timeout, time.Until(deadline))
	}
	if e := c.identify(within); e != nil {
		return nil, e
	}
	defer c.done()
	if within.inChain() {
		c.asker.Store(within)
		within.wait(1)
		defer within.wait(-1)
	}
	return c.run(ctx)
}

// notRun marks an error of a call that sent nothing.
func notRun(e *kbroker.Error) *kbroker.Error {
	c := *e
	c.Executed = kbroker.ExecutedNo
	return &c
}

// call is one call with all its attempts. Owned by the caller's goroutine.
type call struct {
	client  *Client
	to      Target
	method  string
	subject string
	id      string
	data    []byte
	timeout time.Duration
	repeat  repeatable  // from IdempotentCall; what was learned is in the client
	header  nats.Header // in place of the desk's; nil: it has no others

	// Of a call of an object.
	linearizable bool
	sequence     uint64        // that it has of the client's; 0: it has an id of its own
	nested       *nested       // of the turn that makes it; nil: none does
	once         string        // what it is known by when that is repeated
	reads        bool          // its method does, as the answer says
	never        bool          // it has not run, and never will
	begun        time.Duration // as its owner is told, on the boottime clock
	since        time.Duration // when it may have run first, of a message of an outbox; 0: it has not
	unclear      int           // attempts of which it was said that nobody knows
	crossed      bool          // an attempt was taken back, as it crossed another call

	deadline time.Time
	sent     int            // attempts so far
	inARow   int            // attempts that certainly did not run
	paused   bool           // the next attempt goes at the next wake-up
	last     *kbroker.Error // why the latest attempt did not run
	where    *whereabouts   // of a placed object that nobody serves; nil: it is not asked for
	askedFor time.Time      // when that was asked for last
	full     *fullness      // of a service whose instances are full; nil: none has refused the call
	waiter   *waiter        // for its turn, if they are
	turned   bool           // the latest attempt was its turn, and the next one is, if that was refused
	sentAt   time.Time      // the latest attempt
	asked    *lookup        // discovery under way for the retry table
	found    *lookup        // discovery for the error message
	desk
}

// run sends attempts until one is answered for good or the deadline passes.
func (c *call) run(ctx context.Context) (*nats.Msg, error) {
	now := time.Now()
	began := now
	c.client.calls.Add(1)
	c.client.budget.call(now)
	c.deadline = now.Add(c.timeout)
	if c.timeout <= 0 || ctx.Err() != nil {
		return nil, c.givenUp(ctx)
	}
	t, err := c.client.open(ctx)
	if err != nil {
		return nil, notRun(kbroker.AsError(err))
	}
	defer c.clear(t)

	back, refused := c.client.back.wait(), c.client.refused.wait()
	defer c.endWait()
	pause, err := c.begin(t, now)
	if err != nil {
		return nil, err
	}
	c.timer.Reset(min(pause, c.timeout))
	for {
		var v verdict
		select {
		case a := <-c.answers:
			if !c.mine(a) {
				continue
			}
			reply, e, err := c.receive(ctx, a.msg)
			if reply != nil || err != nil {
				return reply, err
			}
			v = decide(e, c.idempotence(), len(c.open))
		case <-c.timer.C:
			v = c.wake()
		case <-c.waiter.turn():
			v, c.turned = resendNow, true
		case <-back:
			if c.client.hasEnded() {
				return nil, c.ended()
			}
			back = c.client.back.wait()
			v = decide(reconnected, c.idempotence(), len(c.open))
		case <-refused:
			if c.client.refusedSince(c.subject, began) {
				return nil, c.refused()
			}
			refused = c.client.refused.wait()
			continue
		case <-c.where.answered():
			if e := c.where.nowhere(); e != nil && len(c.open) == 0 {
				return nil, c.final(e, kbroker.ExecutedNo)
			}
			c.where = nil
			continue
		case <-c.asked.answered():
			c.asked = nil
			v = decide(learned, c.idempotence(), len(c.open))
		case <-ctx.Done():
			return nil, c.givenUp(ctx)
		}
		if now = time.Now(); !now.Before(c.deadline) {
			return nil, c.givenUp(ctx)
		}
		if pause, err = c.act(t, v, now); err != nil {
			return nil, err
		}
		c.timer.Reset(min(pause, time.Until(c.deadline)))
	}
}

// wake says what a wake-up by the timer means.
func (c *call) wake() verdict {
	switch {
	case c.paused && c.full != nil && !c.turned && c.full.flows(c.deadline):
		return keepWaiting // for its turn
	case c.paused:
		return resendNow
	case c.asked != nil:
		c.asked = nil
		return decide(learned, c.idempotence(), len(c.open))
	}
	return decide(timedOut, c.idempotence(), len(c.open))
}

// act carries a verdict out and returns when to wake up next.
func (c *call) act(t transport, v verdict, now time.Time) (time.Duration, error) {
	if c.tooOld() {
		return c.patience(), nil
	}
	switch v {
	case backOff:
		if c.inARow >= attemptsBeforeHopeless && len(c.open) == 0 && c.lacksMethod() {
			return 0, c.final(c.nobody(), kbroker.ExecutedNo)
		}
		return c.backOff(t), nil
	case askFirst:
		c.asked = c.client.lookup(t, c.to)
		return lookupTimeout, nil
	case backOffPaid:
		if c.client.budget.take(now) {
			return c.backOff(t), nil
		}
	case resendPaid:
		if c.client.budget.take(now) {
			return c.send(t, now)
		}
	case resendNow:
		return c.send(t, now)
	}
	if c.paused { // something else woke the call up
		if c.full != nil {
			return max(backoff(c.inARow), c.wait()), nil
		}
		return backoff(c.inARow), nil
	}
	return c.patience(), nil
}

// backOff pauses the call before its next attempt.
func (c *call) backOff(t transport) time.Duration {
	switch {
	case c.inARow < attemptsBeforeLookup:
	case c.to.object.Placed:
		if now := time.Now(); c.where == nil && now.Sub(c.askedFor) >= whereTimeout {
			c.where, c.askedFor = c.client.whereIs(t, c.to), now
		}
	case c.inARow == attemptsBeforeLookup && !c.to.isObject():
		c.found = c.client.lookup(t, c.to)
	}
	d := backoff(c.inARow)
	c.inARow++
	c.paused = true
	if c.turned {
		var again time.Duration
		if again, c.turned = c.full.kept(c.deadline); c.turned {
			return again
		}
	}
	if c.full != nil {
		d = max(d, c.wait())
	}
	return d
}

// begin makes the first attempt, or waits for it where others do.
func (c *call) begin(t transport, now time.Time) (time.Duration, error) {
	if !c.to.isObject() {
		c.full = c.client.full.crowded(c.subject)
	}
	if c.full == nil {
		return c.send(t, now)
	}
	c.last = kbroker.Errorf(kbroker.Overloaded, "the instances of %s are full", c.to)
	c.paused = true
	return c.wait(), nil
}

// wait has the call wait for its turn, and returns after which time it goes on without.
func (c *call) wait() time.Duration {
	c.turned = false
	if c.waiter == nil {
		c.waiter = newWaiter(c.deadline)
	}
	c.full.wait(c.waiter)
	return jitter(c.full.pause(c.timeout, time.Until(c.deadline).Seconds()/c.timeout.Seconds()))
}

// waitsAt is where it waits from here on: what was known of the method may have been forgotten while
// attempts were under way.
func (c *call) waitsAt(f *fullness) {
	if f != c.full {
		c.leave()
		c.full = f
	}
}

// endWait has it wait no more, as it is over.
func (c *call) endWait() {
	if c.waiter != nil && c.full != nil {
		c.full.end(c.waiter)
	}
}

// leave has it wait no more.
func (c *call) leave() {
	if c.waiter != nil && c.full != nil {
		c.full.leave(c.waiter)
	}
}

// send makes one attempt and returns when to wake up if it is not answered.
func (c *call) send(t transport, now time.Time) (time.Duration, error) {
	c.paused = false
	c.leave()
	c.sentAt = now
	c.stamp(now)
	slot, err := t.request(c.message(c.subject, c.data, c.id, c.header, c.deadline.Sub(now)), c.deliver)
	switch {
	case errors.Is(err, errNotConnected):
		c.turned = false
		c.last = kbroker.Errorf(kbroker.Unavailable, "there is no connection to the cluster").WithHint("`kbroker status` says which cores are up")
		return c.backOff(t), nil
	case errors.Is(err, errClosed):
		return 0, c.ended()
	case errors.Is(err, nats.ErrMaxPayload):
		e := kbroker.Errorf(kbroker.Invalid, "the request to %s %s has %d bytes, more than the cluster takes", c.to, c.method, len(c.data))
		return 0, c.final(e, kbroker.ExecutedNo)
	case errors.Is(err, nats.ErrBadSubject):
		return 0, c.final(kbroker.Errorf(kbroker.Invalid, "%s %s is not a subject", c.to, c.method), kbroker.ExecutedNo)
	case err != nil:
		slot = 0 // it may have left: nothing but time tells
	}
	if c.sent++; c.sent > 1 {
		c.client.retried.Add(1)
	}
	c.open = append(c.open, slot)
	return c.patience(), nil
}

// receive judges an answer: a reply or an error ends the call, otherwise the
// attempt certainly did not run and e says why.
func (c *call) receive(ctx context.Context, m *nats.Msg) (reply *nats.Msg, e event, err error) {
	failure, nobody := answerOf(m)
	switch {
	case nobody:
		c.last, c.turned = nil, false
		return nil, nobodyThere, nil
	case failure == nil:
		c.remember(m)
		return m, 0, nil
	case failure.Code == kbroker.Overloaded && failure.Executed == kbroker.ExecutedNo:
		c.last = failure
		if !c.to.isObject() { // of one it is the mailbox, which no other instance has
			c.waitsAt(c.client.full.refused(c.subject))
		}
		return nil, refusedNow, nil
	}
	if c.misaimed(m, failure) {
		c.last = failure
		return nil, refusedNow, nil
	}
	crossing := isCrossing(m, failure)
	if again, ok := c.againOf(failure, crossing); ok {
		c.last = failure
		return nil, again, nil
	}
	if crossing {
		requestOf(ctx).crosses()
	}
	c.remember(m)
	return nil, 0, c.final(failure, failure.Executed)
}

// patience is how long an attempt is waited for before something is done about it. That of
// an object is soon sent again once, as it takes effect once all the same: what was under
// way when the object moved, or its owner died, is lost, and nobody says so.
func (c *call) patience() time.Duration {
	d := attemptTime(c.timeout)
	if c.to.isObject() && c.unanswered() <= 1 {
		return min(d, c.timeout/attemptsPerSoon, maxSoon)
	}
	return d
}

// remember notes what a reply says of its method; whether that of an object may be sent
// again is the owner's affair.
func (c *call) remember(m *nats.Msg) {
	if !c.to.isObject() {
		c.client.full.answered(c.subject, time.Since(c.sentAt))
		c.client.remember(c.subject, m.Header)
	}
	c.reads = m.Header.Get(subjects.HeaderIdempotent) == "1"
}

// idempotence is what is known of the method now.
func (c *call) idempotence() repeatable {
	if c.repeat != notKnown {
		return c.repeat
	}
	return c.client.idempotence(c.subject)
}
