package sdktest

import (
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

const (
	// turn is how far the clock is turned at a time: who can renew its lease does so
	// before the next turn, and loses nothing by two.
	turn = 2 * time.Second
	// renewWithin bounds the wait for that, on the machine's clock.
	renewWithin = 2 * time.Second
)

// now is the time since boot, as far as the test has turned it.
func (c *Cluster) now() time.Duration { return state.Boottime() + time.Duration(c.ahead.Load()) }

// Advance turns the clock of the cluster, by which leases, idle times, timers, and what is
// known of earlier calls go. Whoever is there keeps its lease meanwhile; who is paused or cut
// off loses it, after 6.5 s. Deadlines of calls, contexts and time.Now are the machine's.
func (c *Cluster) Advance(d time.Duration) {
	c.t.Helper()
	c.turning.Lock()
	defer c.turning.Unlock()
	c.look()
	for d > 0 {
		step := min(d, turn)
		d -= step
		c.mu.Lock()
		was := map[kbroker.Incarnation]int{}
		var there []*Instance
		for _, i := range c.instances {
			if i.hears() {
				there = append(there, i)
				was[i.incarnation()] = c.renewals[i.incarnation()]
			}
		}
		c.mu.Unlock()
		c.ahead.Add(int64(step))
		for _, i := range there {
			i.stir()
			c.awaitRenewal(i, was)
		}
		c.look()
	}
}

// awaitRenewal waits until an instance that has a lease has renewed it.
func (c *Cluster) awaitRenewal(i *Instance, was map[kbroker.Incarnation]int) {
	late := time.NewTimer(renewWithin)
	defer late.Stop()
	for {
		c.mu.Lock()
		of := i.incarnation()
		before, known := was[of]
		over := !known || before == 0 || c.renewals[of] > before || !i.hears()
		next := c.renewed
		c.mu.Unlock()
		if over {
			return
		}
		select {
		case <-next:
		case <-i.gone:
			return
		case <-late.C:
			c.log.Warn("a lease was not renewed while the clock was turned", "instance", i.name)
			return
		}
	}
}

// look has all allocators see who has renewed.
func (c *Cluster) look() {
	c.deploying.Lock()
	defer c.deploying.Unlock()
	for _, a := range c.apps {
		if a.allocator == nil {
			continue
		}
		if err := a.allocator.Look(c.ctx); err != nil {
			c.log.Warn("leases were not read", "app", a.name, "err", err)
		}
	}
}
