package sdk

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
)

// big is an object that takes much memory, of which little is stored.
type big struct {
	Calls   int
	ballast []byte
}

func bigs(url string, opts ...KindOption) *App {
	i := instance(url, "a")
	i.App, i.Service, i.Objects, i.ObjectStreams = "bank", "ledger", []kbroker.KindName{"big"}, testStreams
	a := New(as(url, &i), Grace(time.Second))
	a.leases = func(*kbroker.InstanceFile) ownership.Times { return quick }
	k := Objects[big](a, "big", opts...)
	ReadOnly(k, "touch", func(b *big, _ context.Context, _ struct{}) (int, error) { return b.Calls, nil })
	Method(k, "count", func(b *big, _ context.Context, _ struct{}) (int, error) {
		b.Calls++
		return b.Calls, nil
	})
	OnActivate(k, func(b *big, _ context.Context) error {
		b.ballast = make([]byte, 64<<10)
		return nil
	})
	return a
}

// touch calls objects of kind big, each once, from several callers.
func touch(t *testing.T, c *Client, method string, from, to int) {
	t.Helper()
	const callers = 32
	var wg sync.WaitGroup
	for n := range callers {
		wg.Go(func() {
			for i := from + n; i < to; i += callers {
				if _, err := Call[int](within(t, 10*time.Second), c.Object(fmt.Sprint("bank/big:", i)), method, nil); err != nil {
					t.Errorf("%s of %d: %v", method, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// inMemory is how many objects an app has in memory.
func inMemory(a *App) int {
	n := make(chan int)
	a.keeper.post(func(time.Duration) { n <- len(a.keeper.active) })
	return <-n
}

func giveAll(core *core) {
	var some []kbroker.Object
	seen := map[kbroker.Shard]bool{}
	for i := 0; len(seen) < kbroker.Shards; i++ {
		if o := (kbroker.Object{Kind: "big", ID: fmt.Sprint(i)}); !seen[o.Shard()] {
			seen[o.Shard()] = true
			if some = append(some, o); len(some) == 128 {
				core.give(incarnation("a"), some...)
				some = nil
			}
		}
	}
}

func liveBytes() uint64 {
	s := []metrics.Sample{{Name: metricLive}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func TestMemoryIsBounded(t *testing.T) {
	const objects = 1600 // of 64 KiB: 100 MiB, if nothing was put away
	s := natstest.Start(t)
	core := newCore(t, s)
	giveAll(core)
	runtime.GC()
	limit := int64(liveBytes()) + 48<<20
	old := debug.SetMemoryLimit(limit)
	t.Cleanup(func() { debug.SetMemoryLimit(old) })
	app := bigs(s.URL)
	start(t, app)
	c := dial(t, s.URL)
	began := time.Now()
	var most atomic.Uint64
	for from := 0; from < objects; from += 200 {
		touch(t, c, "count", from, from+200)
		most.Store(max(most.Load(), liveBytes()))
	}
	runtime.GC()
	t.Logf("%d objects in %v: %d in memory, %d MiB live at most, %d now, of %d", objects, time.Since(began), inMemory(app), most.Load()>>20, liveBytes()>>20, limit>>20)
	if int64(most.Load()) > limit {
		t.Errorf("%d bytes lived, the limit is %d", most.Load(), limit)
	}
	if n := inMemory(app); n == objects || n == 0 {
		t.Errorf("%d objects of %d are in memory, want some", n, objects)
	}
	touch(t, c, "count", 0, 100) // the oldest, which were put away
	if got, err := Call[int](within(t, 5*time.Second), c.Object("bank/big:7"), "touch", nil); err != nil || got != 2 {
		t.Errorf("an object that was put away: %d, %v; want 2", got, err)
	}
}

func TestAKindIsBoundedByItsNumber(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	giveAll(core)
	app := bigs(s.URL, MaxActive(10))
	start(t, app)
	c := dial(t, s.URL)
	touch(t, c, "count", 0, 200)
	wait.Until(t, patience, func() error {
		touch(t, c, "count", 600, 601)
		if n := inMemory(app); n > 10 {
			return fmt.Errorf("%d objects are in memory, want 10 at most", n)
		}
		return nil
	})
	if got, err := Call[int](within(t, 5*time.Second), c.Object("bank/big:3"), "count", nil); err != nil || got != 2 {
		t.Errorf("an object that was put away: %d, %v; want 2", got, err)
	}
}

func TestReliefOncePerCycle(t *testing.T) {
	p := newPressure()
	if p.limit = 0; p.relief() != 0 {
		t.Error("without a limit there is no relief")
	}
	runtime.GC()
	p.limit = float64(liveBytes()) // all of it lives
	if share := p.relief(); math.Abs(share-0.5) > 0.2 {
		t.Errorf("the first relief is of %v, want a half", share)
	}
	if share := p.relief(); share != 0 {
		// A cycle may have come in between; not two.
		if share = p.relief(); share != 0 {
			t.Errorf("a relief of %v without a cycle", share)
		}
	}
	runtime.GC()
	if p.relief() == 0 {
		t.Error("no relief after another cycle")
	}
	if p.limit = 100 * float64(liveBytes()); p.relief() != 0 {
		t.Error("a relief without pressure")
	}
}
