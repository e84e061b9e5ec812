package sdk

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/subjects"
)

// bus is a broker in memory, without wildcards: queue groups in turn, "no
// responders", lost messages and lost connections. Delivery is synchronous, so
// that a test in a synctest bubble decides what happens when.
type bus struct {
	mu    sync.Mutex
	subs  map[string][]*busSub
	turn  int
	ends  []*busEnd
	inbox uint64
	// lose drops a message on its way. Called without the lock.
	lose func(*nats.Msg) bool
}

func newBus() *bus {
	return &bus{subs: map[string][]*busSub{}, lose: func(*nats.Msg) bool { return false }}
}

// busEnd is one connection to a bus: the second transport.
type busEnd struct {
	bus *bus
	on  connEvents

	mu   sync.Mutex
	down bool
	gone bool
}

type busSub struct {
	end            *busEnd
	subject, queue string
	handle         func(*nats.Msg)
	running        sync.WaitGroup
}

func (b *bus) connect(on connEvents) *busEnd {
	e := &busEnd{bus: b, on: on}
	b.mu.Lock()
	b.ends = append(b.ends, e)
	b.mu.Unlock()
	return e
}

func (e *busEnd) state() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.gone:
		return errClosed
	case e.down:
		return errNotConnected
	}
	return nil
}

// cut loses the connection, restore brings it back.
func (e *busEnd) cut() { e.mu.Lock(); e.down = true; e.mu.Unlock() }

func (e *busEnd) restore() {
	e.mu.Lock()
	e.down = false
	e.mu.Unlock()
	e.on.connected()
}

func (e *busEnd) publish(m *nats.Msg) error {
	if err := e.state(); err != nil {
		return err
	}
	e.bus.route(copied(m))
	return nil
}

func (e *busEnd) publishNow(m *nats.Msg) error { return e.publish(m) }

func (e *busEnd) request(m *nats.Msg, deliver func(uint64, *nats.Msg)) (uint64, error) {
	if err := e.state(); err != nil {
		return 0, err
	}
	e.bus.mu.Lock()
	e.bus.inbox++
	slot := e.bus.inbox
	e.bus.mu.Unlock()
	m = copied(m)
	m.Reply = inbox(slot)
	_, err := e.subscribe(m.Reply, "", func(m *nats.Msg) {
		if e.bus.removeInbox(slot) {
			deliver(slot, m)
		}
	})
	if err != nil {
		return 0, err
	}
	e.bus.route(m)
	return slot, nil
}

func (e *busEnd) forget(slot uint64) { e.bus.removeInbox(slot) }

func inbox(slot uint64) string { return subjects.Inbox("bus") + fmt.Sprintf(".%d", slot) }

// copied is what the receiver gets: the sender changes its own.
func copied(m *nats.Msg) *nats.Msg {
	c := nats.NewMsg(m.Subject)
	c.Reply, c.Data = m.Reply, m.Data
	for k, v := range m.Header {
		c.Header[k] = slices.Clone(v)
	}
	return c
}

func (e *busEnd) subscribe(subject, queue string, handle func(*nats.Msg)) (subscription, error) {
	s := &busSub{end: e, subject: subject, queue: queue, handle: handle}
	e.bus.mu.Lock()
	defer e.bus.mu.Unlock()
	e.bus.subs[subject] = append(e.bus.subs[subject], s)
	return s, nil
}

func (e *busEnd) flush(context.Context) error { return e.state() }

func (e *busEnd) close() {
	e.mu.Lock()
	e.gone = true
	e.mu.Unlock()
	e.on.closed()
}

func (s *busSub) drain(context.Context) error {
	s.end.bus.remove(s)
	s.running.Wait()
	return s.end.state()
}

// removeInbox reports whether the slot was open.
func (b *bus) removeInbox(slot uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, open := b.subs[inbox(slot)]
	delete(b.subs, inbox(slot))
	return open
}

func (b *bus) remove(s *busSub) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, o := range b.subs[s.subject] {
		if o == s {
			b.subs[s.subject] = append(b.subs[s.subject][:i:i], b.subs[s.subject][i+1:]...)
			return
		}
	}
}

// route delivers to every plain subscription and to one of each queue group.
func (b *bus) route(m *nats.Msg) {
	if b.lose(m) {
		return
	}
	b.mu.Lock()
	b.turn++
	var to []*busSub
	groups := map[string][]*busSub{}
	for _, s := range b.subs[m.Subject] {
		switch {
		case s.end.state() != nil:
		case s.queue == "":
			to = append(to, s)
		default:
			groups[s.queue] = append(groups[s.queue], s)
		}
	}
	for _, g := range groups {
		to = append(to, g[b.turn%len(g)])
	}
	for _, s := range to {
		s.running.Add(1)
	}
	b.mu.Unlock()
	if len(to) == 0 && m.Reply != "" {
		b.route(&nats.Msg{Subject: m.Reply, Header: nats.Header{headerStatus: {noResponders}}})
	}
	for _, s := range to {
		s.handle(m)
		s.running.Done()
	}
}

// on makes New and Dial use the bus and, with an instance, be it.
func on(b *bus, i *kbroker.InstanceFile) Option {
	return func(o *options) {
		o.log = slog.New(slog.DiscardHandler)
		o.find = func(string) (connect.Target, error) {
			return connect.Target{Tenant: kbroker.DefaultTenant, Instance: i}, nil
		}
		o.connect = func(connect.Target, string, *slog.Logger) dialFunc {
			return func(_ context.Context, on connEvents) (transport, error) { return b.connect(on), nil }
		}
	}
}
