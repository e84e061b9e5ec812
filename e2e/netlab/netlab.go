//go:build linux

// Package netlab is a laboratory of hosts for tests: network namespaces on a
// bridge, each with an address and a small file system of its own, whose power
// and cables can be pulled.
//
//	       switch (namespace sw: bridge br0, nftables)
//	   p1 |        p2 |        p3 |           op |
//	 eth0 |      eth0 |      eth0 |         eth0 |
//	h1 10.77.0.1  h2 10.77.0.2  h3 10.77.0.3   operator 10.77.0.254
//	h1.img ext4   h2.img ext4   h3.img ext4    (no disk)
//
// A process belongs to the host in whose network namespace it is; so do the
// processes that it starts, whatever else they do. Everything else, the clock
// and the file system outside of Host.Dir included, is the machine's.
//
// What each fault is:
//
//   - PowerOff: first the port leaves the bridge, so that no FIN, no RST and no
//     acknowledgement gets out; then the file system is shut down without a
//     flush of its journal, so that what was not synced is gone; then all
//     processes are killed and the namespace, with its sockets, is removed.
//     What had reached the image without a sync may survive, as on a disk.
//   - PowerOn: mounted (the journal is replayed), same addresses, no process.
//   - Cut, CutPair, CutOneWay: frames vanish, the carrier stays.
//   - Loss: every frame is dropped with a probability, in each direction. Frames
//     are as long as on a wire (no segmentation offload).
//   - Pause, Resume: SIGSTOP, SIGCONT to all processes. The host's kernel goes on:
//     it acknowledges what it receives until the buffers are full.
//   - Kill: SIGKILL to all processes. The host's kernel closes their connections.
//
// Every fault is written to the test's log with the time. A lab removes all it
// made when the test ends, also a failed one; what a killed test run left is
// removed by the next New. Methods of a lab are called by the test's goroutine,
// and end the test when they do not work.
package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// maxHosts is what the addresses are enough for, with some distance.
const maxHosts = 200

// Lab is a set of hosts that can reach each other, and nothing else.
type Lab struct {
	// Dir holds the hosts' disks: Dir/h1 is that of h1. What else is put there
	// is removed with the lab.
	Dir string

	t        testing.TB
	name     string
	began    time.Time
	hosts    []*Host
	operator *Namespace
	lost     map[string]float64 // percent, by port; "": of all
}

// labs numbers the labs of this process.
var labs atomic.Int64

// New makes a lab of n hosts named h1 to hn. It skips the test, with the reason,
// where that cannot work; with KBROKER_NETLAB=require it fails it.
func New(t testing.TB, n int) *Lab {
	t.Helper()
	if err := lacking(); err != nil {
		if os.Getenv("KBROKER_NETLAB") == "require" {
			t.Fatalf("no network lab: %v", err)
		}
		t.Skipf("SKIPPED, no network lab: %v", err)
	}
	if n < 1 || n > maxHosts {
		t.Fatalf("a lab of %d hosts, want 1 to %d", n, maxHosts)
	}
	sweep(t)
	name := ownName(int(labs.Add(1)))
	l := &Lab{t: t, name: name, began: time.Now(), Dir: dirOf(name), lost: map[string]float64{}}
	t.Cleanup(l.close)
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l.must(share(l.Dir))
	l.buildSwitch()
	for i := 1; i <= n; i++ {
		h := &Host{Namespace: l.namespace("h"+strconv.Itoa(i), "p"+strconv.Itoa(i), byte(i))}
		h.Dir = filepath.Join(l.Dir, h.Name)
		h.image = h.Dir + ".img"
		l.must(h.format())
		l.must(h.mount())
		l.plugIn(h.Namespace)
		h.on = true
		l.hosts = append(l.hosts, h)
	}
	l.operator = l.namespace("op", "op", 254)
	l.plugIn(l.operator)
	l.log("%d hosts and an operator as %s-*, disks in %s", n, l.name, l.Dir)
	return l
}

// namespace describes one; it is made when it is plugged in.
func (l *Lab) namespace(name, port string, number byte) *Namespace {
	return &Namespace{
		Name: name, IP: netip.AddrFrom4([4]byte{10, 77, 0, number}), Output: filepath.Join(l.Dir, name+".out"),
		lab: l, netns: l.name + "-" + name, port: port, number: number,
	}
}

// Host is the i-th host, from 1: Host(1) is h1.
func (l *Lab) Host(i int) *Host { return l.hosts[i-1] }

// Hosts are all hosts in order.
func (l *Lab) Hosts() []*Host { return l.hosts }

// HostNamed is the host of that name.
func (l *Lab) HostNamed(name string) *Host {
	l.t.Helper()
	for _, h := range l.hosts {
		if h.Name == name {
			return h
		}
	}
	l.t.Fatalf("the lab has no host %q", name)
	return nil
}

// Operator is where people and load come from: on the same bridge, no host.
func (l *Lab) Operator() *Namespace { return l.operator }

// close removes everything that the lab made.
func (l *Lab) close() {
	if err := remove(l.name); err != nil {
		l.t.Errorf("remove the lab: %v", err)
	}
	for _, h := range l.hosts {
		h.reap()
	}
	if l.operator != nil {
		l.operator.reap()
	}
}

// log says what was done to the lab, and when.
func (l *Lab) log(format string, args ...any) {
	l.t.Helper()
	now := time.Now()
	l.t.Logf("netlab %s +%.3f s: %s", now.UTC().Format("15:04:05.000Z"), now.Sub(l.began).Seconds(), fmt.Sprintf(format, args...))
}

// must ends the test when the lab itself does not work.
func (l *Lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("netlab: %v", err)
	}
}

// within polls until check returns nil; it returns its last error after that
// time.
func within(timeout time.Duration, check func() error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", timeout, err)
		}
		<-time.After(2 * time.Millisecond)
	}
}

var errStill = errors.New("still there")
