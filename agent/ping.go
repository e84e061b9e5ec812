package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// errNotTold: the connection of this host was down meanwhile.
var errNotTold = errors.New("not connected")

// pinger asks the processes of this host whether they are ready. What they answer
// with reaches subjects.Pong alone: inboxes are not shared with applications.
type pinger struct {
	conn *nats.Conn
	host kbroker.HostID

	mu      sync.Mutex
	waiting map[string]chan<- *nats.Msg // by question
}

func newPinger(cfg Config) *pinger {
	return &pinger{conn: cfg.Conn, host: cfg.Host, waiting: map[string]chan<- *nats.Msg{}}
}

// hear takes the answers until the connection is closed, or stop is called.
func (p *pinger) hear() (stop func(), err error) {
	sub, err := p.conn.Subscribe(subjects.Pong("*", p.host, "*"), func(m *nats.Msg) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if answer, ok := p.waiting[m.Subject]; ok {
			delete(p.waiting, m.Subject)
			answer <- m // of capacity 1
		}
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to the answers of processes: %w", err)
	}
	return func() { _ = sub.Unsubscribe() }, nil
}

// ask asks once, until ctx ends. errNotTold says nothing about the process.
func (p *pinger) ask(ctx context.Context, tenant kbroker.TenantID, inc kbroker.Incarnation) (kbroker.PingReply, error) {
	var r kbroker.PingReply
	before := p.conn.Stats().Reconnects
	if !p.conn.IsConnected() {
		return r, errNotTold
	}
	answer, err := p.once(ctx, tenant, inc)
	if err != nil {
		if !p.conn.IsConnected() || p.conn.Stats().Reconnects != before {
			return r, errNotTold
		}
		return r, err
	}
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		return r, err
	}
	if r.Incarnation != inc {
		return r, errors.New("another incarnation answers")
	}
	return r, nil
}

func (p *pinger) once(ctx context.Context, tenant kbroker.TenantID, inc kbroker.Incarnation) (*nats.Msg, error) {
	answer, on := make(chan *nats.Msg, 1), subjects.Pong(tenant, p.host, nuid.Next())
	p.mu.Lock()
	p.waiting[on] = answer
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.waiting, on)
	}()
	if err := p.conn.PublishRequest(subjects.Ping(tenant, inc), on, nil); err != nil {
		return nil, err
	}
	select {
	case m := <-answer:
		if m.Header.Get("Status") == noResponders {
			return nil, nats.ErrNoResponders
		}
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// noResponders is the status of the message by which a server says that nobody hears a
// question (NATS protocol).
const noResponders = "503"
