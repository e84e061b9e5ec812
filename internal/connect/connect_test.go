package connect

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
)

// silent is a server that accepts and never says a word: a frozen core.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return "nats://" + l.Addr().String()
}

// refused is an address where nobody listens.
func refused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	return "nats://" + l.Addr().String()
}

func TestConnectTriesEveryServer(t *testing.T) {
	s := natstest.Start(t)
	target := Target{Servers: []string{silent(t), refused(t), s.URL}}
	began := time.Now()
	nc, err := target.Connect(t.Context(), "test")
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer nc.Close()
	if took := time.Since(began); took > attemptTimeout+time.Second {
		t.Errorf("connected after %v, want a second per dead server at most", took)
	}
	if nc.ConnectedUrl() != s.URL {
		t.Errorf("connected to %s, want %s", nc.ConnectedUrl(), s.URL)
	}
}

func TestConnectSaysWhomItCouldNotReach(t *testing.T) {
	_, err := Target{Servers: []string{refused(t)}, Source: "KBROKER_DIR=x"}.Connect(t.Context(), "test")
	if !errors.Is(err, kbroker.Unavailable) || kbroker.AsError(err).Hint == "" {
		t.Errorf("connect: %v, want Unavailable with a hint", err)
	}
}

func TestConnectEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	servers := []string{}
	for range 5 {
		servers = append(servers, silent(t))
	}
	began := time.Now()
	if _, err := (Target{Servers: servers}).Connect(ctx, "test"); !errors.Is(err, kbroker.Unavailable) {
		t.Errorf("connect: %v, want Unavailable", err)
	}
	if took := time.Since(began); took > attemptTimeout {
		t.Errorf("took %v with a context that had ended, want no attempt", took)
	}
}

func TestAnInstanceConnectsInTheBackgroundItsOwnHostFirst(t *testing.T) {
	own, other := natstest.Start(t), natstest.Start(t)
	for range 5 {
		nc, err := Target{Servers: []string{own.URL, other.URL}, Instance: &kbroker.InstanceFile{}}.Connect(t.Context(), "test")
		if err != nil {
			t.Fatalf("connect: %v", err)
		}
		if nc.ConnectedUrl() != own.URL {
			t.Errorf("connected to %s, want the own host's %s", nc.ConnectedUrl(), own.URL)
		}
		nc.Close()
	}
	nc, err := Target{Servers: []string{refused(t)}, Instance: &kbroker.InstanceFile{}}.Connect(t.Context(), "test")
	if err != nil {
		t.Fatalf("an instance without a broker: %v, want a connection that waits", err)
	}
	defer nc.Close()
	if nc.Status() != nats.RECONNECTING {
		t.Errorf("status %v, want %v", nc.Status(), nats.RECONNECTING)
	}
}

func TestAConnectionOutlivesItsServer(t *testing.T) {
	first, second := natstest.Start(t), natstest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	nc, err := Target{Servers: []string{first.URL, second.URL}, Instance: &kbroker.InstanceFile{}}.Connect(ctx, "test")
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer nc.Close()
	cancel() // bounds the first connection only
	first.Shutdown()
	wait.Until(t, 5*time.Second, func() error {
		if got := nc.ConnectedUrl(); got != second.URL {
			return kbroker.Errorf(kbroker.Unavailable, "connected to %q, want %s", got, second.URL)
		}
		return nil
	})
}

func TestReconnectDelayIsSmallRandomAndBounded(t *testing.T) {
	for rounds, upper := range map[int]time.Duration{1: reconnectMax, 2: 2 * reconnectMax, 3: 4 * reconnectMax, 9: reconnectCap, 1 << 30: reconnectCap} {
		seen := map[time.Duration]bool{}
		for range 100 {
			d := reconnectDelay(rounds)
			if d < reconnectMin || d > upper {
				t.Fatalf("reconnectDelay(%d) = %v, want %v to %v", rounds, d, reconnectMin, upper)
			}
			seen[d] = true
		}
		if len(seen) < 10 {
			t.Errorf("reconnectDelay(%d) has %d values in 100, want them spread", rounds, len(seen))
		}
	}
}
