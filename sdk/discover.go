package sdk

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/kbroker/kbroker/subjects"
)

const (
	// lookupTimeout bounds how long a call waits for discovery.
	lookupTimeout = 500 * time.Millisecond
	// attemptsBeforeLookup is how often nobody must have been there before
	// discovery is asked whether the method exists at all.
	attemptsBeforeLookup = 5
	// attemptsBeforeHopeless is how often nobody must have been there before a
	// call ends that discovery has no method for: about half a second, in which
	// an instance that has the method may start.
	attemptsBeforeHopeless = 9
	// metaIdempotent is the endpoint metadata that declares a method
	// idempotent.
	metaIdempotent = "idempotent"
	// metaObject is that which names the kind of objects whose method it is.
	metaObject  = "object"
	metaDurable = "durable" // when its objects are stored
)

// lookup is one question to discovery, shared by all calls that want it.
type lookup struct {
	done    chan struct{} // closed after the answer; methods is set then
	started time.Time
	methods []string // nil: nobody answered
}

// answered is closed when the answer is there. nil never is.
func (l *lookup) answered() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.done
}

// known are the service's methods, if discovery has answered.
func (l *lookup) known() []string {
	select {
	case <-l.answered():
		return l.methods
	default:
		return nil
	}
}

// lookup asks one instance of a service what its methods are, or joins a
// question that is under way. What it says about idempotence is remembered
// before the lookup is done.
func (c *Client) lookup(t transport, to Target) *lookup {
	name := subjects.MicroName(to.app, to.service)
	l, fresh := c.joinLookup(name)
	if !fresh {
		return l
	}
	subject, err := micro.ControlSubject(micro.InfoVerb, name, "")
	if err != nil {
		return l
	}
	slot, err := t.request(&nats.Msg{Subject: subject}, func(_ uint64, m *nats.Msg) {
		l.methods = c.learn(m, subjects.Method(to.app, to.service, ""))
		close(l.done)
	})
	if err == nil {
		time.AfterFunc(lookupTimeout, func() { t.forget(slot) })
	}
	return l
}

func (c *Client) joinLookup(name string) (l *lookup, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if l := c.lookups[name]; l != nil && now.Sub(l.started) < lookupTimeout {
		return l, false
	}
	l = &lookup{done: make(chan struct{}), started: now}
	c.lookups[name] = l
	return l, true
}

// learn remembers which methods are idempotent and returns all their names.
func (c *Client) learn(m *nats.Msg, prefix string) []string {
	var info micro.Info
	if err := json.Unmarshal(m.Data, &info); err != nil {
		return nil // nobody there, or not a micro service
	}
	var names []string
	for _, e := range info.Endpoints {
		if name, ok := strings.CutPrefix(e.Subject, prefix); ok {
			names = append(names, name)
			c.methods.Store(e.Subject, e.Metadata[metaIdempotent] == "true")
		}
	}
	slices.Sort(names)
	return names
}

// remember notes what a reply of a handler says of its method. It holds until
// the next reply: a new version may have changed it.
func (c *Client) remember(subject string, h nats.Header) {
	if h.Get(subjects.HeaderInstance) == "" {
		return // not one of ours
	}
	is := h.Get(subjects.HeaderIdempotent) == "1"
	if was, ok := c.methods.Load(subject); !ok || was != is {
		c.methods.Store(subject, is)
	}
}

func (c *Client) idempotence(subject string) repeatable {
	is, known := c.methods.Load(subject)
	switch {
	case !known:
		return notKnown
	case is.(bool):
		return isIdempotent
	}
	return notIdempotent
}
