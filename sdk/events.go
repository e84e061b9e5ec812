package sdk

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of events.
const (
	// maxEventBytes bounds one event: a message, less what its headers may take.
	maxEventBytes = 1<<20 - 4<<10
	// maxTurnEvents bounds those of one turn.
	maxTurnEvents = 64
	// maxWaitingEvents bounds those of one subscription that wait for the one in work.
	maxWaitingEvents = 256
)

// Publish tells whoever subscribes to a topic of the app that this program is. Nothing is
// stored: who is not there now, or too slow, does not hear it, and nobody is told. In the
// turn of an object it leaves when the turn has ended without an error, and is stored, if
// the object's instance lives to send it. event is sent as JSON, a []byte as it is. Errors:
// Invalid - the topic is no name, the event is too large or cannot be encoded, the program
// is no instance of an app, or the turn has published 64 already; Unavailable - it has no
// connection, and keeps no more until it is back.
func Publish(ctx context.Context, topic string, event any) error {
	client, data, err := eventOf(ctx, topic, event, maxEventBytes)
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: subjects.Topic(client.app, topic), Data: data}
	if t := turnOf(ctx); t != nil {
		return t.say(m)
	}
	conn, err := client.open(ctx)
	if err == nil {
		err = conn.publish(m)
	}
	if err != nil {
		return notRun(kbroker.Errorf(kbroker.Unavailable, "an event of topic %s was not sent: %v", topic, err))
	}
	return nil
}

// eventOf is an event as it is sent, and by whom.
func eventOf(ctx context.Context, topic string, event any, most int) (*Client, []byte, error) {
	client := clientOf(requestOf(ctx))
	if client == nil || client.app == "" {
		return nil, nil, notRun(kbroker.Errorf(kbroker.Invalid, "event of topic %q: this program is no instance of an app, whose event it would be", topic).
			WithHint("`kbroker run` makes a program one, and sdk.New without an agent: the app.yaml of the working directory"))
	}
	if err := kbroker.CheckName("topic", topic); err != nil {
		return nil, nil, notRun(kbroker.AsError(err))
	}
	data, err := encode(event)
	switch {
	case err != nil:
		return nil, nil, notRun(kbroker.Errorf(kbroker.Invalid, "an event of topic %s: %v", topic, err))
	case len(data) > most:
		return nil, nil, notRun(kbroker.Errorf(kbroker.Invalid, "an event of topic %s has %d bytes, at most %d are allowed", topic, len(data), most))
	}
	return client, data, nil
}

// say keeps an event until the turn is stored.
func (t *turn) say(m *nats.Msg) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.events) >= maxTurnEvents {
		return notRun(kbroker.Errorf(kbroker.Invalid, "the turn of %s publishes more than %d events", t.object, maxTurnEvents))
	}
	t.events = append(t.events, m)
	return nil
}

// said are the events of the turn.
func (t *turn) said() []*nats.Msg {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.events
}

// SubscribeOption changes one subscription.
type SubscribeOption func(*topic)

// Shared has each event heard by one instance of the service, in place of all.
func Shared() SubscribeOption { return func(t *topic) { t.shared = true } }

// Subscribe has fn called with the events of a topic, "app/topic", from when the app is
// ready until it leaves: one after the other, those of one publisher in order. Each instance
// hears each, or, with Shared, one of the service. Up to 256 wait while fn runs; more are
// dropped, and the log says so. While the connection moves to another server one may come
// twice. An error or a panic of fn is logged; so is an event that is not a T. The context
// ends when the app leaves and its grace is over. Topics of other apps are named in the
// service's spec (subscribes: [app/topic]): otherwise Run returns Refused. Call Subscribe
// before Run, which also returns that a name is not valid.
func Subscribe[T any](app *App, name string, fn func(context.Context, T) error, opts ...SubscribeOption) {
	of, which, _ := strings.Cut(name, "/")
	t := &topic{app: kbroker.AppName(of), name: which, over: make(chan struct{})}
	t.run = func(ctx context.Context, data []byte) error {
		event, err := decode[T](data)
		if err != nil {
			return fmt.Errorf("the event is not a %T: %w", event, err)
		}
		return fn(ctx, event)
	}
	for _, set := range opts {
		set(t)
	}
	err := errors.Join(kbroker.CheckName("app", of), kbroker.CheckName("topic", which))
	if err != nil {
		err = kbroker.Errorf(kbroker.Invalid, "subscription of %q: %v", name, err).WithHint("a topic is named app/topic")
	} else if slices.ContainsFunc(app.topics, func(o *topic) bool { return o.app == t.app && o.name == t.name }) {
		err = kbroker.Errorf(kbroker.Invalid, "topic %s is subscribed twice", name)
	}
	app.err = errors.Join(app.err, err)
	app.topics = append(app.topics, t)
}

