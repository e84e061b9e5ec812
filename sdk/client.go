package sdk

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
)

// Client makes calls over one connection. Safe for concurrent use; one per
// process is enough, and faster than several.
type Client struct {
	log     *slog.Logger
	dial    dialFunc
	tenant  kbroker.TenantID
	app     kbroker.AppName // whose events it publishes; empty: of none
	start   kbroker.Incarnation
	session string // of the request ids: random, one per client
	seq     atomic.Uint64
	inWork  inWork
	// nested are the calls of objects that turns make: they are over much later.
	nested    inWork
	nestedSeq atomic.Uint64
	budget    *budget
	refused   broadcast // fires when the servers have refused a subject
	// refusals has when they did so last, by subject (string to time.Time).
	refusals sync.Map
	back     broadcast // fires when the connection is (again) there, or will never be

	listening      listening
	placed         sync.Map // placedKey -> bool, as far as it is known
	methods        sync.Map // subject of a method -> bool: idempotent
	calls, retried atomic.Uint64
	desks          desks
	full           fullnesses
	senders        senders

	opened atomic.Pointer[opened]
	ended  chan struct{} // closed when the connection is closed for good

	mu      sync.Mutex
	over    bool
	lookups map[string]*lookup // by the service's name in discovery
}

// opened lets an interface be loaded atomically.
type opened struct{ transport }

// connEvents is what a transport tells its client.
type connEvents struct {
	connected func() // the connection is there, after it was not
	closed    func() // it will never be back
	// refused: the servers do not let this process publish to a subject. May be nil.
	refused func(subject string)
}

// Stats counts what a Client did since it was made.
type Stats struct {
	Calls   uint64 // calls begun
	Retried uint64 // attempts sent again, for whatever reason
}

// processClient serves targets that are bound to no client: the first client
// of the process that is not closed: one connection per process is the fastest.
var processClient atomic.Pointer[Client]

// Dial connects a program that only calls. It uses the cluster that the command
// line would use (option At, KBROKER_INSTANCE, KBROKER_DIR, ...). Errors:
// Unavailable - no cluster known, or none of its cores reachable before ctx
// ended; NotFound - what was named does not exist; Invalid - it is no context.
func Dial(ctx context.Context, opts ...Option) (*Client, error) {
	o := collect(opts)
	c, _, err := o.client("dial")
	if err != nil {
		return nil, err
	}
	if _, err := c.open(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func newClient(log *slog.Logger, dial dialFunc) *Client {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	c := &Client{
		log: log, dial: dial, tenant: kbroker.DefaultTenant, session: hex.EncodeToString(b[:]), budget: processBudget,
		ended: make(chan struct{}), lookups: map[string]*lookup{},
	}
	processClient.CompareAndSwap(nil, c)
	return c
}

// open returns the connection, made at its first use.
func (c *Client) open(ctx context.Context) (transport, error) {
	if o := c.opened.Load(); o != nil {
		return o.transport, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.opened.Load(); o != nil {
		return o.transport, nil
	}
	if c.over {
		return nil, kbroker.Errorf(kbroker.Unavailable, "the client is closed")
	}
	// The lock is held while dialling: everybody who waits for it wants this
	// very connection, and the dial is bounded by the servers it knows, 1 s each.
	t, err := c.dial(ctx, connEvents{connected: c.back.fire, closed: c.end, refused: c.refuse})
	if err != nil {
		return nil, err
	}
	c.opened.Store(&opened{t})
	return t, nil
}

// Close closes the connection; calls that wait end with Unavailable.
func (c *Client) Close() {
	c.mu.Lock()
	c.over = true
	o := c.opened.Load()
	c.mu.Unlock()
	processClient.CompareAndSwap(c, nil)
	if o != nil {
		o.close()
	}
	c.end()
}

// refuse ends the calls that go to a subject.
func (c *Client) refuse(subject string) {
	c.refusals.Store(subject, time.Now())
	c.refused.fire()
}

// refusedSince reports whether the servers have refused a subject since then.
func (c *Client) refusedSince(subject string, then time.Time) bool {
	at, ok := c.refusals.Load(subject)
	return ok && !at.(time.Time).Before(then)
}

// end wakes everybody who waits on a connection that will not come back.
func (c *Client) end() {
	defer c.back.fire() // after ended is closed
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if !c.hasEnded() {
		close(c.ended)
	}
}

func (c *Client) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// Stats counts what the client did.
func (c *Client) Stats() Stats {
	return Stats{Calls: c.calls.Load(), Retried: c.retried.Load()}
}

// Service is a service to call, by "app/service", or "app" for the app's
// service of the same name.
func (c *Client) Service(name string) Target {
	t := Service(name)
	t.client = c
	return t
}

// dialNATS is the dial of a client over nats.go.
func dialNATS(target connect.Target, name string, log *slog.Logger) dialFunc {
	return dialAt(calm, target, name, log)
}

func dialAt(p pace, target connect.Target, name string, log *slog.Logger) dialFunc {
	return func(ctx context.Context, on connEvents) (transport, error) {
		t, err := newNATSTransport(ctx, newNetwork(target, name, log), p, on)
		if err != nil {
			return nil, err // not t: a nil pointer is no nil transport
		}
		return t, nil
	}
}

// broadcast wakes all who wait. The zero value is ready.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that the next fire closes.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) fire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
