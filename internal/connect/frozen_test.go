package connect

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
)

// freezable passes a connection on to a server until freeze; from then on
// nothing is read from it, and it stays open.
func freezable(t *testing.T, server string) (url string, freeze func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	frozen, ended := make(chan struct{}), make(chan struct{})
	var running sync.WaitGroup
	pass := func(to, from net.Conn) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			select {
			case <-frozen:
				<-ended
				return
			default:
			}
			if err == nil {
				_, err = to.Write(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}
	running.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", strings.TrimPrefix(server, "nats://"))
			if err != nil {
				t.Errorf("dial %s: %v", server, err)
				return
			}
			for _, c := range []io.Closer{from, to} {
				t.Cleanup(func() { _ = c.Close() })
			}
			running.Go(func() { pass(to, from) })
			running.Go(func() { pass(from, to) })
		}
	})
	t.Cleanup(func() { close(ended); _ = l.Close() })
	return "nats://" + l.Addr().String(), func() { close(frozen) }
}

// TestAFrozenServerIsLeftAlsoUnderLoad: with the socket's buffers full, callers
// and pings wait for a write to end.
func TestAFrozenServerIsLeftAlsoUnderLoad(t *testing.T) {
	first, second := natstest.Start(t), natstest.Start(t)
	url, freeze := freezable(t, first.URL)
	nc, err := Target{Servers: []string{url, second.URL}, Instance: &kbroker.InstanceFile{}}.Connect(t.Context(), "test")
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer nc.Close()
	freeze()
	var slowest time.Duration
	wait.Until(t, 2*writeTimeout+3*time.Second, func() error {
		for range 100 {
			began := time.Now()
			// An error is fine here: it was not sent.
			_ = nc.Publish("nobody", make([]byte, 64<<10))
			slowest = max(slowest, time.Since(began))
		}
		if got := nc.ConnectedUrl(); got != second.URL {
			return fmt.Errorf("connected to %q, want %s", got, second.URL)
		}
		return nil
	})
	if slowest > writeTimeout+time.Second {
		t.Errorf("a publish took %v, want %v at most", slowest, writeTimeout)
	}
	if slowest < writeTimeout/2 {
		t.Errorf("no publish took longer than %v: the buffers were never full", slowest)
	}
}

// TestAWriteThatSendsNothingInTimeClosesTheConnection: nats.go would drop what it
// had to send, subscriptions too, and stay.
func TestAWriteThatSendsNothingInTimeClosesTheConnection(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	c := leaving{here}
	if err := c.SetWriteDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write: %d, %v; want a passed deadline", n, err)
	}
	if _, err := there.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the other side reads %v, want %v", err, io.EOF)
	}
}
