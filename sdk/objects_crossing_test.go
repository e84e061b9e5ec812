package sdk

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/natstest"
)

// pull is what an account is asked for by these tests: to take a cent of another one.
type pull struct {
	From    string
	Through bool // the service, which asks in its turn
	Meet    int  // turns that are begun, before any calls
}

// pulling lets accounts call each other, where begun counts the turns that have begun.
func pulling(begun *atomic.Int64) func(*Kind[account]) {
	return func(k *Kind[account]) {
		Method(k, "pull", func(a *account, ctx context.Context, in pull) (int64, error) {
			if begun.Add(1); in.Meet > 0 {
				for begun.Load() < int64(in.Meet) && ctx.Err() == nil {
					<-time.After(time.Millisecond)
				}
			}
			to, method := Object("bank/account:"+in.From), "deposit"
			var arg any = 1
			if in.Through {
				to, method, arg = Service("echo"), "give", in.From
			}
			if _, err := Call[int64](ctx, to, method, arg); err != nil {
				return 0, fmt.Errorf("pull of %s: %w", in.From, err)
			}
			a.Cents--
			return a.Cents, nil
		})
	}
}

// ring has account i of each ring call the next one, all at once, and wants all of it to be
// done soon: each account gave a cent and took one.
func ring(t *testing.T, c *Client, rings [][]string, in pull, begun *atomic.Int64) {
	t.Helper()
	began := time.Now()
	var wg sync.WaitGroup
	for _, of := range rings {
		for i := range of {
			wg.Go(func() {
				in := in
				in.From = of[(i+1)%len(of)]
				if _, err := Call[int64](within(t, 20*time.Second), c.Object("bank/account:"+of[i]), "pull", in); err != nil {
					t.Errorf("%s of %v: %v", of[i], of, err)
				}
			})
		}
	}
	wg.Wait()
	took := time.Since(began)
	for _, of := range rings {
		for _, id := range of {
			if got := c.balance(t, id); got != 0 {
				t.Errorf("%s of %v has %d cents, want 0: a cent came, and one went", id, of, got)
			}
		}
	}
	t.Logf("%d calls took %v, with %d turns", len(rings)*len(rings[0]), took, begun.Load())
	if took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestCallsThatCrossAreDone(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	var begun atomic.Int64
	var pairs [][]string
	for n := range 100 {
		pair := []string{fmt.Sprint("left", n), fmt.Sprint("right", n)}
		pairs = append(pairs, pair)
		core.give(incarnation("a"), acc(pair[0]), acc(pair[1]))
	}
	start(t, bank(s.URL, "a", pulling(&begun)))
	ring(t, dial(t, s.URL), pairs, pull{Meet: 200}, &begun)
	if begun.Load() < 300 {
		t.Errorf("%d turns, want 300 at least: one of each pair is run twice", begun.Load())
	}
}

func TestCallsThatCrossBetweenInstancesAndThroughServices(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	var begun atomic.Int64
	start(t, bank(s.URL, "a", pulling(&begun)))
	start(t, bank(s.URL, "b", pulling(&begun)))
	echo := newApp(s.URL, "echo-echo-1")
	Handle(echo, "give", func(ctx context.Context, from string) (int64, error) {
		return Call[int64](ctx, Object("bank/account:"+from), "deposit", 1)
	})
	start(t, echo)
	client := dial(t, s.URL)
	for _, c := range []struct {
		name    string
		size    int
		through bool
	}{
		{"two", 2, false},
		{"three", 3, false},
		{"five", 5, false},
		{"two, through services", 2, true},
		{"four, through services", 4, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			begun.Store(0)
			var of []string
			for n := range c.size {
				id := fmt.Sprint(c.name, n)
				of = append(of, id)
				core.give(incarnation([]string{"a", "b"}[n%2]), acc(id))
			}
			ring(t, client, [][]string{of}, pull{Through: c.through, Meet: c.size}, &begun)
			if n := begun.Load(); n < int64(c.size)+1 || n > int64(4*c.size) {
				t.Errorf("%d turns of %d calls", n, c.size)
			}
		})
	}
}

