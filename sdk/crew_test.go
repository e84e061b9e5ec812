package sdk

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
)

// numbered is a job that a test recognizes.
func numbered(n int) job { return job{msg: &nats.Msg{Data: []byte{byte(n)}}} }

func TestNoJobWaitsForTheEndOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const jobs = 3 * idleWorkers
		var begun atomic.Int32
		release := make(chan struct{})
		c := newCrew(jobs, func(job) { begun.Add(1); <-release })
		for round := range 3 { // the first with new workers, then with those that stayed
			for n := range jobs {
				if !c.take(numbered(n)) {
					t.Fatalf("round %d: job %d was refused below the bound of %d", round, n, jobs)
				}
			}
			synctest.Wait()
			if got := begun.Swap(0); got != jobs {
				t.Fatalf("round %d: %d of %d jobs have begun while all of them block", round, got, jobs)
			}
			if c.take(numbered(jobs)) {
				t.Fatalf("round %d: a job beyond the bound of %d was taken", round, jobs)
			}
			close(release)
			synctest.Wait()
			release = make(chan struct{})
			if c.workers > idleWorkers || c.workers != c.idle || c.taken != 0 {
				t.Fatalf("round %d: %d workers, %d of them idle, %d jobs taken; want at most %d workers, all idle", round, c.workers, c.idle, c.taken, idleWorkers)
			}
		}
		if err := c.close(t.Context()); err != nil {
			t.Fatalf("close: %v", err)
		}
	})
}

func TestJobsThatDoNotBlockShareAWorker(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that nobody steals the second worker
	synctest.Test(t, func(t *testing.T) {
		var last int
		order := true
		c := newCrew(100, func(j job) { n := int(j.msg.Data[0]); order = order && n == last; last = n + 1 })
		for n := range 100 {
			c.take(numbered(n))
		}
		synctest.Wait()
		if c.workers > 2 || last != 100 || !order {
			t.Errorf("%d workers for jobs that came in one piece, last %d, in order %v; want 2 workers at most", c.workers, last, order)
		}
		_ = c.close(t.Context())
	})
}

func TestAClosedCrewFinishesWhatItTook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var done atomic.Int32
		c := newCrew(10, func(j job) {
			<-release
			done.Add(1)
			if j.msg.Data[0] == 1 {
				runtime.Goexit() // as a failing assertion in a handler does
			}
		})
		for n := range 3 {
			c.take(numbered(n))
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.close(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("close while jobs run: %v, want the context's error", err)
		}
		if c.take(numbered(3)) {
			t.Error("a closed crew took a job")
		}
		close(release)
		if err := c.close(t.Context()); err != nil || done.Load() != 3 || c.workers != 0 {
			t.Errorf("close: %v with %d of 3 jobs done and %d workers left", err, done.Load(), c.workers)
		}
		if err := newCrew(1, nil).close(t.Context()); err != nil {
			t.Errorf("close of a crew that had nothing to do: %v", err)
		}
	})
}

func TestEveryJobIsRunOnce(t *testing.T) {
	var ran [256]atomic.Int32
	c := newCrew(40, func(j job) {
		if rand.N(4) == 0 {
			runtime.Gosched()
		}
		ran[j.msg.Data[0]].Add(1)
	})
	var takers sync.WaitGroup
	for first := range 4 {
		takers.Go(func() {
			for n := first; n < len(ran); n += 4 {
				for !c.take(numbered(n)) {
					runtime.Gosched()
				}
			}
		})
	}
	takers.Wait()
	if err := c.close(within(t, patience)); err != nil {
		t.Fatalf("close: %v; %d jobs taken, %d workers", err, c.taken, c.workers)
	}
	for n := range ran {
		if got := ran[n].Load(); got != 1 {
			t.Errorf("job %d ran %d times", n, got)
		}
	}
}
