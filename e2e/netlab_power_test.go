//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/e2e/netlab"
	"github.com/kbroker/kbroker/internal/wait"
)

// What the rows hold.
const (
	labBack      = 60 * time.Second // after all hosts had no power
	labStops     = 3 * time.Second  // requests to a dead host stop failing
	labElsewhere = 12 * time.Second // its instances are ready elsewhere
)

// TestNetlabSmoke: the super's host loses power; answers go on.
func TestNetlabSmoke(t *testing.T) {
	c := newLab(t, 3, 3, 0)
	c.must("deploy", "../examples/hello/app.yaml")
	c.answers()
	c.powerOff(c.hostOf(c.super()))
	c.answers()
}

// TestNetlabAllLosePower: all hosts lose power at once under load and writes.
func TestNetlabAllLosePower(t *testing.T) {
	needLong(t)
	c := newLab(t, 3, 3, 0)
	c.deployBoth()
	for range 3 {
		load := c.startLoad(5 * time.Minute)
		written := c.startWrites(c.servers())
		<-time.After(5 * time.Second) // of load and writes
		c.powerOff()
		load.stop()
		on := time.Now()
		c.powerOn(c.lab.Hosts()...)
		c.elsewhere(on, labBack)
		c.answers()
		t.Logf("applications ready and answering %v after the power came back", time.Since(on).Round(10*time.Millisecond))
		if took := time.Since(on); took > labBack {
			t.Errorf("applications back after %v, want %v", took, labBack)
		}
		c.whole(60 * time.Second)
		written()
		c.allSettled(30*time.Second, both)
	}
}

// TestNetlabOneHostLosesPower: the super's host, and another one.
func TestNetlabOneHostLosesPower(t *testing.T) {
	needLong(t)
	for round := range 3 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			c := newLab(t, 3, 3, 0)
			c.deployBoth()
			for _, role := range []string{"the super's", "another"} {
				c.allSettled(20*time.Second, both)
				victim := c.victim(role == "the super's")
				c.losePower(victim, role)
			}
		})
	}
}

// victim is a host that runs an instance of each app: the super's or another.
func (c *labCluster) victim(super bool) *netlab.Host {
	c.t.Helper()
	leader := c.super()
	runs := map[string]int{}
	for app := range both {
		on := map[string]bool{}
		for _, r := range c.waitReady(10*time.Second, app, app, 3, nil) {
			on[string(*r.Host)] = true
		}
		for host := range on {
			runs[host]++
		}
	}
	for _, h := range c.lab.Hosts() {
		if runs[h.Name] == len(both) && (h.Name == leader) == super {
			return h
		}
	}
	c.t.Fatalf("no host to take: %v, the super is on %s", runs, leader)
	return nil
}

func (c *labCluster) losePower(victim *netlab.Host, role string) {
	c.t.Helper()
	c.answers()
	servers := c.servers()
	own := "nats://" + victim.IP.String() + ":" + labClientPort
	load := c.startLoad(5*time.Minute, "-at", own) // it is told of the others
	probed := c.startProbes(servers)
	written := c.startWrites(servers)
	<-time.After(3 * time.Second) // of load, probes and writes
	fault := c.powerOff(victim)
	took := c.elsewhere(fault, 60*time.Second, victim)
	c.t.Logf("RESULT %s (%s) lost power: its instances ready elsewhere after %v", victim.Name, role, took.Round(10*time.Millisecond))
	c.trace(fault)
	if took > labElsewhere {
		c.t.Errorf("instances of %s (%s) ready elsewhere after %v, want %v", victim.Name, role, took.Round(10*time.Millisecond), labElsewhere)
	}
	if r := load.stop(); load.err != nil || r.Failed > 0 || r.Words != r.WordsLocal {
		c.t.Errorf("load failed (%v): %s\n%s", load.err, show(r), load.stderr.String())
	}
	p := probed()
	p.show(c.t, fault)
	var rest []string
	for _, s := range servers {
		if s != own {
			rest = append(rest, s)
		}
	}
	others, that, late := p.stopped(c.t, fault, rest...), p.stopped(c.t, fault, own), p.stopped(c.t, fault, viaSDK)
	c.t.Logf("RESULT %s (%s) lost power: the last request that failed was sent after %v by clients of other cores, %v by one of that core; the last that the SDK had late after %v",
		victim.Name, role, others.Round(time.Millisecond), that.Round(time.Millisecond), late.Round(time.Millisecond))
	for who, stopped := range map[string]time.Duration{"clients of other cores": others, "a client of that core": that, "the SDK": late} {
		if stopped > labStops {
			c.t.Errorf("requests of %s failed until %v after %s (%s) lost power, want %v", who, stopped.Round(time.Millisecond), victim.Name, role, labStops)
		}
	}
	c.powerOn(victim)
	c.whole(60 * time.Second)
	written()
	c.allSettled(30*time.Second, both)
}

// TestNetlabHalfOfFourHosts: a core and the worker lose power at once. Nothing is
// placed elsewhere, and the status says why.
func TestNetlabHalfOfFourHosts(t *testing.T) {
	needLong(t)
	c := newLab(t, 4, 3, 1)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.must("scale", "wordcount", "8")
	for range 2 {
		c.settled(20*time.Second, "wordcount", 8)
		before := placed(c.waitReady(10*time.Second, "wordcount", "wordcount", 8, nil))
		gone := []*netlab.Host{c.hostOf(other(c.super())), c.hostOf("h4")}
		fault := c.powerOff(gone...)
		var s kbroker.StatusReply
		wait.Until(t, 15*time.Second, func() (err error) {
			if s, err = c.status(); err == nil && !strings.Contains(strings.Join(s.Alarms, "; "), "2 of 4 hosts are lost or suspect, at most 1") {
				err = fmt.Errorf("alarms are %q", s.Alarms)
			}
			return err
		})
		t.Logf("RESULT alarm after %v: %q", time.Since(fault).Round(10*time.Millisecond), s.Alarms)
		for time.Since(fault) < 20*time.Second {
			rows, err := list[kbroker.InstanceRow](c.cluster, "ps")
			if err != nil {
				t.Error(err)
			} else if after := placed(rows); after != before {
				t.Fatalf("instances were\n%s\nand are\n%s", before, after)
			}
			<-time.After(500 * time.Millisecond)
		}
		on := time.Now()
		c.powerOn(gone...)
		c.whole(30 * time.Second)
		c.settled(30*time.Second, "wordcount", 8)
		t.Logf("RESULT whole %v after the power came back", time.Since(on).Round(10*time.Millisecond))
		if after := placed(c.waitReady(0, "wordcount", "wordcount", 8, nil)); after != before {
			t.Errorf("instances were\n%s\nand are\n%s", before, after)
		}
	}
}
