package sdk

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// transport moves raw messages. It is the seam between what a call means and
// how bytes travel: resends, typed errors and drain are above it, sockets and
// inboxes below. Safe for concurrent use. Callbacks must not block.
type transport interface {
	// publish sends one message, now or when the connection is back. The
	// message is the caller's again when it returned.
	publish(m *nats.Msg) error
	// request sends m with a reply subject of the transport's own and hands
	// the first answer to deliver, with the slot that the request has; the
	// answer can come before request returns. m is the caller's again then.
	// errNotConnected: m was not sent.
	request(m *nats.Msg, deliver func(slot uint64, m *nats.Msg)) (slot uint64, err error)
	// forget gives up a slot that was not answered. An answer that was on its
	// way may still be delivered. Slots are never used again, and none is 0.
	forget(slot uint64)
	// subscribe joins the queue group, or receives every message if queue is
	// empty.
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

const (
	// goneAfter is how long a drain waits for a lost connection.
	goneAfter = 300 * time.Millisecond
	gonePoll  = 20 * time.Millisecond
)

// natsTransport is the transport over one nats.go connection. Replies of all
// requests land on one wildcard subscription, like nats.go's own Request, but a
// slot stays open until the call is over, so that late answers count.
type natsTransport struct {
	conn  *nats.Conn
	inbox string // prefix of the reply subjects, with the last dot; the slot follows
	next  atomic.Uint64

	mu    sync.Mutex
	slots map[uint64]func(uint64, *nats.Msg)
}

const slotBase = 36

func newNATSTransport(conn *nats.Conn) (*natsTransport, error) {
	t := &natsTransport{conn: conn, inbox: conn.NewInbox() + ".", slots: map[uint64]func(uint64, *nats.Msg){}}
	if _, err := conn.Subscribe(t.inbox+"*", t.receive); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *natsTransport) receive(m *nats.Msg) {
	slot, err := strconv.ParseUint(m.Subject[len(t.inbox):], slotBase, 64)
	if err != nil {
		return // not one of ours
	}
	t.mu.Lock()
	deliver := t.slots[slot]
	delete(t.slots, slot)
	t.mu.Unlock()
	if deliver != nil {
		deliver(slot, m)
	}
}

func (t *natsTransport) publish(m *nats.Msg) error { return t.conn.PublishMsg(m) }

func (t *natsTransport) request(m *nats.Msg, deliver func(uint64, *nats.Msg)) (uint64, error) {
	if !t.conn.IsConnected() {
		if t.conn.IsClosed() {
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
	err := t.conn.PublishMsg(m)
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
	sub, err := t.conn.QueueSubscribe(subject, queue, handle)
	if err != nil {
		return nil, err
	}
	// The status "closed" comes before the last callback has returned; the
	// closed handler after it.
	s := &natsSubscription{conn: t.conn, sub: sub, closed: make(chan struct{})}
	sub.SetClosedHandler(func(string) { close(s.closed) })
	return s, nil
}

func (t *natsTransport) flush(ctx context.Context) error { return t.conn.FlushWithContext(ctx) }

func (t *natsTransport) close() { t.conn.Close() }

type natsSubscription struct {
	conn   *nats.Conn
	sub    *nats.Subscription
	closed chan struct{}
}

// drain does not wait for a bus that is gone: what was delivered before has
// been handed over long since, and there is nobody to unsubscribe from.
func (s *natsSubscription) drain(ctx context.Context) error {
	if err := s.sub.Drain(); err != nil {
		return err
	}
	poll := time.NewTicker(gonePoll)
	defer poll.Stop()
	seen := time.Now()
	for {
		select {
		case <-s.closed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case now := <-poll.C:
			if s.conn.IsConnected() {
				seen = now
			}
			if now.Sub(seen) > goneAfter {
				return errNotConnected
			}
		}
	}
}
