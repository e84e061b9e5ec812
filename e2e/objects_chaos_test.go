package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	chaosSeed = flag.Uint64("chaos.seed", 0, "of TestObjectsInChaos: repeats its faults (0: another one each time)")
	chaosFor  = flag.Duration("chaos.duration", 2*time.Minute, "of TestObjectsInChaos: how long it makes faults")
)

// TestObjectsInChaos kills, stops and moves what there is, in an order and at times that a
// seed decides: instances, agents, allocators, the super, whole hosts, one at a time or
// beside each other, as long as two cores are well.
func TestObjectsInChaos(t *testing.T) {
	needLong(t)
	seed := *chaosSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("RESULT seed %d: go test ./e2e -long -run TestObjectsInChaos -chaos.seed %d -chaos.duration %v", seed, seed, *chaosFor)
	c := up(t, 3)
	c.deployObjects(4)
	l := c.startObjects(manyCallers, counterPause)
	ch := chaos{cluster: c, random: rand.New(rand.NewPCG(seed, 0)), count: 4}
	for began := time.Now(); time.Since(began) < *chaosFor; {
		ch.fault()
	}
	ch.mend()
	l.end()
	t.Logf("RESULT %d faults: %v", ch.total(), ch.made)
}

// chaos makes faults.
type chaos struct {
	*cluster
	random *rand.Rand
	count  int
	down   string // the host whose agent was killed, and is not back
	still  []int  // processes that were stopped
	made   map[string]int
}

func (c *chaos) total() int {
	n := 0
	for _, of := range c.made {
		n += of
	}
	return n
}

// fault makes one, and waits for some time. Some mend what was broken before.
func (c *chaos) fault() {
	host := fmt.Sprintf("h%d", 1+c.random.IntN(3))
	what := c.random.IntN(10)
	pause := time.Duration(c.random.Int64N(int64(5 * time.Second)))
	name := ""
	switch {
	case what < 3:
		name = "instances killed"
		c.signalInstances(host, syscall.SIGKILL)
	case what == 3:
		name = "allocators killed"
		c.signal("", allocators, syscall.SIGKILL)
	case what == 4 && c.down == "":
		name, c.down = "agent killed", host
		c.kill(host, true)
	case what == 5 && c.down == "":
		name = "super killed"
		c.down = c.leader()
		c.kill(c.down, true)
	case what == 6 && c.down == "":
		name, c.down = "host killed", host
		c.kill(host, false)
	case what == 7 && len(c.still) == 0:
		name = "instances stopped"
		c.still = c.signalInstances(host, syscall.SIGSTOP)
		pause += time.Duration(c.random.Int64N(int64(8 * time.Second)))
	case what == 8:
		name = "scaled"
		c.count = 3 + c.random.IntN(4)
		for _, app := range objectApps {
			c.try("scale", app, fmt.Sprint(c.count), "--detach") // there may be no leader
		}
	default:
		name = "mended"
		c.mend()
	}
	c.t.Logf("%s %s (%s), then %v", time.Now().UTC().Format("15:04:05.000"), name, host, pause.Round(time.Millisecond))
	if c.made == nil {
		c.made = map[string]int{}
	}
	c.made[name]++
	<-time.After(pause)
}

// leader is the host that led last, any if nobody says.
func (c *chaos) leader() string {
	if s, err := c.status(); err == nil && s.Leader != nil {
		return string(*s.Leader)
	}
	return "h1"
}

// signalInstances signals the instances of the apps on a host, and returns their processes:
// those that are no agents, and no allocators.
func (c *chaos) signalInstances(host string, sig syscall.Signal) []int {
	var sent []int
	for pid, cmd := range c.processes(host) {
		if !strings.Contains(cmd, agents) && !strings.Contains(cmd, allocators) && syscall.Kill(pid, sig) == nil {
			sent = append(sent, pid)
		}
	}
	return sent
}

// mend lets everything go on, and waits until it is well.
func (c *chaos) mend() {
	c.t.Helper()
	for _, pid := range c.still {
		_ = syscall.Kill(pid, syscall.SIGCONT) // it may have ended
	}
	c.still, c.down = nil, ""
	c.up()
	c.whole(time.Minute)
	for _, app := range objectApps {
		c.must("scale", app, fmt.Sprint(c.count))
	}
	c.objectsSettled(c.count)
}
