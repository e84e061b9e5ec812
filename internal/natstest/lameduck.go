package natstest

import (
	"fmt"
	"testing"
	"time"
)

const (
	// LameDuckGrace is how long a server of a Cluster keeps all its clients
	// after it told them to leave, lameDuckDuration how long after it was told
	// to leave itself the last one is cut off.
	LameDuckGrace    = time.Second
	lameDuckDuration = 2 * time.Second
)

// LameDuck sends server i away as an upgrade does: it takes no more clients,
// tells those it has, cuts them off after LameDuckGrace and ends. The channel
// is closed when it has gone. Restart brings it back, then or before.
func (c *Cluster) LameDuck(t testing.TB, i int) (gone <-chan struct{}) {
	t.Helper()
	s, ended := c.servers[i], make(chan struct{})
	go func() {
		defer close(ended)
		s.LameDuckShutdown()
		s.WaitForShutdown()
	}()
	t.Cleanup(func() { s.Shutdown(); <-ended })
	return ended
}

// Mesh returns how many other servers server i has a route to.
func (c *Cluster) Mesh(i int) int { return c.servers[i].NumRemotes() }

// Size returns the number of servers.
func (c *Cluster) Size() int { return len(c.options) }

// URL is where clients reach server i, whether it runs or not.
func (c *Cluster) URL(i int) string { return fmt.Sprintf("nats://127.0.0.1:%d", c.options[i].Port) }

// Clients returns how many clients server i has.
func (c *Cluster) Clients(i int) int { return c.servers[i].NumClients() }
