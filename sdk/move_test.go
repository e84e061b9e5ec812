package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// serveOnce starts instances of a method that is not idempotent, spread over
// the servers.
func serveOnce(t *testing.T, c *natstest.Cluster, instances int, work time.Duration, opts ...Option) (*runs, []*running) {
	t.Helper()
	ran := &runs{}
	var all []*running
	for n := range instances {
		a := newAppOn(c, n%c.Size(), fmt.Sprintf("echo-echo-%d", n), opts...)
		once(a, ran, work)
		all = append(all, start(t, a))
	}
	return ran, all
}

// once serves a method that is not idempotent and counts its runs.
func once(a *App, ran *runs, work time.Duration) {
	Handle(a, "once", func(ctx context.Context, id string) (string, error) {
		ran.add(RequestIDOf(ctx))
		<-time.After(work) // the handler's work
		return id, nil
	})
}

// pinging asks an app like an agent does, until it is stopped.
func pinging(t *testing.T, nc *nats.Conn, a *App) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				t.Logf("%d pings answered", n)
				return
			case <-pace.C:
			}
			m, err := nc.Request(subjects.Ping(a.identity.Tenant, a.identity.Incarnation), nil, time.Second)
			if err != nil {
				t.Errorf("ping %d: %v", n, err)
				return
			}
			var p kbroker.PingReply
			if err := json.Unmarshal(m.Data, &p); err != nil || !p.Ready {
				t.Errorf("ping %d is answered %s, want ready", n, m.Data)
			}
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// server is the one that a client is on, by its name; empty: on none.
func (c *Client) server() string { return c.nats().link.Load().conn.ConnectedServerName() }

func (c *Client) nats() *natsTransport { return c.opened.Load().transport.(*natsTransport) }

// TestAnUpgradeOfTheCoresFailsNoRequest sends each server away in turn, under
// load of a method that may not be repeated.
func TestAnUpgradeOfTheCoresFailsNoRequest(t *testing.T) {
	t.Parallel()
	const instances, callers, perSecond = 6, 6, 700
	c := natstest.StartCluster(t, 3)
	meshed(t, c)
	ran, apps := serveOnce(t, c, instances, 5*time.Millisecond)
	began := time.Now()
	l := startLoad(t, c, "once", callers, perSecond)
	for i := range c.Size() {
		stop := pinging(t, c.Connect(t, (i+1)%c.Size()), apps[i].App)
		upgrade(t, c, i)
		before := l.answers.Load()
		wait.Until(t, patience, func() error {
			if l.answers.Load() < before+perSecond/2 {
				return errors.New("no load")
			}
			return nil
		})
		stop()
	}
	l.stop()
	l.check(t, ran, time.Since(began))
	if rate := float64(l.answers.Load()) / time.Since(began).Seconds(); rate < 500 {
		t.Errorf("%.0f requests/s, want 500 or more: the test shows nothing", rate)
	}
}

// TestSlowRequestsSurviveAMove has requests under way for longer than it takes
// a server to go: their answers come by the new connection.
func TestSlowRequestsSurviveAMove(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	meshed(t, c)
	ran, _ := serveOnce(t, c, 3, 4*time.Second)
	began := time.Now()
	l := startLoad(t, c, "once", 3, 60)
	begun := func() int {
		ran.mu.Lock()
		defer ran.mu.Unlock()
		return len(ran.of)
	}
	wait.Until(t, patience, func() error {
		if begun() < 20 {
			return errors.New("no load")
		}
		return nil
	})
	before := begun()
	<-c.LameDuck(t, 0)
	if n := l.answers.Load(); int(n) >= before {
		t.Errorf("%d of %d requests were over before the server had gone: the test shows nothing", n, before)
	}
	l.stop()
	l.check(t, ran, time.Since(began))
}

// TestTwoServersGoAtOnce leaves one server for all.
func TestTwoServersGoAtOnce(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	meshed(t, c)
	ran, apps := serveOnce(t, c, 3, 5*time.Millisecond)
	began := time.Now()
	l := startLoad(t, c, "once", 3, 300)
	first := c.LameDuck(t, 0)
	wait.Until(t, patience, func() error { // as soon as somebody has come from the first
		if got := apps[0].client.server(); got == "n1" {
			return errors.New("has not moved yet")
		}
		return nil
	})
	second := c.LameDuck(t, 1)
	<-first
	<-second
	for _, a := range apps {
		if got := a.client.server(); got != "n3" {
			t.Errorf("%s is on %q, want n3, the only server", a.identity.Instance, got)
		}
	}
	l.stop()
	l.check(t, ran, time.Since(began))
}

