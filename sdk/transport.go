package sdk

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
)

// transport moves raw messages. It is the seam between what a call means and
// how bytes travel: resends, typed errors and drain are above it, sockets and
// inboxes below. Safe for concurrent use. Callbacks must not block.
type transport interface {
	// publish sends one message, now or when the connection is back. The
	// message is the caller's again when it returned.
	publish(m *nats.Msg) error
	// publishNow is publish for what nobody wants later. errNotConnected: m was not sent.
	publishNow(m *nats.Msg) error
	// request sends m with a reply subject of the transport's own and hands
	// the first answer to deliver, with the slot that the request has; the
	// answer can come before request returns. m is the caller's again then.
	// Probes before it are delivered, too, and all of a stream. errNotConnected: m was not sent.
	request(m *nats.Msg, deliver func(slot uint64, m *nats.Msg)) (slot uint64, err error)
	// forget gives up a slot that was not answered. An answer that was on its
	// way may still be delivered. Slots are never used again, and none is 0.
	forget(slot uint64)
	// subscribe joins the queue group, or receives every message if queue is
	// empty: then some of them twice, while the transport changes servers.
	subscribe(subject, queue string, handle func(*nats.Msg)) (subscription, error)
	// flush returns nil when the other side has processed everything sent.
	flush(ctx context.Context) error
	// close ends it at once.
	close()
}

// subscription is one interest in a subject.
type subscription interface {
	// drain ends the interest and returns nil when every message that was
	// delivered has been handed to the callback and the callback returned.
	drain(ctx context.Context) error
}

var (
	errNotConnected = errors.New("not connected")
	errClosed       = errors.New("connection is closed")
)

// natsTransport is the transport over nats.go. Replies of all requests land on
// one wildcard subscription, like nats.go's own Request, but a slot stays open
// until the call is over, so that late answers count. It uses one connection,
// or two while it moves to another server (mover): the inbox is then on both,
// so that an answer finds its slot by either.
type natsTransport struct {
	log   *slog.Logger
	inbox string // prefix of the reply subjects, with the last dot; the slot follows
	next  atomic.Uint64
	link  atomic.Pointer[link] // the current one: where everything is sent

	mu    sync.Mutex
	slots map[uint64]func(uint64, *nats.Msg)

	joins joins
	mover mover
}

const slotBase = 36

// newNATSTransport connects. ctx bounds the first connection only.
func newNATSTransport(ctx context.Context, n *network, p pace, on connEvents) (*natsTransport, error) {
	t := &natsTransport{log: n.log, slots: map[uint64]func(uint64, *nats.Msg){}}
	t.mover = mover{t: t, network: n, pace: p, on: on, due: make(chan struct{}, 1), aged: make(chan struct{}, 1)}
	l, err := n.first(ctx, t.mover.events())
	if err != nil {
		return nil, err
	}
	t.inbox = l.conn.NewInbox() + "."
	if err := t.joins.begin(l, t.listen); err != nil {
		l.conn.Close()
		return nil, err
	}
	t.link.Store(l)
	t.mover.start()
	return t, nil
}

// listen subscribes the inbox.
func (t *natsTransport) listen(conn *nats.Conn) error {
	_, err := conn.Subscribe(t.inbox+"*", t.receive)
	return err
}

func (t *natsTransport) receive(m *nats.Msg) {
	slot, err := strconv.ParseUint(m.Subject[len(t.inbox):], slotBase, 64)
	if err != nil {
		return // not one of ours
	}
	t.mu.Lock()
	deliver := t.slots[slot]
	if !isProbe(m) && !isOfStream(m) { // the answer is still to come
		delete(t.slots, slot)
	}
	t.mu.Unlock()
	if deliver != nil {
		deliver(slot, m)
	}
}

func (t *natsTransport) publish(m *nats.Msg) error {
	for {
		l := t.link.Load()
		err := l.conn.PublishMsg(m)
		if !errors.Is(err, nats.ErrConnectionClosed) || l == t.link.Load() {
			return err
		}
	}
}

func (t *natsTransport) publishNow(m *nats.Msg) error {
	if !t.link.Load().conn.IsConnected() {
		return errNotConnected
	}
	return t.publish(m)
}

func (t *natsTransport) request(m *nats.Msg, deliver func(uint64, *nats.Msg)) (uint64, error) {
	for {
		l := t.link.Load()
		slot, err := t.requestOver(l.conn, m, deliver)
		if err != errClosed || l == t.link.Load() {
			return slot, err
		}
	}
}

// requestOver sends a request. errClosed: it was not sent.
func (t *natsTransport) requestOver(conn *nats.Conn, m *nats.Msg, deliver func(uint64, *nats.Msg)) (uint64, error) {
	if !conn.IsConnected() {
		if conn.IsClosed() {
			return 0, errClosed
		}
		return 0, errNotConnected
	}
	slot := t.next.Add(1)
	var space [64]byte
	m.Reply = string(strconv.AppendUint(append(space[:0], t.inbox...), slot, slotBase))
	t.mu.Lock()
	t.slots[slot] = deliver
	t.mu.Unlock()
	err := conn.PublishMsg(m)
	switch {
	case err == nil:
		return slot, nil
	case errors.Is(err, nats.ErrReconnectBufExceeded):
		err = errNotConnected
	case errors.Is(err, nats.ErrConnectionClosed):
		err = errClosed
	}
	t.forget(slot)
	return 0, err
}

func (t *natsTransport) forget(slot uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.slots, slot)
}

func (t *natsTransport) subscribe(subject, queue string, handle func(*nats.Msg)) (subscription, error) {
	return t.joins.add(subject, queue, handle)
}

// flush also flushes a link that is left: an answer can have gone over it.
func (t *natsTransport) flush(ctx context.Context) error {
	var others sync.WaitGroup
	defer others.Wait()
	now := t.link.Load()
	for _, l := range t.joins.open() {
		if l != now {
			others.Go(func() { _ = l.flush(ctx) }) // it may be lost already
		}
	}
	return now.conn.FlushWithContext(ctx)
}

func (t *natsTransport) close() {
	for _, l := range t.joins.close() {
		l.conn.Close()
	}
	t.mover.stop()
}
