package client

import (
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/subjects"
)

// cluster is a server with handlers in the place of cores, leader and agents.
type cluster struct {
	t    *testing.T
	srv  *natstest.Server
	conn *nats.Conn
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	srv := natstest.Start(t)
	return &cluster{t: t, srv: srv, conn: srv.Connect(t)}
}

// client returns one that is in a hurry.
func (c *cluster) client() *Client {
	api := newClient(c.srv.Connect(c.t), kbroker.DefaultTenant, subjects.NoKey)
	api.pace = pace{
		readAttempt: 100 * time.Millisecond, readBudget: 2 * time.Second,
		writeAttempt: 100 * time.Millisecond, writeBudget: 2 * time.Second,
		chunkWait: 100 * time.Millisecond, commitProbe: 50 * time.Millisecond,
		followEvery: 5 * time.Millisecond, verdictHold: 50 * time.Millisecond,
		logEvery: 5 * time.Millisecond, listEvery: 10 * time.Millisecond, logWait: 200 * time.Millisecond,
		eventEvery: 5 * time.Millisecond,
	}
	return api
}

// serve answers a subject with what handle returns: an error as one, nil not
// at all.
func (c *cluster) serve(subject string, handle func(*nats.Msg) any) *nats.Subscription {
	c.t.Helper()
	sub, err := c.conn.Subscribe(subject, func(m *nats.Msg) {
		switch r := handle(m).(type) {
		case nil:
		case error:
			e := kbroker.AsError(r)
			_ = m.RespondMsg(&nats.Msg{Header: nats.Header{subjects.HeaderCode: {string(e.Code)}}, Data: encode(c.t, e)})
		default:
			_ = m.Respond(encode(c.t, r))
		}
	})
	if err == nil {
		err = c.conn.Flush()
	}
	if err != nil {
		c.t.Fatalf("serve %s: %v", subject, err)
	}
	return sub
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Errorf("marshal %T: %v", v, err)
	}
	return b
}

func parse[T any](t *testing.T, m *nats.Msg) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(m.Data, &v); err != nil {
		t.Errorf("request on %s: %v", m.Subject, err)
	}
	return v
}

// value is shared between a test and its handlers.
type value[T any] struct {
	mu sync.Mutex
	v  T
}

func (v *value[T]) get() T {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.v
}

func (v *value[T]) set(x T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.v = x
}

func ptr[T any](v T) *T { return &v }
