package sdk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of a durable subscription that has not set its own.
const (
	// DefaultAtOnce bounds the events that the handlers of SubscribeDurable work on at a time.
	DefaultAtOnce = 16
	// DefaultWithin is how long one run of such a handler may take.
	DefaultWithin = 10 * time.Second
)

// subscriptionKind is the kind of the objects that durable subscriptions are.
const subscriptionKind kbroker.KindName = "subscription"

// DurableOption changes one durable subscription.
type DurableOption func(*durableTopic)

// Named has the app subscribe to a topic once more, under another name: each of its
// subscriptions gets all events.
func Named(name string) DurableOption { return func(d *durableTopic) { d.name = name } }

// FromNow has a new subscription begin with the events that are published once its owner has
// seen it, in place of the oldest that is kept.
func FromNow() DurableOption { return func(d *durableTopic) { d.fromNow = true } }

// AtOnce bounds the events of a SubscribeDurable that all instances of the service work on at
// a time; the default is DefaultAtOnce. With 1 they come one after the other, in the order of
// the topic.
func AtOnce(n int) DurableOption { return func(d *durableTopic) { d.atOnce = n } }

// Within is how long one run of the handler of a SubscribeDurable may take; the default is
// DefaultWithin. Then its context ends, and the event is handled again. As long it takes until
// an event is handled again whose instance was lost.
func Within(d time.Duration) DurableOption { return func(t *durableTopic) { t.within = d } }

// SubscribeObject has each event of a durable topic, "app/topic", call a Method of the object
// of the kind that has the id key(event), with the event as its argument; an event for which
// key returns nothing calls none. The call takes effect once for each event, whatever fails
// meanwhile; those of one object come in the order of the topic. An event that is not an E,
// whose key is no id, or that the method refuses by an error (as with Tell: overloaded and the
// like, and panics, are tried again for ever) is logged, counted and passed by.
//
// Nobody has to be there when an event is published: a subscription is an object of the app,
// app/subscription:app/topic, whose state is where it is in the topic. The spec of the service
// names its kind as well: objects: [subscription, order]. It begins with the oldest event that
// is kept. Topics of other apps are named in the service's spec: subscribes: [app/topic]. Call
// it before Run, which returns what is wrong. See docs/events.md.
func SubscribeObject[T, E any](k *Kind[T], name string, key func(E) string, method string, opts ...DurableOption) {
	d := newDurableTopic(k.app, name, opts)
	d.check = func() error {
		if m := k.kind.methods[method]; m == nil || m.readOnly {
			return kbroker.Errorf(kbroker.Invalid, "the subscription of %s: objects of kind %s have no Method %.80q", d, k.kind.name, method)
		}
		return nil
	}
	d.forward = func(data []byte) (*tell, error) {
		event, err := decode[E](data)
		if err != nil {
			return nil, fmt.Errorf("it is not a %T: %w", event, err)
		}
		id := key(event)
		if id == "" {
			return nil, nil
		}
		o := kbroker.Object{Kind: k.kind.name, ID: id}
		return &tell{To: receiver{name: Target{app: k.app.identity.App, object: o}.String()}, Method: method}, o.Check()
	}
	k.app.addDurable(d)
}

// SubscribeDurable has fn called at least once with each event of a durable topic,
// "app/topic", by any instance of the service, for up to AtOnce events at a time; so in no
// order. What fn returns an error for, or panics, is handled again, after 50 ms at first and 5 s
// at last, for ever; but an error with the code Invalid or NotFound, and an event that is not
// a T, are logged, counted and passed by. An instance that is killed leaves what it worked on
// to others, Within later. The context ends then, or when the app leaves and its grace is over.
//
// Otherwise it is as SubscribeObject: the service is the one of its app that has objects, and
// its spec names the kind subscription among them.
func SubscribeDurable[T any](app *App, name string, fn func(context.Context, T) error, opts ...DurableOption) {
	d := newDurableTopic(app, name, opts)
	method := d.method()
	d.forward = func([]byte) (*tell, error) {
		to := Target{app: app.identity.App, service: app.identity.Service}
		return &tell{To: receiver{name: to.String()}, Method: method}, nil
	}
	d.handled = true
	app.addDurable(d)
	Handle(app, method, func(ctx context.Context, event T) (struct{}, error) {
		err := fn(ctx, event)
		if err != nil {
			app.log.Warn("handler of an event failed", "topic", d.String(), "err", err)
		}
		return struct{}{}, err
	}, Concurrency(max(d.atOnce, 1)))
}

