package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/sdk/sdktest"
)

func deposit(t *testing.T, c *sdktest.Cluster, who string, cents int64) account {
	t.Helper()
	return must(t, c, who, "deposit", amount{cents})
}

func must(t *testing.T, c *sdktest.Cluster, who, method string, in any) account {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := sdk.Call[account](ctx, c.Object("bank/account:"+who), method, in)
	if err != nil {
		t.Fatalf("%s of %s: %v", method, who, err)
	}
	return got
}

func TestAnAccountIsNotOverdrawn(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	c.Run("bank", serve)
	deposit(t, c, "alice", 500)
	_, err := sdk.Call[account](t.Context(), c.Object("bank/account:alice"), "withdraw", amount{501})
	if e, ok := errors.AsType[*sdk.Error](err); !ok || e.Code != "overdrawn" {
		t.Errorf("withdraw more than is there: %v, want code overdrawn", err)
	}
	for _, cents := range []int64{0, -5} {
		if _, err := sdk.Call[account](t.Context(), c.Object("bank/account:alice"), "deposit", amount{cents}); !errors.Is(err, sdk.Invalid) {
			t.Errorf("deposit %d: %v, want code %s", cents, err, sdk.Invalid)
		}
	}
	if got := must(t, c, "alice", "withdraw", amount{499}); got.Cents != 1 {
		t.Errorf("1 cent is to be left, not %d", got.Cents)
	}
}

// No cent is lost or made twice while instances are killed, leave and come.
func TestMoneyOutlivesItsInstances(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	c.Run("bank", serve)
	c.Run("bank", serve)
	const accounts = 4
	var deposited [accounts]atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for n := range accounts {
		load.Go(func() {
			for ctx.Err() == nil {
				if _, err := sdk.Call[account](context.Background(), c.Object(fmt.Sprintf("bank/account:%d", n)), "deposit", amount{1}, sdk.Timeout(30*time.Second)); err != nil {
					t.Errorf("deposit: %v", err)
					return
				}
				deposited[n].Add(1)
			}
		})
	}
	for _, lose := range []func(*sdktest.Instance){c.Kill, c.Stop} {
		owner := c.Owner("bank/account:0")
		c.Run("bank", serve)
		lose(owner)
		deposit(t, c, "0", 1)
		deposited[0].Add(1)
	}
	stop()
	load.Wait()
	for n := range accounts {
		if got, want := must(t, c, fmt.Sprint(n), "balance", nil).Cents, deposited[n].Load(); got != want {
			t.Errorf("account %d has %d cents behind %d deposits that were acknowledged", n, got, want)
		}
	}
}
