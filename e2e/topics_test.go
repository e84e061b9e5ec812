package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
)

// total is that of testdata/ledger.
type total struct {
	Payments int      `json:"payments"`
	Wrong    []string `json:"wrong"`
}

// TestEventsAreCountedOnce: payments of turns, which are events, are counted once and in order by
// objects, and handled by another app, while instances of both, and an agent, which is a core,
// are killed.
func TestEventsAreCountedOnce(t *testing.T) {
	needLong(t)
	const payers = 12
	c := up(t, 3)
	dir := t.TempDir()
	buildInto(t, dir, "ledger", "./testdata/ledger")
	for app, settings := range map[string]string{
		"ledger": "    objects: [subscription, payer, total]\n",
		"audit":  "    objects: [subscription, noted]\n    subscribes: [ledger/payments]\n",
	} {
		path := filepath.Join(dir, app+".yaml")
		writeFile(t, path, fmt.Sprintf("name: %s\nservices:\n  %s:\n    run: ledger\n    args: [%s]\n    count: 3\n    spread: host\n%s", app, app, app, settings), 0o600)
		c.must("deploy", path)
	}
	ready := func() {
		c.waitReady(60*time.Second, "ledger", "ledger", 3, nil)
		c.waitReady(60*time.Second, "audit", "audit", 3, nil)
	}
	ready()
	api, err := sdk.Dial(t.Context(), sdk.At(c.dir))
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()

	var all sync.WaitGroup
	var over atomic.Bool
	var paid [payers]int
	for n := range payers {
		all.Go(func() {
			for !over.Load() {
				ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
				got, err := sdk.Call[int](ctx, api.Object(fmt.Sprintf("ledger/payer:p%d", n)), "pay", struct{}{})
				cancel()
				if err != nil {
					t.Errorf("pay: %v", err)
					return
				}
				paid[n] = got
				<-time.After(5 * time.Millisecond)
			}
		})
	}
	for i := range 6 {
		host := []string{"h1", "h2", "h3"}[i%3]
		for _, app := range []string{"ledger", "audit"} {
			if err := syscall.Kill(*c.instanceOn(app, host).PID, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		<-time.After(between)
		ready()
	}
	c.kill("h2", true)
	<-time.After(between)
	c.up()
	ready()
	over.Store(true)
	all.Wait()

	events := 0
	for _, n := range paid {
		events += n
	}
	began := time.Now()
	for n, want := range paid {
		of := fmt.Sprintf("p%d", n)
		wait.Until(t, 60*time.Second, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			got, err := sdk.Call[total](ctx, api.Object("ledger/total:"+of), "get", nil)
			if err != nil {
				return err
			}
			noted, err := sdk.Call[int](ctx, api.Object("audit/noted:"+of), "count", nil)
			if err == nil && (got.Payments != want || len(got.Wrong) > 0 || noted != want) {
				err = fmt.Errorf("%s has paid %d times: counted are %d, of which wrong %v, and handled %d", of, want, got.Payments, got.Wrong, noted)
			}
			return err
		})
	}
	t.Logf("RESULT %d events, all counted %v after the last", events, time.Since(began).Round(time.Millisecond))
	if out := c.must("objects", "show", "audit/subscription:ledger/payments"); !strings.Contains(out, fmt.Sprintf(`"events":%d`, events)) {
		t.Errorf("the subscription is\n%s\nwant %d events", out, events)
	}
}
