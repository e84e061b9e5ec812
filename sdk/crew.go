package sdk

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// idleWorkers bounds the goroutines of a crew that wait for a job.
const idleWorkers = 16

// job is one request that was taken.
type job struct {
	msg      *nats.Msg
	deadline time.Time
}

// crew runs jobs on goroutines that stay for the next one. Whoever takes a job
// and sees another behind it first calls one more worker, so that no job waits
// for the end of another; but jobs that come in one piece and do not block are
// mostly run by one worker, one after the other, and their answers leave in one
// write. A goroutine for each job would cost a write for each answer, and grow
// its stack anew. Safe for concurrent use.
type crew struct {
	bound int // of jobs taken and not done
	run   func(job)

	mu      sync.Mutex
	wake    sync.Cond
	jobs    []job // taken and not begun, from head on
	head    int
	taken   int
	workers int
	idle    int  // workers that wait and were not called
	called  bool // a worker is on its way to the jobs
	closed  bool
	gone    chan struct{} // closed when closed and without workers
}

func newCrew(bound int, run func(job)) *crew {
	c := &crew{bound: bound, run: run, gone: make(chan struct{})}
	c.wake.L = &c.mu
	return c
}

// take accepts a job to be run now; false if the bound is reached or the crew
// is closed.
func (c *crew) take(j job) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.taken >= c.bound {
		return false
	}
	c.taken++
	if len(c.jobs) == cap(c.jobs) && c.head > len(c.jobs)/2 { // rather than grow
		n := copy(c.jobs, c.jobs[c.head:])
		clear(c.jobs[n:])
		c.jobs, c.head = c.jobs[:n], 0
	}
	c.jobs = append(c.jobs, j)
	c.call()
	return true
}

// busy is the part of the bound that is taken.
func (c *crew) busy() float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return float64(c.taken) / float64(c.bound)
}

// call sees to it that a worker looks at the jobs. Under mu.
func (c *crew) call() {
	switch {
	case c.called:
		return
	case c.idle > 0:
		c.idle--
		c.wake.Signal()
	default:
		c.workers++
		go c.work() // waited for by close
	}
	c.called = true
}

func (c *crew) work() {
	c.mu.Lock()
	defer c.leave() // also when a handler ends its goroutine
	for {
		c.called = false
		for c.head < len(c.jobs) {
			c.do(c.next())
		}
		if c.closed || c.idle >= idleWorkers {
			return
		}
		c.idle++
		c.wake.Wait()
	}
}

// next takes the oldest job off. Under mu.
func (c *crew) next() job {
	j := c.jobs[c.head]
	c.jobs[c.head] = job{}
	if c.head++; c.head < len(c.jobs) {
		c.call()
	} else {
		c.jobs, c.head = c.jobs[:0], 0
	}
	return j
}

// do runs a job without mu.
func (c *crew) do(j job) {
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.taken--
	}()
	c.run(j)
}

func (c *crew) leave() {
	c.workers--
	c.end()
	c.mu.Unlock()
}

// end says that the crew is gone, once it is. Under mu.
func (c *crew) end() {
	if !c.closed || c.workers > 0 {
		return
	}
	select {
	case <-c.gone:
	default:
		close(c.gone)
	}
}

// close accepts no more jobs and returns nil when those that were taken are
// done and no worker is left. It can be called again after ctx ended it.
func (c *crew) close(ctx context.Context) error {
	c.mu.Lock()
	if !c.closed {
		c.closed, c.idle = true, 0
		c.wake.Broadcast()
		c.end()
	}
	c.mu.Unlock()
	select {
	case <-c.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
