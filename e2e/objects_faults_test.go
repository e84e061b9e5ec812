package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/wait"
)

// What the rows of objects hold.
const (
	killedPause = 2 * time.Second // an instance was killed
	corePause   = 4 * time.Second // an agent was, which is a core
	hostPause   = 8 * time.Second // a host has died with all that it ran
	// The leader's host is cut off: callers and the next leader notice it by silence.
	isolatedPause = 14 * time.Second
)

// between two faults, for what they did to be over.
const between = 4 * time.Second

// TestObjectsOfAKilledInstance: nine instances of counters are killed one after the other,
// and as many of the bank: their objects go on elsewhere.
func TestObjectsOfAKilledInstance(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.deployObjects(3)
	l := c.startCalm()
	var faults []time.Time
	for i := range 9 {
		c.objectsReady(3)
		host := []string{"h1", "h2", "h3"}[i%3]
		for _, app := range objectApps {
			row := c.instanceOn(app, host)
			if app == "counter" {
				faults = append(faults, time.Now())
			}
			if err := syscall.Kill(*row.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(between)
	}
	_, n := l.endWithoutFailure()
	n.pauses(t, "P1 an instance killed", faults, killedPause)
}

// TestObjectsOfAKilledAgent: the agent of each host, which is a core, is killed; what it
// runs lives. Its instances hand over what they own, or keep it if the agent is soon back.
func TestObjectsOfAKilledAgent(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.deployObjects(3)
	for _, back := range []time.Duration{0, 15 * time.Second} {
		var faults []time.Time
		l := c.startCalm()
		for _, host := range []string{"h1", "h2", "h3"} {
			faults = append(faults, time.Now())
			c.kill(host, true)
			<-time.After(back)
			c.up()
			c.objectsSettled(3)
			<-time.After(between)
		}
		_, n := l.endWithoutFailure()
		n.pauses(t, "A1 an agent killed, away for "+back.String(), faults, corePause)
	}
}

// TestObjectsOfAKilledHost: all processes of each host are killed at once. Who has waited
// for the end of its instances, by which their objects were free, is dead too.
func TestObjectsOfAKilledHost(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.deployObjects(3)
	l := c.startCalm()
	var faults []time.Time
	for _, host := range []string{"h1", "h2", "h3"} {
		faults = append(faults, time.Now())
		c.kill(host, false)
		<-time.After(pauseWithin)
		c.up()
		c.objectsSettled(3)
		<-time.After(between)
	}
	_, n := l.end()
	n.pauses(t, "H1 a host killed", faults, hostPause)
}

// TestObjectsWithoutAllocatorAndSuper: both allocators are killed again and again for a
// minute, and for all of it the agent that led is dead: who owns what stays so, and no call
// fails.
func TestObjectsWithoutAllocatorAndSuper(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.deployObjects(3)
	l := c.startObjects(manyCallers, counterPause)
	super := c.super()
	killed := time.Now()
	c.kill(super, true)
	c.withoutAllocators(time.Minute)
	c.up()
	c.objectsSettled(3)
	_, n := l.endWithoutFailure()
	t.Logf("RESULT O1 allocators and super killed for a minute: longest call %v", n.pause(killed))
}

// withoutAllocators kills all allocators as soon as they are there, for some time.
func (c *cluster) withoutAllocators(lasts time.Duration) {
	c.t.Helper()
	over, again := time.After(lasts), time.NewTicker(100*time.Millisecond)
	defer again.Stop()
	killed := 0
	for {
		killed += c.signal("", allocators, syscall.SIGKILL)
		select {
		case <-over:
			c.t.Logf("%d processes of allocators killed in %v", killed, lasts)
			return
		case <-again.C:
		}
	}
}

// TestObjectsOfAKilledAllocator: both allocators are killed while shards are on their way,
// at another step of it each time. They run again at once: an owner that leaves while there
// is none for long ends with its grace, and what it has not handed over waits.
func TestObjectsOfAKilledAllocator(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.deployObjects(3)
	l := c.startObjects(manyCallers, counterPause)
	for i, count := range []string{"6", "3", "6", "3"} {
		for _, app := range objectApps {
			c.must("scale", app, count, "--detach")
		}
		<-time.After(time.Duration(i+1) * 300 * time.Millisecond)
		if c.signal("", allocators, syscall.SIGKILL) == 0 {
			t.Error("there is no allocator to kill")
		}
		<-time.After(3 * between)
	}
	c.objectsSettled(3)
	l.endWithoutFailure()
}

// TestObjectsOfAPausedAllocatorAndSuper: the active allocators, then the leader, stand still
// for 20 s while others take over, and go on: nothing that they had in work has an effect.
func TestObjectsOfAPausedAllocatorAndSuper(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.deployObjects(3)
	l := c.startObjects(manyCallers, counterPause)
	for _, what := range []string{allocators, agents} {
		host := "h1"
		if what == agents {
			host = c.super()
		}
		if c.signal(host, what, syscall.SIGSTOP) == 0 {
			// The allocators of both apps are on two of the hosts.
			t.Fatalf("%s has none to stop: %v", host, c.processes(host))
		}
		for _, app := range objectApps { // something to decide meanwhile
			c.must("scale", app, "4", "--detach")
		}
		<-time.After(20 * time.Second)
		c.signal(host, what, syscall.SIGCONT)
		for _, app := range objectApps {
			c.must("scale", app, "3", "--detach")
		}
		c.objectsSettled(3)
	}
	l.endWithoutFailure()
}

// TestObjectsOfAPausedOwner: an owner stands still for 20 s, with its agent, and alone where
// nobody looks whether it lives, and goes on: others own its objects by then, and nothing
// that it had in work takes effect, or is seen.
func TestObjectsOfAPausedOwner(t *testing.T) {
	needLong(t)
	for _, alone := range []bool{false, true} {
		c := up(t, 3)
		if alone {
			c.deployObjects(3, "health: {live: off}")
		} else {
			c.deployObjects(3)
		}
		l := c.startObjects(manyCallers, counterPause)
		var faults []time.Time
		for i, host := range []string{"h1", "h2", "h3"} {
			faults = append(faults, time.Now())
			var still []int
			for _, app := range objectApps {
				still = append(still, *c.instanceOn(app, host).PID)
			}
			if !alone {
				still = append(still, c.agentPID(host))
			}
			for _, pid := range still {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			<-time.After(20 * time.Second)
			for _, pid := range still {
				_ = syscall.Kill(pid, syscall.SIGCONT) // it may have ended
			}
			wait.Until(t, 20*time.Second, func() error { return over(still[0]) })
			if i < 2 {
				c.objectsSettled(3)
				<-time.After(between)
			}
		}
		c.objectsSettled(3)
		_, n := l.end()
		what := "O2 an owner paused with its agent"
		if alone {
			what = "O2 an owner paused alone, nobody looks whether it lives"
		}
		n.pauses(t, what, faults, hostPause)
	}
}
