//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/e2e/netlab"
	"github.com/kbroker/kbroker/internal/wait"
)

// rejoinsWithin is how long after its start a host may take to be ready that had no
// power for a while.
const rejoinsWithin = 15 * time.Second

// fullToldWithin is how long after a disk is full that may go unsaid.
const fullToldWithin = 10 * time.Second

// fullFor is how long disks are full.
const fullFor = 25 * time.Second

// TestNetlabAHostStartsAgain with what is on its disk, long after it was lost: it is
// ready by its name, and runs nothing that was placed elsewhere meanwhile.
func TestNetlabAHostStartsAgain(t *testing.T) {
	needLong(t)
	c := newLab(t, 3, 3, 0)
	c.deployBoth()
	for _, super := range []bool{true, false} {
		c.allSettled(30*time.Second, both)
		h := c.victim(super)
		off := c.powerOff(h)
		c.elsewhere(off, 30*time.Second, h)
		c.powerOn(h)
		on := time.Now()
		wait.Until(t, 2*rejoinsWithin, func() error { return allReady(c.cluster) })
		took := time.Since(on)
		c.whole(60 * time.Second)
		t.Logf("RESULT H2 %s (leads: %v) has power again: ready after %v, whole after %v", h.Name, super, took.Round(10*time.Millisecond), time.Since(on).Round(10*time.Millisecond))
		if took > rejoinsWithin {
			t.Errorf("ready after %v, want %v", took, rejoinsWithin)
		}
	}
	c.allSettled(30*time.Second, both)
}

// fill takes what is left of a host's disk; free gives it back.
func fill(t *testing.T, h *netlab.Host) (free func()) {
	t.Helper()
	path := filepath.Join(h.Dir, "filled")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		_, err := f.Write(make([]byte, size))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case err != nil:
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// TestNetlabTheDiskOfACoreIsFull: its agent ends and says why, and so does each that its
// unit starts meanwhile (what it runs, runs on); writes are taken by the others, requests and reads go on,
// nothing that was acknowledged is lost. With room again all is well without a hand.
func TestNetlabTheDiskOfACoreIsFull(t *testing.T) {
	needLong(t)
	c := newLab(t, 3, 3, 0)
	c.deployBoth()
	c.allSettled(30*time.Second, both)
	c.answers()
	h := c.victim(false)
	load := c.startLoad(5 * time.Minute)
	written := c.startWrites(c.servers())
	<-time.After(2 * time.Second) // of load and writes
	began := time.Now()
	free := fill(t, h)
	wait.Until(t, fullToldWithin, func() error {
		found, err := c.findings()
		if err == nil && !slices.ContainsFunc(found, func(f client.Finding) bool { return string(f.Host) == h.Name }) {
			err = fmt.Errorf("the doctor finds nothing: %s", show(found))
		}
		return err
	})
	told := time.Since(began)
	c.saysItsDiskIsFull(h)
	said := time.Since(began)
	ended := c.unit(h)
	for time.Since(began) < fullFor {
		if rows, err := list[kbroker.InstanceRow](c.cluster, "ps"); err != nil || len(rows) < 6 {
			t.Errorf("ps while a disk is full: %d rows, %v", len(rows), err)
		}
		c.answers()
	}
	free()
	freed := time.Now()
	c.whole(60 * time.Second)
	t.Logf("RESULT P12 the disk of %s is full: its agent says so after %v, the doctor names it after %v; whole %v after there is room, %d starts in between",
		h.Name, said.Round(10*time.Millisecond), told.Round(10*time.Millisecond), time.Since(freed).Round(10*time.Millisecond), ended())
	if r := load.stop(); load.err != nil || r.Failed > 0 {
		t.Errorf("load failed (%v): %s\n%s", load.err, show(r), load.stderr.String())
	}
	written()
	c.allSettled(30*time.Second, both)
}

func (c *labCluster) saysItsDiskIsFull(h *netlab.Host) {
	c.t.Helper()
	wait.Until(c.t, fullFor, func() error {
		raw, err := os.ReadFile(h.Output)
		if err == nil && !strings.Contains(string(raw), "JetStream is off: its disk failed or filled up") {
			err = fmt.Errorf("the agent of %s says nothing", h.Name)
		}
		return err
	})
}

// TestNetlabTheDisksOfAllCoresAreFull: nothing can be written then, and no write is
// acknowledged that is lost. With room again everything is back without a hand.
func TestNetlabTheDisksOfAllCoresAreFull(t *testing.T) {
	needLong(t)
	c := newLab(t, 3, 3, 0)
	c.deployBoth()
	c.allSettled(30*time.Second, both)
	written := c.startWrites(c.servers())
	<-time.After(2 * time.Second) // of writes
	began := time.Now()
	var frees []func()
	for _, h := range c.lab.Hosts() {
		frees = append(frees, fill(t, h))
	}
	for _, h := range c.lab.Hosts() {
		c.saysItsDiskIsFull(h)
		c.unit(h)
	}
	if out, code := c.try("scale", "hello", "4", "--timeout", "2s"); code == 0 {
		t.Errorf("a change is taken that nobody can write:\n%s", out)
	}
	<-time.After(time.Until(began.Add(fullFor)))
	for _, free := range frees {
		free()
	}
	freed := time.Now()
	c.whole(60 * time.Second)
	c.answers()
	t.Logf("RESULT P12 the disks of all cores are full for %v: whole and answering %v after there is room", fullFor, time.Since(freed).Round(10*time.Millisecond))
	written()
	c.allSettled(30*time.Second, both)
}

// unit starts a host's agent again a second after each of its ends, as the unit of
// `agent install` does, and returns how many starts there were.
func (c *labCluster) unit(h *netlab.Host) (starts func() int) {
	c.t.Helper()
	const again = `while :; do "$@"; echo "the unit starts it again"; sleep 1; done`
	before, err := os.ReadFile(h.Output)
	if err != nil {
		c.t.Fatal(err)
	}
	h.Start("/bin/sh", append([]string{"-c", again, "unit", kbrokerBin}, c.args[h.Name]...)...)
	return func() int {
		raw, err := os.ReadFile(h.Output)
		if err != nil {
			c.t.Fatal(err)
		}
		return strings.Count(string(raw[len(before):]), "the unit starts it again") + 1
	}
}
