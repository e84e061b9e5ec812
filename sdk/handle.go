package sdk

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// HandleOption changes one method.
type HandleOption func(*method)

// Idempotent declares that the method may be run again with the same argument:
// callers send it again when an answer does not come.
func Idempotent() HandleOption { return func(m *method) { m.idempotent = true } }

// Concurrency bounds the requests of the method that one instance works on at a
// time; more are answered Overloaded. The default is DefaultConcurrency.
func Concurrency(n int) HandleOption { return func(m *method) { m.concurrency = n } }

// Handle serves a method of the app's service with fn. In and Out are JSON on
// the wire, []byte as it is. Runs of fn do not wait for each other, up to
// Concurrency; the goroutine of one may run others after it. The context ends
// with the caller's deadline, or when the app leaves and the grace is over. An
// error of fn is sent with its code (Internal if it has none) and counts as
// executed. Call Handle before Run; a mistake (a name that is not valid, a
// method twice) is returned by Run.
func Handle[In, Out any](app *App, name string, fn func(context.Context, In) (Out, error), opts ...HandleOption) {
	m := &method{name: name, concurrency: DefaultConcurrency}
	m.run = func(ctx context.Context, data []byte) ([]byte, *kbroker.Error) {
		in, err := decode[In](data)
		if err != nil {
			return nil, notRun(kbroker.Errorf(kbroker.Invalid, "the argument of %s is not valid: %v", name, err))
		}
		out, err := fn(ctx, in)
		if err != nil {
			return nil, executedYes(err)
		}
		reply, err := encode(out)
		if err != nil {
			return nil, executedYes(fmt.Errorf("encode the answer of %s: %w", name, err))
		}
		return reply, nil
	}
	for _, set := range opts {
		set(m)
	}
	app.add(m)
}

func executedYes(err error) *kbroker.Error {
	e := *kbroker.AsError(err)
	if e.Message != err.Error() {
		e.Message = err.Error() // what the handler wrapped around it
	}
	e.Executed = kbroker.ExecutedYes
	return &e
}

// method is one served method.
type method struct {
	name        string
	idempotent  bool
	concurrency int
	run         func(ctx context.Context, data []byte) ([]byte, *kbroker.Error)
	streams     *streams // in place of run; nil: it answers once

	// Set by serve.
	app    *App
	out    transport
	base   context.Context // of all handlers: ends when the grace is over
	header nats.Header     // of every reply; shared, never changed
	crew   *crew           // runs the handlers

	mu    sync.Mutex
	stats methodStats
}

type methodStats struct {
	requests, errors int
	refused          int // of the errors: requests beyond the bound
	lastError        string
	busy             time.Duration
}

// check reports what is wrong with the declaration.
func (m *method) check() error {
	if m.concurrency < 1 {
		return kbroker.Errorf(kbroker.Invalid, "method %s: concurrency is %d, want 1 or more", m.name, m.concurrency)
	}
	return subjects.CheckMethod(m.name)
}

// serve joins the service's queue group.
func (m *method) serve(app *App, base context.Context, t transport) (subscription, error) {
	m.app, m.out, m.base = app, t, base
	m.crew = newCrew(m.concurrency, m.handle)
	if m.streams != nil {
		m.crew = newCrew(m.concurrency, m.handleStream)
		if _, err := t.subscribe(subjects.StreamsTaken(app.identity.App, app.identity.Service, m.name, app.identity.Incarnation), "", m.streams.heard); err != nil {
			return nil, err
		}
	}
	m.header = nats.Header{subjects.HeaderInstance: {string(app.identity.Incarnation)}}
	if m.idempotent {
		m.header[subjects.HeaderIdempotent] = []string{"1"}
	}
	return t.subscribe(m.subject(), subjects.QueueService, m.receive)
}

func (m *method) subject() string {
	return subjects.Method(m.app.identity.App, m.app.identity.Service, m.name)
}

