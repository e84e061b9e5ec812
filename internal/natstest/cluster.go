package natstest

import (
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/freeport"
	"github.com/kbroker/kbroker/internal/wait"
)

// Cluster is a number of clustered servers in this process, each with
// JetStream on a directory of its own. They carry the tags "core" and "host-" with their name. Not safe for
// concurrent use.
type Cluster struct {
	options []*server.Options
	servers []*server.Server // nil while stopped
}

// StartCluster runs n clustered servers and stops them when the test ends. It
// returns when they have a meta leader.
func StartCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{options: make([]*server.Options, n), servers: make([]*server.Server, n)}
	var routes []*url.URL
	for i := range n {
		o := &server.Options{
			ServerName: fmt.Sprintf("n%d", i+1), Host: "127.0.0.1", Port: FreePort(t), NoSigs: true, NoLog: true,
			JetStream: true, StoreDir: t.TempDir(), DisableJetStreamBanner: true,
			JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: 4 << 30,
			PingInterval: time.Second, MaxPingsOut: 2,
			LameDuckGracePeriod: LameDuckGrace, LameDuckDuration: lameDuckDuration,
		}
		o.Tags.Add("core", "host-"+o.ServerName)
		o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: FreePort(t), PingInterval: time.Second, MaxPingsOut: 2}
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", o.Cluster.Port)})
		c.options[i] = o
	}
	for i := range c.options {
		c.options[i].Routes = routes
		c.Restart(t, i)
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.Stop(i)
		}
	})
	wait.Until(t, 30*time.Second, func() error {
		for _, s := range c.servers {
			if s.JetStreamIsLeader() {
				return nil
			}
		}
		return fmt.Errorf("no meta leader among %d servers", n)
	})
	return c
}

// Stop stops server i, if it runs.
func (c *Cluster) Stop(i int) {
	if s := c.servers[i]; s != nil {
		s.Shutdown()
		s.WaitForShutdown()
		c.servers[i] = nil
	}
}

// Restart starts server i on its old directory and returns when it takes
// connections; its JetStream may not be current.
func (c *Cluster) Restart(t testing.TB, i int) {
	t.Helper()
	c.Stop(i)
	s, err := server.NewServer(c.options[i].Clone())
	if err != nil {
		t.Fatalf("new server %d: %v", i, err)
	}
	s.Start()
	c.servers[i] = s
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatalf("server %d not ready within 20 s", i)
	}
}

// Connect returns a connection to server i alone, closed when the test ends.
func (c *Cluster) Connect(t testing.TB, i int, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(c.URL(i), opts...)
	if err != nil {
		t.Fatalf("connect to server %d: %v", i, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Index returns the server that a connection is connected to, or -1.
func (c *Cluster) Index(nc *nats.Conn) int {
	for i, o := range c.options {
		if nc.ConnectedServerName() == o.ServerName {
			return i
		}
	}
	return -1
}

// StreamLeader returns the server that leads a stream of the global account,
// or -1.
func (c *Cluster) StreamLeader(stream string) int {
	for i, s := range c.servers {
		if s != nil && s.GlobalAccount().JetStreamIsStreamLeader(stream) {
			return i
		}
	}
	return -1
}

// FreePort reserves a port of 127.0.0.1 for the test: clustered servers must
// know each other's before they start, and keep it over a restart. Among the
// processes of a test run it is reserved by a bound UDP socket.
func FreePort(t testing.TB) int {
	t.Helper()
	const tries = 50
	for range tries {
		ports, err := freeport.Pick("127.0.0.1", 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		reserved, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", ports[0]))
		if err != nil {
			continue
		}
		t.Cleanup(func() { reserved.Close() })
		return ports[0]
	}
	t.Fatalf("no port is free both ways among %d tried", tries)
	return 0
}
