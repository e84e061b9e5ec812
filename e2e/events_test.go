package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
)

// seen is what the stream of one instance says: who it is, and what it has heard.
type seen = [3]any

// TestEventsAndStreams on three hosts, with the credentials of a cluster.
func TestEventsAndStreams(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	dir := t.TempDir()
	buildInto(t, dir, "events", "./testdata/events")
	deploy := func(app, settings string) {
		path := filepath.Join(dir, app+".yaml")
		writeFile(t, path, fmt.Sprintf("name: %s\nservices:\n  %s:\n    run: events\n    args: [shop/orders, shop/payments]\n    count: 3\n    spread: host\n%s", app, app, settings), 0o600)
		c.must("deploy", path)
	}
	deploy("shop", "")
	deploy("mail", "    subscribes: [shop/orders, shop/payments]\n")
	c.waitReady(30*time.Second, "shop", "shop", 3, nil)
	c.waitReady(30*time.Second, "mail", "mail", 3, nil)
	api, err := sdk.Dial(t.Context(), sdk.At(c.dir))
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()

	for n := range 20 {
		if _, err := sdk.Call[int](t.Context(), api.Service("shop"), "say", n+1); err != nil {
			t.Fatal(err)
		}
	}
	instances := map[any]seen{}
	wait.Until(t, 20*time.Second, func() error {
		for s, err := range sdk.Stream[seen](t.Context(), api.Service("mail"), "tail", 1) {
			if err != nil {
				return err
			}
			instances[s[0]] = s
		}
		shared := 0.0
		for _, s := range instances {
			if shared += s[2].(float64); s[1] != 210.0 {
				return fmt.Errorf("%v has heard %v, want 210", s[0], s[1])
			}
		}
		if len(instances) != 3 || shared != 210 {
			return fmt.Errorf("%d instances, which share %v of 210", len(instances), shared)
		}
		return nil
	})

	pids := map[any]int{}
	for _, r := range c.waitReady(10*time.Second, "mail", "mail", 3, nil) {
		pids[string(*r.Instance)] = *r.PID
	}
	items := 0
	var killed time.Time
	for s, err := range sdk.Stream[seen](t.Context(), api.Service("mail"), "tail", -1) {
		if err != nil {
			if d := time.Since(killed); !errors.Is(err, kbroker.Unavailable) || d > 8*time.Second {
				t.Errorf("the stream of a killed instance ends with %v after %v, want Unavailable within 8 s", err, d)
			} else {
				t.Logf("%d items; %v after the kill: %v", items, d.Round(time.Millisecond), err)
			}
			break
		}
		if items++; items == 1000 {
			killed = time.Now()
			if err := syscall.Kill(pids[s[0]], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}

	path := filepath.Join(dir, "spy.yaml")
	writeFile(t, path, "name: spy\nservices:\n  spy:\n    run: events\n    args: [shop/orders, spy/own]\n", 0o600)
	c.must("deploy", "--detach", path) // it never becomes ready
	wait.Until(t, 30*time.Second, func() error {
		out, _ := c.try("logs", "spy")
		if !strings.Contains(out, "subscribes: [shop/orders]") {
			return fmt.Errorf("the log of one that hears what it must not: %s", out)
		}
		return nil
	})
}
