package ownership

import (
	"flag"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "run this world alone, and print what happens in it")
	simCount = flag.Int("sim.count", 1000, "how many worlds are run")
)

// TestNothingBreaksInAnyWorld: thousands of worlds, each with a seed. In none of them is
//
//	P0  a record written under an older epoch, or by two owners at one epoch
//	P1  a request effective twice
//	P2  an acknowledged one lost, or one effective of which it was said that it was not
//	P3  an order other than that in which callers saw things happen
//	P4  a read that shows less than was shown before, or more than is stored
//	    a message with two outcomes or none, or of a turn that was taken back
//	    a reminder that leads to no turn, or to one although a stored turn has ended or moved it
//	P5  an object that does not answer when all is well again
func TestNothingBreaksInAnyWorld(t *testing.T) {
	if *simSeed != 0 {
		w := newWorld(*simSeed, true, nil)
		broken := w.run()
		t.Log("\n" + strings.Join(w.trace, "\n"))
		if broken != "" {
			t.Errorf("seed %d: %s", *simSeed, broken)
		}
		return
	}
	began := time.Now()
	first := uint64(began.UnixNano())
	if testing.Short() {
		*simCount /= 10
	}
	var acked, reads, gated, refused, told, reminded atomic.Int64
	broken := search(first, *simCount, nil, func(w *world) {
		acked.Add(int64(w.acked))
		reads.Add(int64(w.reads))
		gated.Add(int64(w.gated))
		refused.Add(int64(w.refused))
		told.Add(int64(w.told))
		reminded.Add(int64(w.reminded))
	})
	if broken != nil {
		t.Fatalf("seed %d (-sim.seed): %s\n%s", broken.seed, broken.failed, strings.Join(broken.last(150), "\n"))
	}
	t.Logf("%d worlds from seed %d in %v: %d writes acknowledged, %d reads, %d by gates, %d refused, %d messages, %d reminders", *simCount, first, time.Since(began).Round(time.Millisecond), acked.Load(), reads.Load(), gated.Load(), refused.Load(), told.Load(), reminded.Load())
	if n := int64(*simCount); acked.Load() < 10*n || reads.Load() < 10*n || gated.Load() < n || refused.Load() < n/20 || told.Load() < n/2 || reminded.Load() < n/2 {
		t.Errorf("%d writes, %d reads, %d refused, %d messages, %d reminders in %d worlds: there is no life in them", acked.Load(), reads.Load(), refused.Load(), told.Load(), reminded.Load(), n)
	}
}

// search runs worlds of seeds from first on, on all processors, and returns the one with the
// lowest seed that breaks, run again with a trace; nil: all hold.
func search(first uint64, count int, only *faults, each func(*world)) *world {
	var next, lowest atomic.Int64
	lowest.Store(int64(count))
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for {
				n := next.Add(1) - 1
				if n >= lowest.Load() {
					return
				}
				w := newWorld(first+uint64(n), false, only)
				if w.run() == "" {
					each(w)
					continue
				}
				for at := lowest.Load(); n < at && !lowest.CompareAndSwap(at, n); at = lowest.Load() {
				}
			}
		})
	}
	all.Wait()
	if lowest.Load() == int64(count) {
		return nil
	}
	w := newWorld(first+uint64(lowest.Load()), true, only)
	w.run()
	return w
}

// last are the last lines of what happened.
func (w *world) last(n int) []string { return w.trace[max(0, len(w.trace)-n):] }
