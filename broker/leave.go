package broker

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
)

// Bounds of stopping.
const (
	// clientsLeave is how long clients have to connect elsewhere, after they
	// were told that this server stops; sendAway in how much more time those
	// who did not are cut off.
	clientsLeave = 3 * time.Second
	sendAway     = 300 * time.Millisecond
	leavePoll    = 10 * time.Millisecond
	// leaveWithin bounds the polite stop (leaderships move first, for up to a
	// second), stopWithin the blunt one after it.
	leaveWithin = clientsLeave + sendAway + 2*time.Second
	stopWithin  = 5 * time.Second
)

// stop ends all servers. With other cores there, leaderships are moved to them
// first, then clients are told and have time to connect to them.
func (b *Broker) stop() error {
	if b.system != nil {
		defer b.system.Close()
	}
	var lameDuck sync.WaitGroup // Shutdown ends it
	if b.core != nil && b.refuge() {
		left := make(chan struct{})
		lameDuck.Go(func() {
			defer close(left)
			b.core.LameDuckShutdown()
		})
		b.awaitClients(left)
	}
	err := stopsWithin(stopWithin, func() {
		if b.core != nil {
			b.core.Shutdown()
			b.core.WaitForShutdown()
		}
		if w := b.takeWitness(); w != nil {
			w.Shutdown()
			w.WaitForShutdown()
		}
		lameDuck.Wait()
	})
	if err != nil {
		return fmt.Errorf("nats server %s: %w", b.cfg.Host, err)
	}
	return nil
}

// stopsWithin is an error when stop has not returned within the bound; it runs on
// then, in a process that is about to end.
func stopsWithin(bound time.Duration, stop func()) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	select {
	case <-stopped:
		return nil
	case <-time.After(bound):
		return fmt.Errorf("it does not stop within %v", bound)
	}
}

// awaitClients returns when the lame duck has stopped, or need not go on: it
// has moved its leaderships and no client is left but those in this process, or
// there is no core any more that clients could go to.
func (b *Broker) awaitClients(left <-chan struct{}) {
	deadline := time.NewTimer(leaveWithin)
	defer deadline.Stop()
	poll := time.NewTicker(leavePoll)
	defer poll.Stop()
	for {
		select {
		case <-left:
			return
		case <-deadline.C:
			return
		case <-poll.C:
		}
		// The server moves leaderships, turns JetStream off, then tells clients.
		if !b.refuge() || !b.core.JetStreamEnabled() && outsiders(b.core) == 0 {
			return
		}
	}
}

// refuge: there is another core that is current and does not stop as well.
func (b *Broker) refuge() bool {
	routes, err := b.core.Routez(nil)
	if err != nil {
		return false
	}
	for host, current := range b.Members().Current {
		if current && host != b.cfg.Host && !b.others.leaving(host, routes.Routes) {
			return true
		}
	}
	return false
}

// outsiders counts the clients that are not in this process: those have no
// address.
func outsiders(s *server.Server) (n int) {
	conns, err := s.Connz(&server.ConnzOptions{Limit: s.NumClients() + 1})
	if err != nil {
		return 0
	}
	for _, c := range conns.Conns {
		if c.IP != "" {
			n++
		}
	}
	return n
}

// leavers knows which servers said that they stop. Safe for concurrent use.
type leavers struct {
	mu   sync.Mutex                // guards what follows
	said map[kbroker.HostID]string // the id of a host's server that said so last
}

// listen notes the servers that become lame ducks or shut down, as long as the
// connection, one in SYS, is open.
func (l *leavers) listen(system *nats.Conn) error {
	for _, event := range []string{"LAMEDUCK", "SHUTDOWN"} {
		_, err := system.Subscribe("$SYS.SERVER.*."+event, func(m *nats.Msg) {
			var said server.ServerInfo
			if err := json.Unmarshal(m.Data, &said); err == nil {
				l.note(kbroker.HostID(said.Name), said.ID)
			}
		})
		if err != nil {
			return fmt.Errorf("listen for cores that stop: %w", err)
		}
	}
	return nil
}

func (l *leavers) note(host kbroker.HostID, server string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said == nil {
		l.said = map[kbroker.HostID]string{}
	}
	l.said[host] = server
}

// leaving: the host's server said that it stops, and no other one of that name
// has come since. A server has an id of its own at each start; the routes tell
// which ones are there.
func (l *leavers) leaving(host kbroker.HostID, routes []*server.RouteInfo) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	said, ok := l.said[host]
	return ok && !slices.ContainsFunc(routes, func(r *server.RouteInfo) bool {
		return r.RemoteName == string(host) && r.RemoteID != said
	})
}
