// Package sdktest is a cluster inside a test: the instances of an application run in the
// process of its test, on a real message broker and its store, with the code that owns
// objects and gives them away as it runs in production. The test can kill instances, stop
// them, hold them, cut them off, and turn the clock.
//
//	func TestTransfer(t *testing.T) {
//		c := sdktest.New(t)
//		first := c.Run("bank/bank", serve) // what main calls, too
//		c.Run("bank/bank", serve)
//		alice := c.Object("bank/account:alice")
//		_, err := sdk.Call[account](t.Context(), alice, "deposit", amount{5})
//		...
//		c.Kill(first)
//	}
//
// What is not there: agents, hosts, credentials and permissions, quotas, rollouts, and a
// second server to move to. An instance that has lost its lease is started again, as an agent
// would. The test of a cluster of processes is `kbroker up`.
package sdktest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
	"github.com/kbroker/kbroker/super"
)

const (
	// patience bounds all that must happen soon.
	patience = 20 * time.Second
	// host is where all is, and process the start of its core.
	host    = kbroker.HostID("test")
	process = "test"
	// maxLog bounds what is kept of the log, for when the test fails.
	maxLog = 1 << 20
)

// Cluster is a cluster of one core inside a test. Safe for concurrent use.
type Cluster struct {
	t       testing.TB
	url     string
	log     *slog.Logger
	written *record
	conn    *nats.Conn
	store   *state.Store
	client  *sdk.Client
	ahead   atomic.Int64 // of the machine's clock
	number  atomic.Int64 // of instances

	turning sync.Mutex      // by one at a time
	running sync.WaitGroup  // instances and allocators
	ctx     context.Context // of allocators: ends with the test
	core    sync.WaitGroup  // what these need, to the last

	deploying sync.Mutex
	apps      map[kbroker.AppName]*app
	placed    map[kbroker.AppName]places

	mu        sync.Mutex
	instances []*Instance
	owners    map[kbroker.AppName]map[kbroker.Shard]kbroker.Incarnation
	renewals  map[kbroker.Incarnation]int
	renewed   chan struct{} // closed at the next one
}

// New starts a cluster that ends with the test. Its log is the test's, if that fails.
func New(t testing.TB) *Cluster {
	t.Helper()
	server := natstest.Start(t)
	c := &Cluster{
		t: t, url: server.URL, written: &record{}, apps: map[kbroker.AppName]*app{}, placed: map[kbroker.AppName]places{},
		owners: map[kbroker.AppName]map[kbroker.Shard]kbroker.Incarnation{}, renewals: map[kbroker.Incarnation]int{}, renewed: make(chan struct{}),
	}
	c.log = slog.New(slog.NewTextHandler(c.written, nil))
	c.conn = server.Connect(t)
	ctx, stop := context.WithCancel(context.Background())
	var leave context.CancelFunc
	c.ctx, leave = context.WithCancel(ctx)
	t.Cleanup(func() { c.end(leave, stop) })
	core, err := super.New(super.Config{
		Host: host, Process: process, Found: true, Dir: t.TempDir(), Conn: c.conn,
		Members: func() super.Members { return super.Members{} }, Log: c.log.With("component", "core"),
	})
	if err != nil {
		t.Fatalf("sdktest: %v", err)
	}
	c.core.Go(func() {
		if err := core.Answer(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("sdktest: the core ended: %v", err)
		}
	})
	wait.Until(t, patience, func() (err error) {
		c.store, err = state.Open(ctx, state.Config{Conn: c.conn, Host: host, Process: process, Times: state.Tuned})
		return err
	})
	if _, err := c.conn.Subscribe(subjects.AllOwned(kbroker.DefaultTenant), c.owned); err != nil {
		t.Fatalf("sdktest: hear who owns what: %v", err)
	}
	if c.client, err = sdk.Dial(ctx, sdk.At(c.url), sdk.Logger(c.log)); err != nil {
		t.Fatalf("sdktest: connect: %v", err)
	}
	return c
}

// Client calls what runs in the cluster; it is closed with the test.
func (c *Cluster) Client() *sdk.Client { return c.client }

// Object is an object to call, as in "bank/account:alice".
func (c *Cluster) Object(name string) sdk.Target { return c.client.Object(name) }

// Service is a service to call, as in "bank/ledger".
func (c *Cluster) Service(name string) sdk.Target { return c.client.Service(name) }

// Owner is the instance that owns an object, as in "bank/account:alice", once there is one
// that runs.
func (c *Cluster) Owner(object string) *Instance {
	c.t.Helper()
	name, rest, _ := strings.Cut(object, "/")
	kind, id, ok := strings.Cut(rest, ":")
	if !ok {
		c.t.Fatalf("sdktest: %q is no object: want app/kind:id", object)
	}
	shard := kbroker.Object{
		Kind: kbroker.KindName(kind), ID: id, Placed: slices.Contains(c.placedOf(kbroker.AppName(name)), kbroker.KindName(kind)),
	}.Shard()
	var owner *Instance
	wait.Until(c.t, patience, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		of := c.owners[kbroker.AppName(name)][shard]
		for _, i := range c.instances {
			if i.is(of) {
				owner = i
				return nil
			}
		}
		return fmt.Errorf("%s is owned by %q, which does not run", object, of)
	})
	return owner
}

// owned takes a change of who owns what.
func (c *Cluster) owned(m *nats.Msg) {
	_, app, key, ok := subjects.OwnershipKey(m.Subject)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch k := subjects.ParseOwnKey(key); k.Table {
	case subjects.OwnAssign:
		var a ownership.Assignment
		if json.Unmarshal(m.Data, &a) != nil {
			return // the allocator complains
		}
		if c.owners[app] == nil {
			c.owners[app] = map[kbroker.Shard]kbroker.Incarnation{}
		}
		c.owners[app][k.Shard] = a.Owner
	case subjects.OwnLease:
		c.renewals[k.Incarnation]++
		close(c.renewed)
		c.renewed = make(chan struct{})
	}
}

// end ends everything: instances as power that fails would, then allocators, then the core.
func (c *Cluster) end(leave, stop func()) {
	c.mu.Lock()
	all := c.instances
	c.mu.Unlock()
	for _, i := range all {
		i.kill()
	}
	if c.client != nil {
		c.client.Close()
	}
	leave()
	ended := make(chan struct{})
	go func() {
		c.running.Wait()
		stop()
		c.core.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		stop()
		c.t.Errorf("sdktest: handlers still run %v after their contexts have ended", patience)
	}
	if c.t.Failed() {
		c.t.Logf("log of the cluster:\n%s", c.written)
	}
}

// record keeps what was logged last.
type record struct {
	mu   sync.Mutex
	text []byte
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.text = append(r.text, b...); len(r.text) > 2*maxLog {
		r.text = append([]byte(nil), r.text[len(r.text)-maxLog:]...)
	}
	return len(b), nil
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(r.text)
}
