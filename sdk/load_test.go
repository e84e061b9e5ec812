package sdk

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
)

// asServers is as, for a process that knows these servers.
func asServers(i *kbroker.InstanceFile, servers ...string) Option {
	return func(o *options) {
		o.log = slog.New(slog.DiscardHandler)
		o.find = func(string) (connect.Target, error) {
			return connect.Target{Servers: servers, Tenant: kbroker.DefaultTenant, Source: "test", Instance: i}, nil
		}
	}
}

// asOn is as, for a process that knows all servers of a cluster, beginning with
// the given one.
func asOn(c *natstest.Cluster, first int, i *kbroker.InstanceFile) Option {
	var servers []string
	for n := range c.Size() {
		servers = append(servers, c.URL((first+n)%c.Size()))
	}
	return asServers(i, servers...)
}

// newAppOn is an instance of echo/echo that begins on the given server.
func newAppOn(c *natstest.Cluster, first int, name string, opts ...Option) *App {
	i := instance(c.URL(first), name)
	return New(append([]Option{asOn(c, first, &i)}, opts...)...)
}

// runs counts how often each request was executed.
type runs struct {
	mu sync.Mutex
	of map[string]int
}

func (r *runs) add(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[string]int{}
	}
	r.of[id]++
}

// load calls a method that is not idempotent until it is stopped.
type load struct {
	stop    func()
	answers atomic.Int64
	failed  atomic.Int64
	unknown atomic.Int64
	retried atomic.Int64
	slowest atomic.Int64 // ns

	mu  sync.Mutex
	ids []string // of the calls that were answered
}

// startLoad has callers, each with a connection of its own, make calls at an
// even pace. Its result counts once stop has returned.
func startLoad(t *testing.T, c *natstest.Cluster, method string, callers, perSecond int, opts ...Option) *load {
	t.Helper()
	const lanes = 16 // of one caller
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{}
	var wg sync.WaitGroup
	for n := range callers {
		client, err := Dial(t.Context(), append([]Option{asOn(c, n%c.Size(), nil)}, opts...)...)
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		for lane := range lanes {
			wg.Go(func() {
				pace := time.NewTicker(time.Second * time.Duration(callers*lanes) / time.Duration(perSecond))
				defer pace.Stop()
				for seq := 0; ctx.Err() == nil; seq++ {
					select {
					case <-ctx.Done():
					case <-pace.C:
						l.call(client, method, fmt.Sprintf("%d-%d:%d", n, lane, seq))
					}
				}
			})
		}
		t.Cleanup(client.Close)
		context.AfterFunc(ctx, func() { l.retried.Add(int64(client.Stats().Retried)) })
	}
	l.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(l.stop)
	return l
}

func (l *load) call(c *Client, method, id string) {
	began := time.Now()
	_, err := Call[string](context.Background(), c.Service("echo"), method, id, RequestID(id))
	if took := int64(time.Since(began)); took > l.slowest.Load() {
		l.slowest.Store(took)
	}
	switch {
	case err == nil:
		l.answers.Add(1)
		l.mu.Lock()
		l.ids = append(l.ids, id)
		l.mu.Unlock()
	case kbroker.AsError(err).Executed == kbroker.ExecutedUnknown:
		l.unknown.Add(1)
	default:
		l.failed.Add(1)
	}
}

// check demands that all calls were answered and each ran exactly once.
func (l *load) check(t *testing.T, r *runs, took time.Duration) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Logf("%d answers in %v (%.0f/s), slowest %v; %d failed, %d unknown; %d sent again", l.answers.Load(), took.Round(time.Millisecond),
		float64(l.answers.Load())/took.Seconds(), time.Duration(l.slowest.Load()).Round(time.Millisecond), l.failed.Load(), l.unknown.Load(), l.retried.Load())
	if l.failed.Load() > 0 || l.unknown.Load() > 0 {
		t.Errorf("%d calls failed, of %d it is unknown whether they ran; want none of either", l.failed.Load(), l.unknown.Load())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range l.ids {
		if r.of[id] != 1 {
			t.Errorf("request %s was answered and ran %d times, want 1", id, r.of[id])
		}
	}
	if len(r.of) != len(l.ids) {
		t.Errorf("%d requests ran, %d were answered", len(r.of), len(l.ids))
	}
}

// upgrade sends a server away and brings it back into the cluster.
func upgrade(t *testing.T, c *natstest.Cluster, i int) {
	t.Helper()
	select {
	case <-c.LameDuck(t, i):
	case <-time.After(3 * patience):
		t.Fatalf("server %d is still there %v after it went into lame duck mode", i, 3*patience)
	}
	c.Restart(t, i)
	meshed(t, c)
}

func meshed(t *testing.T, c *natstest.Cluster) {
	t.Helper()
	wait.Until(t, 3*patience, func() error {
		for i := range c.Size() {
			if got := c.Mesh(i); got != c.Size()-1 {
				return fmt.Errorf("server %d has routes to %d others, want %d", i, got, c.Size()-1)
			}
		}
		return nil
	})
}
