package sdktest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/sdk/sdktest"
)

// patience bounds what takes a moment, on a machine that is full.
const patience = time.Minute

// rooms is a cluster with instances that have two slots each.
func rooms(t *testing.T, instances int) (*sdktest.Cluster, []*sdktest.Instance) {
	t.Helper()
	c := sdktest.New(t)
	c.Place("shop/counter", kbroker.Demanded{Slots: 1}, 2)
	var all []*sdktest.Instance
	for range instances {
		all = append(all, c.Run("shop/cart", serve))
	}
	return c, all
}

func add(t *testing.T, c *sdk.Client, n int) (int, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return sdk.Call[int](ctx, c.Object(fmt.Sprintf("shop/counter:%d", n)), "add", 1)
}

func release(t *testing.T, c *sdktest.Cluster, name string) (bool, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return c.Client().Release(ctx, name)
}

// allocate allocates within a time.
func allocate(t *testing.T, c *sdktest.Cluster, within time.Duration, n int, opts ...sdk.AllocateOption) (kbroker.Allocation, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return c.Client().Allocate(ctx, fmt.Sprintf("shop/counter:%d", n), opts...)
}

func TestPlacedObjectsAreAllocated(t *testing.T) {
	c, all := rooms(t, 2)
	// One that is not allocated is nowhere; who calls it does not know that its kind is placed.
	if _, err := add(t, c.Client(), 1); !errors.Is(err, kbroker.NotFound) || kbroker.AsError(err).Executed != kbroker.ExecutedNo {
		t.Errorf("a call of what is not allocated: %v, want NotFound, executed no", err)
	}
	a, err := allocate(t, c, patience, 1, sdk.OnInstance(string(all[1].Name())), sdk.Labels(map[string]string{"mode": "duel"}))
	if err != nil || a.Existed || a.Instance != all[1].Name() || a.Labels["mode"] != "duel" {
		t.Fatalf("allocated %+v: %v, want on %s", a, err, all[1].Name())
	}
	if got := c.Owner("shop/counter:1"); got != all[1] {
		t.Errorf("%s owns it", got.Name())
	}
	for n := range 3 {
		if got, err := add(t, c.Client(), 1); err != nil || got != n+1 {
			t.Fatalf("call %d: %d, %v", n, got, err)
		}
	}
	if a, err := allocate(t, c, patience, 1); err != nil || !a.Existed || a.Instance != all[1].Name() {
		t.Errorf("allocated again: %+v, %v", a, err)
	}
	// Three more fill both instances; the next one waits, and has a place when one is free.
	for n := 2; n <= 4; n++ {
		if _, err := allocate(t, c, patience, n, sdk.OnHost("nowhere")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := allocate(t, c, 1500*time.Millisecond, 5); !errors.Is(err, kbroker.Unavailable) {
		t.Errorf("without room: %v, want Unavailable", err)
	}
	if _, err := allocate(t, c, patience, 6, sdk.Takes(kbroker.Demanded{Slots: 3})); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("more than an instance has: %v, want Invalid", err)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := allocate(t, c, patience, 7)
		waited <- err
	}()
	if is, err := release(t, c, "shop/counter:1"); err != nil || !is {
		t.Fatalf("released %t: %v", is, err)
	}
	if err := <-waited; err != nil {
		t.Errorf("the one that waited: %v", err)
	}
	if is, err := release(t, c, "shop/counter:1"); err != nil || is {
		t.Errorf("released again: %t, %v", is, err)
	}
	if _, err := add(t, c.Client(), 1); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("a call of what is released: %v, want NotFound", err)
	}
	// What it has stored is there when it has a place again.
	if _, err := release(t, c, "shop/counter:7"); err != nil {
		t.Fatal(err)
	}
	if _, err := allocate(t, c, patience, 1); err != nil {
		t.Fatal(err)
	}
	if got, err := add(t, c.Client(), 1); err != nil || got != 4 {
		t.Errorf("allocated again it is %d: %v, want 4", got, err)
	}
}

func TestPlacedObjectsOfALostInstance(t *testing.T) {
	c, all := rooms(t, 2)
	for n := range 4 {
		if _, err := allocate(t, c, patience, n); err != nil {
			t.Fatal(err)
		}
		if _, err := add(t, c.Client(), n); err != nil {
			t.Fatal(err)
		}
	}
	c.Kill(all[0])
	third := c.Run("shop/cart", serve) // the other one is full
	for n := range 4 {
		if got, err := add(t, c.Client(), n); err != nil || got != 2 {
			t.Errorf("counter %d is %d: %v, want 2", n, got, err)
		}
	}
	c.Stop(all[1]) // in order; nobody has room for what it has
	c.Run("shop/cart", serve)
	for n := range 4 {
		if got, err := add(t, c.Client(), n); err != nil || got != 3 {
			t.Errorf("counter %d is %d: %v, want 3", n, got, err)
		}
	}
	if owner := c.Owner("shop/counter:0"); owner == all[0] || owner == all[1] {
		t.Errorf("%s owns it, %s is there", owner.Name(), third.Name())
	}
}