// durableTopic is a durable subscription, as it is declared.
type durableTopic struct {
	app     kbroker.AppName
	topic   string
	name    string // of the subscription; empty: it is the only one
	fromNow bool
	atOnce  int
	within  time.Duration
	handled bool // by a handler of the service
	// forward is the call that an event makes, without the event; nil: none. The error says
	// why it is passed by. It may panic.
	forward func(data []byte) (*tell, error)
	check   func() error
}

func newDurableTopic(app *App, name string, opts []DurableOption) *durableTopic {
	of, which, _ := strings.Cut(name, "/")
	d := &durableTopic{app: kbroker.AppName(of), topic: which, atOnce: DefaultAtOnce, within: DefaultWithin, check: func() error { return nil }}
	for _, set := range opts {
		set(d)
	}
	err := errors.Join(kbroker.CheckName("app", of), kbroker.CheckName("topic", which))
	switch {
	case err != nil:
		err = kbroker.Errorf(kbroker.Invalid, "durable subscription of %q: %v", name, err).WithHint("a topic is named app/topic")
	case d.name != "":
		err = kbroker.CheckName("subscription", d.name)
	}
	if d.atOnce < 1 || d.within <= 0 {
		err = errors.Join(err, kbroker.Errorf(kbroker.Invalid, "durable subscription of %s: %d events at once, each within %v; want 1 or more, and more than nothing", name, d.atOnce, d.within))
	}
	app.err = errors.Join(app.err, err)
	return d
}

// String is the id of the subscription: app/topic, with its name behind if it has one.
func (d *durableTopic) String() string {
	if d.name != "" {
		return string(d.app) + "/" + d.topic + "/" + d.name
	}
	return string(d.app) + "/" + d.topic
}

func (d *durableTopic) object() kbroker.Object {
	return kbroker.Object{Kind: subscriptionKind, ID: d.String()}
}

func (d *durableTopic) subject() string { return subjects.Topic(d.app, d.topic) }

// method is that of the service which handles the events.
func (d *durableTopic) method() string {
	name := "event_" + strings.ReplaceAll(d.String(), "/", "_")
	if subjects.CheckMethod(name) != nil { // it is too long
		sum := sha256.Sum256([]byte(d.String()))
		name = "event_" + hex.EncodeToString(sum[:8])
	}
	return name
}

// addDurable is for SubscribeObject and SubscribeDurable.
func (a *App) addDurable(d *durableTopic) {
	if slices.ContainsFunc(a.durable, func(o *durableTopic) bool { return o.String() == d.String() }) {
		a.err = errors.Join(a.err, kbroker.Errorf(kbroker.Invalid, "topic %s has two durable subscriptions of one name", d).
			WithHint("the option Named gives one of them a name of its own"))
	}
	if len(a.durable) == 0 {
		a.kinds = append(a.kinds, kindOfSubscriptions())
	}
	a.durable = append(a.durable, d)
}

// durableOf is the subscription that an object is; nil: this program has none.
func (a *App) durableOf(o kbroker.Object) *durableTopic {
	for _, d := range a.durable {
		if d.object() == o {
			return d
		}
	}
	return nil
}

// timeFor bounds one relay of a message of an object.
func (k *keeper) timeFor(o kbroker.Object, m *tell) time.Duration {
	if !m.ofHandler() {
		return relayWithin
	}
	if d := k.app.durableOf(o); d != nil {
		return d.within
	}
	return DefaultWithin
}