// A turn may wait for those that only read, too, and these for a turn.
func TestAReadThatCrossesATurn(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	var begun atomic.Int64
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		pulling(&begun)(k)
		ReadOnly(k, "look", func(_ *account, ctx context.Context, in pull) (int64, error) {
			for begun.Add(1); begun.Load() < int64(in.Meet) && ctx.Err() == nil; {
				<-time.After(time.Millisecond)
			}
			return Call[int64](ctx, Object("bank/account:"+in.From), "balance", nil)
		})
	}))
	c := dial(t, s.URL)
	began := time.Now()
	var wg sync.WaitGroup
	for range 3 { // beside each other
		wg.Go(func() {
			if _, err := Call[int64](within(t, 10*time.Second), c.Object("bank/account:1"), "look", pull{From: "2", Meet: 4}); err != nil {
				t.Errorf("look: %v", err)
			}
		})
	}
	wg.Go(func() {
		if _, err := Call[int64](within(t, 10*time.Second), c.Object("bank/account:2"), "pull", pull{From: "1", Meet: 4}); err != nil {
			t.Errorf("pull: %v", err)
		}
	})
	wg.Wait()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	if got := c.balance(t, "1") + c.balance(t, "2"); got != 0 || begun.Load() < 5 {
		t.Errorf("%d cents, want 0, as what was given was taken; %d turns", got, begun.Load())
	}
}

func TestACrossingIsFoundWhateverIsLost(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"))
	var begun atomic.Int64
	app := bank(s.URL, "a", pulling(&begun))
	lossy := &probeLoss{lose: 3}
	lossy.on(app)
	start(t, app)
	ring(t, dial(t, s.URL), [][]string{{"1", "2"}}, pull{Meet: 2}, &begun)
	if lossy.lost.Load() != 3 {
		t.Errorf("%d probes were lost, want 3", lossy.lost.Load())
	}
}

func TestWhoWaitsForALeafSendsNoProbes(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"), acc("2"), acc("3"), acc("leaf"))
	var begun atomic.Int64
	app := bank(s.URL, "a", func(k *Kind[account]) {
		pulling(&begun)(k)
		Method(k, "slow", func(_ *account, ctx context.Context, _ struct{}) (int64, error) {
			for begun.Load() < 3 && ctx.Err() == nil {
				<-time.After(time.Millisecond)
			}
			<-time.After(3 * probeAgain)
			return 0, ctx.Err()
		})
	})
	lossy := &probeLoss{}
	lossy.on(app)
	start(t, app)
	c := dial(t, s.URL)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:leaf"), "slow", nil); err != nil {
			t.Error(err)
		}
	})
	for _, id := range []string{"1", "2", "3"} {
		wg.Go(func() {
			if _, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:"+id), "pull", pull{From: "leaf"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := lossy.sent.Load(); n != 0 {
		t.Errorf("%d probes were sent about a turn that waits for nobody", n)
	}
}

func TestTheOrderOfRoots(t *testing.T) {
	for _, r := range []root{{0, "a:1"}, {1732780800123456, "x-y_z.1:18446744073709551615"}} {
		if got, ok := parseRoot(r.String()); !ok || got != r {
			t.Errorf("%v is read as %v, %v", r, got, ok)
		}
		p := probe{root: r, held: "bank/account:Gr%C3%B6%C3%9Fe", hops: 7}
		if got, ok := parseProbe(p.String()); !ok || got != p {
			t.Errorf("%v is read as %v, %v", p, got, ok)
		}
	}
	for _, s := range []string{"", "1", "1-", "x-a:1", "-5-a:1", "1-a", "1-a b:1"} {
		if r, ok := parseRoot(s); ok {
			t.Errorf("%q is read as a root: %v", s, r)
		}
	}
	old, young := root{5, "a:1"}, root{6, "a:0"}
	if !young.younger(old) || old.younger(young) || old.younger(old) {
		t.Error("what was begun later is younger")
	}
	if twin := (root{5, "a:2"}); !twin.younger(old) || old.younger(twin) {
		t.Error("of two that were begun at once one is younger")
	}
}

// probeLoss is a transport that counts the probes, and loses the first ones.
type probeLoss struct {
	transport
	lose       int64
	sent, lost atomic.Int64
}

// on has an app send through it.
func (p *probeLoss) on(a *App) {
	dial := a.client.dial
	a.client.dial = func(ctx context.Context, on connEvents) (transport, error) {
		t, err := dial(ctx, on)
		p.transport = t
		return p, err
	}
}

func (p *probeLoss) publish(m *nats.Msg) error {
	if isProbe(m) {
		if p.sent.Add(1) <= p.lose {
			p.lost.Add(1)
			return nil
		}
	}
	return p.transport.publish(m)
}
