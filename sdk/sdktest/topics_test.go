package sdktest_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/sdk/sdktest"
)

// placed is the event of these tests: the n-th of an order.
type placed struct {
	Customer string
	Order    string
	N        int
}

type order struct{ N int }

// customer is told of all orders that are placed for it.
type customer struct{ Orders map[string][]int }

// sell is a shop: orders publish what is placed, customers subscribe to it.
func sell(app *sdk.App) {
	orders := sdk.Objects[order](app, "order")
	sdk.Method(orders, "place", func(o *order, ctx context.Context, to string) (int, error) {
		o.N++
		err := sdk.PublishDurable(ctx, "placed", placed{Customer: to, Order: sdk.Self(ctx).ID, N: o.N})
		return o.N, err
	})
	customers := sdk.Objects[customer](app, "customer")
	sdk.SubscribeObject(customers, "shop/placed", func(p placed) string { return p.Customer }, "told")
	sdk.Method(customers, "told", func(c *customer, _ context.Context, p placed) (struct{}, error) {
		if c.Orders == nil {
			c.Orders = map[string][]int{}
		}
		c.Orders[p.Order] = append(c.Orders[p.Order], p.N)
		return struct{}{}, nil
	})
	sdk.ReadOnly(customers, "orders", func(c *customer, _ context.Context, _ struct{}) (map[string][]int, error) { return c.Orders, nil })
}

func place(t *testing.T, c *sdktest.Cluster, order, customer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := sdk.Call[int](ctx, c.Object("shop/order:"+order), "place", customer); err != nil {
		t.Errorf("place %s: %v", order, err)
	}
}

// told waits until a customer was told of what was placed, each once and in order.
func told(t *testing.T, c *sdktest.Cluster, customer string, want map[string][]int) {
	t.Helper()
	wait.Until(t, 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		got, err := sdk.Call[map[string][]int](ctx, c.Object("shop/customer:"+customer), "orders", nil)
		if err != nil {
			return err
		}
		for o, all := range want {
			if !slices.Equal(got[o], all) {
				return fmt.Errorf("%s was told of %v of order %s, want %v", customer, got[o], o, all)
			}
		}
		return nil
	})
}

// Events of turns arrive once, those of one object in its order, whoever is killed meanwhile: the
// owner of the object, of the subscription, or of the receiver.
func TestEventsArriveOnceWhoeverIsKilled(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	for range 5 {
		c.Run("shop/shop", sell)
	}
	var all sync.WaitGroup
	killing := make(chan struct{})
	want := map[string][]int{}
	var mu sync.Mutex
	var done atomic.Int64
	for n := range 4 {
		id := fmt.Sprintf("o%d", n)
		all.Go(func() {
			for i := 1; ; i++ {
				select {
				case <-killing:
					return
				default:
				}
				place(t, c, id, "ann")
				mu.Lock()
				want[id] = append(want[id], i)
				mu.Unlock()
				done.Add(1)
			}
		})
	}
	for _, of := range []string{"shop/order:o1", "shop/subscription:shop/placed", "shop/customer:ann", "shop/subscription:shop/placed"} {
		before := done.Load()
		wait.Until(t, 20*time.Second, func() error {
			if n := done.Load() - before; n < 12 {
				return fmt.Errorf("%d events were published since the last kill", n)
			}
			return nil
		})
		c.Kill(c.Owner(of))
	}
	close(killing)
	all.Wait()
	told(t, c, "ann", want)
	t.Logf("%d, %d, %d and %d events", len(want["o0"]), len(want["o1"]), len(want["o2"]), len(want["o3"]))
}

// A handler of another app gets each event, also what its instance was killed with, and what it
// failed with; a subscription from now on gets those alone that follow.
func TestHandlersGetEachEvent(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	c.Run("shop/shop", sell)
	place(t, c, "early", "ann")
	var mu sync.Mutex
	got, late := map[string]bool{}, map[string]bool{}
	var failed atomic.Bool
	stuck, over := make(chan struct{}), make(chan struct{})
	defer close(over)
	mail := func(sticks bool) func(*sdk.App) {
		return func(app *sdk.App) {
			sdk.SubscribeDurable(app, "shop/placed", func(_ context.Context, p placed) error {
				if sticks {
					select {
					case stuck <- struct{}{}:
					case <-over:
					}
					<-over
				}
				if p.Order == "o1" && !failed.Swap(true) {
					return fmt.Errorf("not now")
				}
				mu.Lock()
				defer mu.Unlock()
				got[p.Order] = true
				return nil
			}, sdk.Within(500*time.Millisecond))
			sdk.SubscribeDurable(app, "shop/placed", func(_ context.Context, p placed) error {
				mu.Lock()
				defer mu.Unlock()
				late[p.Order] = true
				return nil
			}, sdk.FromNow(), sdk.Named("late"))
		}
	}
	first := c.Run("mail/mail", mail(true))
	<-stuck // with the early one
	c.Kill(first)
	c.Run("mail/mail", mail(false))
	wait.Until(t, 20*time.Second, func() error { // until it has begun
		place(t, c, "probe", "bob")
		mu.Lock()
		defer mu.Unlock()
		if !late["probe"] {
			return fmt.Errorf("the subscription from now on has not begun")
		}
		return nil
	})
	for n := range 3 {
		place(t, c, fmt.Sprintf("o%d", n), "bob")
	}
	wait.Until(t, 20*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(got) != 5 || len(late) != 4 || late["early"] {
			return fmt.Errorf("handled are %v and, of those since, %v", got, late)
		}
		return nil
	})
}
