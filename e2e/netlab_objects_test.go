//go:build linux

package e2e

import (
	"testing"
	"time"
)

// TestNetlabObjectsOfAHostWithoutPower: hosts lose power, one after the other; nobody says
// that what they ran is over, and its objects are elsewhere when its leases have ended.
func TestNetlabObjectsOfAHostWithoutPower(t *testing.T) {
	needLong(t)
	const rounds = 3 // of three hosts
	c := newLab(t, 3, 3, 0)
	c.deployObjects(3)
	l := c.startCalm()
	var faults []time.Time
	for range rounds {
		for _, h := range c.lab.Hosts() {
			faults = append(faults, c.powerOff(h))
			<-time.After(pauseWithin)
			c.powerOn(h)
			c.objectsSettled(3)
			<-time.After(between)
		}
	}
	_, n := l.end()
	n.pauses(t, "H1 a host without power", faults, hostPause)
}

// TestNetlabObjectsOfAnIsolatedSuper: the leader's host, with what it runs, is cut off from
// the others for 20 s. It stops to decide, and what it owns is owned elsewhere.
func TestNetlabObjectsOfAnIsolatedSuper(t *testing.T) {
	needLong(t)
	c := newLab(t, 3, 3, 0)
	c.deployObjects(3)
	l := c.startCalm()
	var faults []time.Time
	for range 3 {
		h := c.hostOf(c.super())
		faults = append(faults, time.Now())
		h.Cut()
		<-time.After(20 * time.Second)
		c.lab.Heal()
		c.objectsSettled(3)
		<-time.After(between)
	}
	_, n := l.end()
	n.pauses(t, "N9 the leader cut off", faults, isolatedPause)
}
