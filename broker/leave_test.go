package broker

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/wait"
)

// doors counts the connections that were made.
type doors struct {
	*server.Server
	n atomic.Int32
}

func (d *doors) InProcessConn() (net.Conn, error) {
	d.n.Add(1)
	return d.Server.InProcessConn()
}

// TestAConnectionIsClosedDuringALameDuck: one that was sent away came back, and
// is neither read nor closed until the server stops.
func TestAConnectionIsClosedDuringALameDuck(t *testing.T) {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		LameDuckGracePeriod: time.Millisecond, LameDuckDuration: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server is not ready")
	}
	in := &doors{Server: s}
	var conns []*nats.Conn
	for range 2 { // sent away one after the other
		c, err := connect(s, nats.InProcessServer(in))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); s.LameDuckShutdown() }()
	t.Cleanup(func() { s.Shutdown(); <-ended })
	wait.Until(t, 30*time.Second, func() error {
		if n := int(in.n.Load()); n == len(conns) {
			return fmt.Errorf("%d connections were made, none came back", n)
		}
		return nil
	})
	began := time.Now()
	for _, c := range conns {
		c.Close()
	}
	if took := time.Since(began); took > 5*inProcessWrite {
		t.Errorf("closed after %v, want a write's %v for each", took, inProcessWrite)
	}
}

// TestACoreThatIsBackIsARefuge, as soon as it is current: while the one before
// was about to stop it was none.
func TestACoreThatIsBackIsARefuge(t *testing.T) {
	a := start(t, configOf(t, "a", true))
	a.awaitReady(15 * time.Second)
	if a.refuge() {
		t.Error("the only core has somebody to hand over to")
	}
	b := start(t, configOf(t, "b", false, a.cfg))
	refuge := func(within time.Duration) {
		t.Helper()
		wait.Until(t, within, func() error {
			if !a.refuge() {
				return fmt.Errorf("a has nobody to hand over to; it sees %+v", a.Members().Current)
			}
			return nil
		})
	}
	b.awaitReady(15 * time.Second)
	refuge(5 * time.Second)
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if a.refuge() {
		t.Error("a core that has stopped is somebody to hand over to")
	}
	again := start(t, b.cfg)
	again.awaitReady(15 * time.Second)
	refuge(2 * time.Second)
}

// TestAStopThatHangsIsAnError once the bound has passed, not before.
func TestAStopThatHangsIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		began := time.Now()
		if err := stopsWithin(stopWithin, func() { <-release }); err == nil {
			t.Error("no error")
		}
		if took := time.Since(began); took != stopWithin {
			t.Errorf("returned after %v, want %v", took, stopWithin)
		}
		if err := stopsWithin(stopWithin, func() { time.Sleep(stopWithin - 1) }); err != nil {
			t.Errorf("a stop within the bound: %v", err)
		}
	})
}