// TestAFrozenServerDoesNotDelayAMove: it accepts and says nothing.
func TestAFrozenServerDoesNotDelayAMove(t *testing.T) {
	c := natstest.StartCluster(t, 2)
	meshed(t, c)
	frozen := newProxy(t, natstest.Start(t))
	frozen.freeze()
	client, err := Dial(t.Context(), asServers(nil, c.URL(0), frozen.url, c.URL(1)))
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer client.Close()
	at := slices.Index([]string{"n1", "n2"}, client.server())
	back := client.back.wait()
	gone := c.LameDuck(t, at)
	wait.Until(t, patience, func() error {
		if got := client.server(); got != fmt.Sprintf("n%d", 2-at) {
			return fmt.Errorf("is on %q", got)
		}
		return nil
	})
	<-gone
	select {
	case <-back:
		t.Error("calls were told of a lost connection, want a move before it was lost")
	default:
	}
}

// TestAMoveNeedsAServerOfTheSameCluster: a core that has just started listens
// before it has routes.
func TestAMoveNeedsAServerOfTheSameCluster(t *testing.T) {
	here, alone := natstest.Start(t), natstest.Start(t)
	client, err := Dial(t.Context(), as(here.URL, nil))
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer client.Close()
	tr := client.nats()
	l := tr.link.Load()
	if err := tr.mover.move(t.Context(), t.Context(), l, []string{alone.URL}, false); !errors.Is(err, errNoAnswer) {
		t.Errorf("move to a server of no cluster: %v, want %v", err, errNoAnswer)
	}
	if tr.link.Load() != l {
		t.Error("it has moved")
	}
	if err := tr.mover.move(t.Context(), t.Context(), l, []string{"nats://localhost" + here.URL[strings.LastIndex(here.URL, ":"):]}, false); !errors.Is(err, errSame) {
		t.Errorf("move to the same server by another address: %v, want %v", err, errSame)
	}
}

// TestWithoutAnotherServerTheConnectionComesBack as it did before.
func TestWithoutAnotherServerTheConnectionComesBack(t *testing.T) {
	c := natstest.StartCluster(t, 2)
	meshed(t, c)
	ran, apps := serveOnce(t, c, 1, 0)
	client, err := Dial(t.Context(), asOn(c, 0, nil))
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer client.Close()
	client.budget = &budget{}
	c.Stop(1)
	wait.Until(t, patience, func() error {
		if got := client.server() + apps[0].client.server(); got != "n1n1" {
			return fmt.Errorf("are on %q", got)
		}
		return nil
	})
	back := client.back.wait()
	<-c.LameDuck(t, 0)
	wait.Until(t, patience, func() error { // what is sent before they see it is lost
		if got := client.server() + apps[0].client.server(); got != "" {
			return fmt.Errorf("are on %q", got)
		}
		return nil
	})
	result := make(chan error, 1)
	go func() {
		_, err := Call[string](t.Context(), client.Service("echo"), "once", "", RequestID("1"), Timeout(3*patience))
		result <- err
	}()
	c.Restart(t, 0)
	if err := <-result; err != nil || ran.of["1"] != 1 {
		t.Errorf("a call begun without a server: %v, ran %d times; want its answer", err, ran.of["1"])
	}
	select {
	case <-back:
	case <-time.After(patience):
		t.Error("calls were not told that the connection is back")
	}
}

// TestAnAppDrainsWhileItMoves loses nothing of either.
func TestAnAppDrainsWhileItMoves(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	meshed(t, c)
	ran, apps := serveOnce(t, c, 4, 50*time.Millisecond)
	began := time.Now()
	l := startLoad(t, c, "once", 3, 300)
	// 0 and 3 are on the server that goes: one leaves with its first word, one
	// in the middle of the move.
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		l := apps[0].client.nats().link.Load()
		wait.Until(t, patience, func() error {
			if _, lame := l.state(); !lame {
				return errors.New("not lame")
			}
			return nil
		})
		apps[0].stop()
		wait.Until(t, patience, func() error {
			if len(apps[3].client.nats().joins.open()) < 2 && apps[3].client.server() == "n1" {
				return errors.New("does not move")
			}
			return nil
		})
		apps[3].stop()
	}()
	gone := c.LameDuck(t, 0)
	<-stopped
	for _, n := range []int{0, 3} {
		if err := apps[n].ended(t); err != nil {
			t.Errorf("drain: %v", err)
		}
	}
	<-gone
	l.stop()
	l.check(t, ran, time.Since(began))
}
