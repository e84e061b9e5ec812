package sdktest_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/sdk/sdktest"
)

// counter is the object of these tests.
type counter struct {
	Count  int `json:"count"`
	memory int // no part of the state
}

func serve(app *sdk.App) {
	counters := sdk.Objects[counter](app, "counter", sdk.IdleAfter(30*time.Second))
	sdk.Method(counters, "add", func(c *counter, _ context.Context, n int) (int, error) {
		c.Count += n
		c.memory += n
		return c.Count, nil
	})
	sdk.Method(counters, "later", func(_ *counter, ctx context.Context, n int) (int, error) {
		return 0, sdk.Timer(ctx, time.Minute, "add", n)
	})
	sdk.ReadOnly(counters, "count", func(c *counter, _ context.Context, _ struct{}) (int, error) { return c.Count, nil })
	sdk.ReadOnly(counters, "memory", func(c *counter, _ context.Context, _ struct{}) (int, error) { return c.memory, nil })
	sdk.Handle(app, "who", func(context.Context, struct{}) (string, error) { return string(app.Instance()), nil })
}

const one = "shop/counter:one"

// call calls the counter, within 10 s.
func call(t *testing.T, c *sdktest.Cluster, method string, in any) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, err := sdk.Call[int](ctx, c.Object(one), method, in)
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return n
}

func TestTheFirstCallIsSoonAnswered(t *testing.T) {
	began := time.Now()
	c := sdktest.New(t)
	made := time.Since(began)
	c.Run("shop/cart", serve)
	ran := time.Since(began)
	if got := call(t, c, "add", 2); got != 2 {
		t.Errorf("add: %d, want 2", got)
	}
	t.Logf("New returns after %v, Run after %v, the first call after %v", made, ran, time.Since(began))
}

// Whatever happens to the owner, another instance goes on with what was acknowledged.
func TestOthersGoOnWithWhatAnOwnerHad(t *testing.T) {
	for name, lose := range map[string]func(*sdktest.Cluster, *sdktest.Instance){
		"killed":  (*sdktest.Cluster).Kill,
		"stopped": (*sdktest.Cluster).Stop,
		"paused": func(c *sdktest.Cluster, i *sdktest.Instance) {
			c.Pause(i)
			c.Advance(7 * time.Second)
		},
		"cut off": func(c *sdktest.Cluster, i *sdktest.Instance) {
			c.Partition(i)
			c.Advance(7 * time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := sdktest.New(t)
			c.Run("shop/cart", serve)
			c.Run("shop/cart", serve)
			call(t, c, "add", 2)
			owner := c.Owner(one)
			began := time.Now()
			lose(c, owner)
			if got := call(t, c, "add", 3); got != 5 {
				t.Errorf("after its owner was %s the counter is %d, want 5", name, got)
			}
			t.Logf("answered %v later", time.Since(began))
			if next := c.Owner(one); next == owner {
				t.Errorf("%s owns the counter again", owner.Name())
			}
		})
	}
}

// One that was paused for longer than its lease changes nothing when it goes on, and is
// started again.
func TestAPausedOwnerComesBackAsAnother(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	first := c.Run("shop/cart", serve)
	call(t, c, "add", 1)
	c.Pause(first)
	second := c.Run("shop/cart", serve)
	c.Advance(7 * time.Second)
	if got := call(t, c, "add", 1); got != 2 {
		t.Errorf("the counter is %d, want 2", got)
	}
	c.Resume(first)
	for n := range 20 {
		if got := call(t, c, "add", 1); got != 3+n {
			t.Fatalf("after the first owner has come back the counter is %d, want %d", got, 3+n)
		}
	}
	c.Kill(second)
	if got := call(t, c, "count", nil); got != 22 {
		t.Errorf("behind the kill of the second owner the counter is %d, want 22", got)
	}
}