// receive has a handler run, or refuses at once: there is no queue in which a
// request could wait past its deadline.
func (m *method) receive(msg *nats.Msg) {
	timeout, bounded := parseTimeout(msg.Header)
	if !bounded {
		timeout = maxTimeout
	}
	if !m.crew.take(job{msg, time.Now().Add(timeout)}) {
		e := notRun(kbroker.Errorf(kbroker.Overloaded, "%s runs %d requests of %s, its bound", m.app.identity.Instance, m.concurrency, m.name).
			WithHint("another instance may have room; more instances: kbroker scale"))
		m.reply(msg, errorReply(msg.Reply, m.header, e))
		m.countRefused(e)
	}
}

// refuse answers a request that was taken and is not run.
func (m *method) refuse(msg *nats.Msg, e *kbroker.Error) {
	m.reply(msg, errorReply(msg.Reply, m.header, e))
	m.count(0, e)
}

// handle runs the handler and answers.
func (m *method) handle(j job) {
	start := time.Now()
	msg := j.msg
	ctx := &request{base: m.base, client: m.app.client, id: msg.Header.Get(subjects.HeaderRequestID), deadline: j.deadline, chain: chain(msg.Header.Get(subjects.HeaderChain))}
	if ctx.root, _ = parseRoot(msg.Header.Get(subjects.HeaderRoot)); ctx.root.id != "" && subjects.IsInbox(msg.Reply) {
		ctx.out, ctx.replyTo = m.out, msg.Reply
	}
	defer ctx.end()
	var body []byte
	var e *kbroker.Error
	if !start.Before(j.deadline) || m.base.Err() != nil { // it came too late, or waited for a processor until now
		e = notRun(kbroker.Errorf(kbroker.DeadlineExceeded, "the deadline of %s passed before it ran", m.name))
	} else {
		body, e = m.guarded(ctx, msg.Data)
	}
	out := &nats.Msg{Subject: msg.Reply, Header: m.header, Data: body}
	if e != nil {
		out = errorReply(msg.Reply, m.header, e)
		markCrossing(out, e, ctx.crossed.Load())
	}
	m.reply(msg, out)
	m.count(time.Since(start), e)
}

// guarded turns a panic of the handler into an answer. Whether it had its
// effect before it panicked is not known.
func (m *method) guarded(ctx context.Context, data []byte) (body []byte, e *kbroker.Error) {
	defer func() {
		if p := recover(); p != nil {
			m.app.log.Error("handler panicked", "method", m.name, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			body, e = nil, kbroker.Errorf(kbroker.Internal, "%s panicked", m.name).WithHint("the instance's log has the stack")
			e.Executed = kbroker.ExecutedUnknown
		}
	}()
	return m.run(ctx, data)
}

// reply sends an answer; a request without a reply subject wants none. One that is to be
// answered elsewhere than in an inbox has none: who asks would have this process, with its
// own rights, ask somebody else.
func (m *method) reply(msg, out *nats.Msg) {
	if !subjects.IsInbox(msg.Reply) {
		return
	}
	err := m.out.publish(out)
	if errors.Is(err, nats.ErrMaxPayload) {
		e := executedYes(kbroker.Errorf(kbroker.Invalid, "the answer of %s has %d bytes, more than the cluster takes", m.name, len(out.Data)))
		err = m.out.publish(errorReply(msg.Reply, m.header, e))
	}
	if err != nil {
		m.app.log.Warn("answer not sent", "method", m.name, "err", err)
	}
}

func (m *method) count(busy time.Duration, e *kbroker.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.add(busy, e)
}

// countRefused counts a request beyond the bound.
func (m *method) countRefused(e *kbroker.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.add(0, e)
	m.stats.refused++
}

// add counts a request.
func (s *methodStats) add(busy time.Duration, e *kbroker.Error) {
	s.requests++
	s.busy += busy
	if e != nil {
		s.errors++
		s.lastError = e.Message
	}
}

// idle waits until no handler runs, and lets none start from now on. It can be
// called again after ctx ended it.
func (m *method) idle(ctx context.Context) error { return m.crew.close(ctx) }
