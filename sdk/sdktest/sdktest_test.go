package sdktest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

type counter struct{ N int }

func serve(app *sdk.App) {
	k := sdk.Objects[counter](app, "counter")
	sdk.Method(k, "add", func(c *counter, _ context.Context, n int) (int, error) {
		c.N += n
		return c.N, nil
	})
	sdk.ReadOnly(k, "get", func(c *counter, _ context.Context, _ struct{}) (int, error) { return c.N, nil })
	sdk.Handle(app, "who", func(context.Context, struct{}) (string, error) { return string(app.Instance()), nil })
}

func add(t *testing.T, c *Cluster, id string, n int) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := sdk.Call[int](ctx, c.Object("test/counter:"+id), "add", n)
	if err != nil {
		t.Fatalf("add: %v", err)
	}
	return got
}

func TestAnObjectAnswersSoon(t *testing.T) {
	began := time.Now()
	c := New(t)
	c.Run("test/counters", serve)
	if got := add(t, c, "a", 2); got != 2 {
		t.Errorf("the counter is at %d, want 2", got)
	}
	t.Logf("the first object answered after %v", time.Since(began))
}

func TestWhatAnInstanceOwnsSurvivesIt(t *testing.T) {
	for name, end := range map[string]func(*Cluster, *Instance){
		"killed":      func(_ *Cluster, i *Instance) { i.Kill() },
		"stopped":     func(_ *Cluster, i *Instance) { i.Stop() },
		"power off":   func(c *Cluster, i *Instance) { i.PowerOff(); c.Advance(10 * time.Second) },
		"partitioned": func(c *Cluster, i *Instance) { i.Partition(); c.Advance(10 * time.Second) },
		"paused":      func(c *Cluster, i *Instance) { i.Pause(); c.Advance(10 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			c := New(t)
			first := c.Run("test/counters", serve)
			ids := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
			for _, id := range ids {
				add(t, c, id, 1)
			}
			c.Run("test/counters", serve)
			end(c, first)
			var all sync.WaitGroup
			for _, id := range ids {
				all.Go(func() {
					if got := add(t, c, id, 1); got != 2 {
						t.Errorf("%s is at %d, want 2", id, got)
					}
				})
			}
			all.Wait()
			first.Heal()
			first.Resume()
			for _, id := range ids {
				if got := add(t, c, id, 1); got != 3 {
					t.Errorf("%s is at %d, want 3: is the first instance back, with what it knew?", id, got)
				}
			}
		})
	}
}