// Nobody loses a lease by the clock that is turned, and what is due by it happens.
func TestTheClockIsTurned(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	only := c.Run("shop/cart", serve)
	call(t, c, "add", 1)
	if got := call(t, c, "memory", nil); got != 1 {
		t.Fatalf("the field that is not stored is %d, want 1", got)
	}
	began := time.Now()
	c.Advance(40 * time.Second)
	t.Logf("40 seconds took %v", time.Since(began))
	if got := call(t, c, "memory", nil); got != 0 {
		t.Errorf("after 40 s without a call it is in memory: %d, want 0", got)
	}
	if got := call(t, c, "count", nil); got != 1 {
		t.Errorf("the counter is %d, want 1", got)
	}
	if i := c.Owner(one); i != only {
		t.Errorf("the owner is %s", i.Name())
	}
}

func TestTimersGoByTheClock(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	c.Run("shop/cart", serve)
	call(t, c, "later", 7)
	c.Advance(30 * time.Second)
	if got := call(t, c, "count", nil); got != 0 {
		t.Errorf("after half a minute the counter is %d, want 0", got)
	}
	c.Advance(31 * time.Second)
	wait.Until(t, 5*time.Second, func() error {
		if got := call(t, c, "count", nil); got != 7 {
			return fmt.Errorf("after a minute the counter is %d, want 7", got)
		}
		return nil
	})
}

// One that is cut off for less than a term goes on as if nothing had been.
func TestAShortCutIsOver(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	only := c.Run("shop/cart", serve)
	call(t, c, "add", 1)
	c.Partition(only)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := sdk.Call[int](ctx, c.Object(one), "count", nil); err == nil {
		t.Error("one that is cut off answers")
	}
	c.Heal(only)
	if got := call(t, c, "add", 1); got != 2 {
		t.Errorf("the counter is %d, want 2", got)
	}
}

func TestServicesCallEachOther(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	c.Run("shop/cart", serve)
	c.Run("front", func(app *sdk.App) {
		sdk.Handle(app, "add", func(ctx context.Context, n int) (int, error) {
			return sdk.Call[int](ctx, sdk.Object(one), "add", n)
		})
	})
	if got, err := sdk.Call[int](t.Context(), c.Service("front"), "add", 3); err != nil || got != 3 {
		t.Errorf("through the front: %d, %v; want 3", got, err)
	}
	if got, err := sdk.Call[string](t.Context(), c.Service("shop/cart"), "who", nil); err != nil || got != "shop-cart-1" {
		t.Errorf("who: %q, %v", got, err)
	}
}

// What a turn does after its instance was killed has no effect, and its context has ended.
func TestATurnOfWhoIsKilledHasNoEffect(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	entered, ended, over := make(chan struct{}, 2), make(chan struct{}, 2), make(chan struct{})
	with := func(app *sdk.App) {
		k := sdk.Objects[counter](app, "counter")
		sdk.Method(k, "add", func(c *counter, ctx context.Context, n int) (int, error) {
			entered <- struct{}{}
			select {
			case <-ctx.Done():
				ended <- struct{}{}
			case <-over:
			}
			c.Count += n
			return c.Count, nil
		})
	}
	first := c.Run("shop/cart", with)
	answer := make(chan int, 1)
	go func() {
		n, err := sdk.Call[int](context.Background(), c.Object(one), "add", 1)
		if err != nil {
			t.Errorf("add: %v", err)
		}
		answer <- n
	}()
	<-entered
	c.Kill(first)
	<-ended
	c.Run("shop/cart", with)
	<-entered // the same call, sent again
	close(over)
	if got := <-answer; got != 1 {
		t.Errorf("a call that ran at one who was killed, and at another, leaves %d, want 1", got)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	use := func(t *testing.T) {
		c := sdktest.New(t)
		i := c.Run("shop/cart", serve)
		call(t, c, "add", 1)
		c.Partition(i)
		c.Pause(c.Run("shop/cart", serve))
	}
	t.Run("first", use) // what the process has once
	before := runtime.NumGoroutine()
	t.Run("second", use)
	wait.Until(t, 5*time.Second, func() error {
		if now := runtime.NumGoroutine(); now > before {
			return fmt.Errorf("%d goroutines, before there were %d", now, before)
		}
		return nil
	})
}
