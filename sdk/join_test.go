package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
)

// brief has links close soon after they were left.
func brief(o *options) {
	at(o, pace{linger: 20 * time.Millisecond, homeMin: time.Hour, homeMax: time.Hour})
}

// at gives New and Dial a pace.
func at(o *options, p pace) {
	o.connect = func(target connect.Target, name string, log *slog.Logger) dialFunc {
		return dialAt(p, target, name, log)
	}
}

// to moves a client to a server.
func (c *Client) to(t *testing.T, url string) {
	t.Helper()
	tr := c.nats()
	wait.Until(t, patience, func() error { // errBusy: those before are still being left
		return tr.mover.move(t.Context(), t.Context(), tr.link.Load(), []string{url}, false)
	})
}

// TestRequestsSurviveManyMoves has callers and an instance change servers all
// the time.
func TestRequestsSurviveManyMoves(t *testing.T) {
	c := natstest.StartCluster(t, 2)
	meshed(t, c)
	ran, apps := serveOnce(t, c, 2, 0, brief)
	caller, err := Dial(t.Context(), asOn(c, 0, nil), brief)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer caller.Close()
	l := &load{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	began := time.Now()
	for lane := range 8 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.call(caller, "once", fmt.Sprintf("%d:%d", lane, n))
			}
		})
	}
	everybody := []*Client{caller, apps[0].client, apps[1].client}
	const moves = 300
	for n := range moves {
		m := everybody[n%len(everybody)]
		m.to(t, c.URL(1-slices.Index([]string{"n1", "n2"}, m.server())))
	}
	cancel()
	wg.Wait()
	l.check(t, ran, time.Since(began))
}

// complete demands that everything is subscribed on a link.
func (j *joins) complete(t *testing.T, l *link) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.subs {
		if !slices.ContainsFunc(s.on, func(n join) bool { return n.link == l }) {
			t.Errorf("%s is not on the link that was moved to", s.subject)
		}
	}
}

// TestSubscriptionsSurviveMoves has some made and some drained while the
// transport goes to and fro.
func TestSubscriptionsSurviveMoves(t *testing.T) {
	c := natstest.StartCluster(t, 2)
	meshed(t, c)
	client, err := Dial(t.Context(), asOn(c, 0, nil), brief)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer client.Close()
	tr := client.nats()
	var got runs
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	kept := make([][]string, 4)
	for lane := range kept {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				subject := fmt.Sprintf("s.%d.%d", lane, n)
				sub, err := tr.subscribe(subject, "q", func(m *nats.Msg) { got.add(m.Subject) })
				if err != nil {
					t.Errorf("subscribe: %v", err)
					return
				}
				if n%20 == 0 {
					kept[lane] = append(kept[lane], subject)
					continue
				}
				if err := sub.drain(within(t, patience)); err != nil {
					t.Errorf("drain: %v", err)
				}
			}
		})
	}
	const moves = 30
	for n := range moves {
		client.to(t, c.URL(1-slices.Index([]string{"n1", "n2"}, client.server())))
		tr.joins.complete(t, tr.link.Load())
		if n%10 == 0 {
			t.Logf("move %d: %d links", n, len(tr.joins.open()))
		}
	}
	cancel()
	wg.Wait()
	wait.Until(t, patience, func() error {
		if n := len(tr.joins.open()); n != 1 {
			return fmt.Errorf("%d links are open, want 1", n)
		}
		return nil
	})
	want := slices.Concat(kept...)
	nc := c.Connect(t, 1)
	for _, subject := range want {
		if err := nc.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
	}
	wait.Until(t, patience, func() error {
		got.mu.Lock()
		defer got.mu.Unlock()
		if len(got.of) != len(want) {
			return fmt.Errorf("%d of %d subscriptions hear", len(got.of), len(want))
		}
		return nil
	})
	for subject, n := range got.of {
		if n != 1 {
			t.Errorf("%s was heard %d times, want once", subject, n)
		}
	}
	// The inbox is the one besides.
	if n := tr.link.Load().conn.NumSubscriptions(); n != len(want)+1 {
		t.Errorf("%d subscriptions after %d moves, want %d", n, moves, len(want)+1)
	}
	t.Logf("%d subscriptions kept", len(want))
}

// TestAMoveLeaksNothing neither connections nor goroutines.
func TestAMoveLeaksNothing(t *testing.T) {
	c := natstest.StartCluster(t, 3)
	meshed(t, c)
	_, apps := serveOnce(t, c, 3, 0)
	gone := c.LameDuck(t, 0)
	wait.Until(t, patience, func() error {
		if got := apps[0].client.server(); got == "n1" || got == "" {
			return fmt.Errorf("is on %q", got)
		}
		return nil
	})
	<-gone
	wait.Until(t, patience, func() error {
		if got := c.Clients(1) + c.Clients(2); got != len(apps) {
			return fmt.Errorf("the servers have %d clients, want one for each of %d instances", got, len(apps))
		}
		return nil
	})
	for n, a := range apps {
		if n == 1 { // this one ends in the middle of a move
			c.LameDuck(t, 1)
			wait.Until(t, patience, func() error {
				if len(a.client.nats().joins.open()) < 2 {
					return errors.New("does not move")
				}
				return nil
			})
		}
		a.stop()
		if err := a.ended(t); err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	wait.Until(t, patience, func() error { // nats.go's own end a moment after Close
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for g := range strings.SplitSeq(string(stacks), "\n\n") {
			if strings.Contains(g, "sdk.(*mover)") || strings.Contains(g, "nats%2ego.(*Conn)") || strings.Contains(g, "nats.go.(*Conn)") {
				return fmt.Errorf("still runs: %s", g)
			}
		}
		return nil
	})
}