// topic is one subscription. Safe for concurrent use once it listens.
type topic struct {
	app    kbroker.AppName
	name   string
	shared bool
	run    func(ctx context.Context, data []byte) error

	// Set by listen.
	of   *App
	base context.Context // of all handlers: ends when the grace is over

	mu      sync.Mutex
	waiting []*nats.Msg
	working bool
	dropped int // since the last that was not
	closed  bool
	over    chan struct{} // closed when closed, and nothing waits or works
}

func (t *topic) String() string { return string(t.app) + "/" + t.name }

func (t *topic) subject() string { return subjects.Topic(t.app, t.name) }

func (t *topic) listen(app *App, base context.Context, conn transport) (subscription, error) {
	t.of, t.base = app, base
	queue := ""
	if t.shared {
		queue = subjects.QueueTopic(app.identity.App, app.identity.Service)
	}
	return conn.subscribe(t.subject(), queue, t.hear)
}

// hear takes an event, or drops it: whoever serves the connection must not wait.
func (t *topic) hear(m *nats.Msg) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
	case len(t.waiting) >= maxWaitingEvents:
		if t.dropped++; t.dropped == 1 {
			t.of.log.Warn("events are dropped: the handler is too slow", "topic", t.String())
		}
	default:
		t.waiting, t.dropped = append(t.waiting, m), 0
		if !t.working {
			t.working = true
			go t.work() // waited for by close
		}
	}
}

func (t *topic) work() {
	for m := t.next(); m != nil; m = t.next() {
		if err := t.guarded(m.Data); err != nil {
			t.of.log.Warn("handler of an event failed", "topic", t.String(), "err", err)
		}
	}
}

// next is the event that has waited longest; nil: none does, and nobody works.
func (t *topic) next() *nats.Msg {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.working = false
		t.end()
		return nil
	}
	m := t.waiting[0]
	t.waiting = t.waiting[1:]
	return m
}

func (t *topic) guarded(data []byte) (err error) {
	ctx := &request{base: t.base, client: t.of.client, deadline: time.Now().Add(maxTimeout)}
	defer ctx.end()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return t.run(ctx, data)
}

// end says that it is over, once it is. Under mu.
func (t *topic) end() {
	if !t.closed || t.working {
		return
	}
	select {
	case <-t.over:
	default:
		close(t.over)
	}
}

// close takes no more events and returns nil when those that were taken are done. It can be
// called again after ctx ended it.
func (t *topic) close(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.end()
	t.mu.Unlock()
	select {
	case <-t.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refusedTopic is the error of an app that must not hear a topic.
type refusedTopic struct{ err *kbroker.Error }

func (r refusedTopic) Error() string { return r.err.Error() }

func (r refusedTopic) Unwrap() error { return r.err }

// watchTopics ends the app when the servers refuse one of its subscriptions.
func (a *App) watchTopics(ctx context.Context, leave context.CancelCauseFunc) {
	for {
		refused := a.client.refused.wait()
		for topic, subject := range a.hears() {
			if a.client.refusedSince(subject, a.started) {
				leave(refusedTopic{kbroker.Errorf(kbroker.Refused, "the credential of this process does not allow to hear topic %s", topic).
					WithHint("the spec of a service names the topics of other apps that it hears, as in subscribes: [%s]", topic)})
				return
			}
		}
		select {
		case <-refused:
		case <-ctx.Done():
			return
		}
	}
}

// hears are the topics that the app subscribes to, and their subjects.
func (a *App) hears() map[string]string {
	all := map[string]string{}
	for _, t := range a.topics {
		all[t.String()] = t.subject()
	}
	for _, d := range a.durable {
		all[string(d.app)+"/"+d.topic] = d.subject()
	}
	return all
}
