package sdk

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/credential"
)

// link is one connection of a transport. Mostly there is one; while the
// transport moves there are more:
//
//	coming -> current -> leaving
//	   `---------------------^
//
// Only the current one reconnects when it is lost; the others are given up.
type link struct {
	conn *nats.Conn
	lost chan struct{} // closed when it is lost while coming or leaving

	mu    sync.Mutex
	stage stage
	gone  bool      // lost is closed
	lame  bool      // its server shuts down
	since time.Time // of the connection; zero while there is none
	holds time.Time // until when its credential does; zero: for ever
}

type stage int

const (
	coming stage = iota
	current
	leaving
)

// turn moves the link on; false if it can no longer be the current one.
func (l *link) turn(to stage) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if to == current && l.gone {
		return false
	}
	l.stage = to
	if to == leaving && l.since.IsZero() {
		l.giveUp()
	}
	return true
}

// giveUp says that the link is lost for good. Under mu.
func (l *link) giveUp() {
	if !l.gone {
		l.gone = true
		close(l.lost)
	}
}

func (l *link) is(s stage) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stage == s
}

// up notes a connection.
func (l *link) up(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since, l.lame, l.holds = time.Now(), false, until
}

// ends is when the connection is cut, as its credential ends; zero: never.
func (l *link) ends() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holds
}

// down notes the loss of the connection; false if it comes back.
func (l *link) down() (expected bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Time{}
	if l.stage == current {
		return false
	}
	l.giveUp()
	return true
}

func (l *link) limp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lame = true
}

// state is when the link connected (zero: it is not) and whether its server
// shuts down.
func (l *link) state() (since time.Time, lame bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since, l.lame
}

// linkEvents is what a link tells its transport.
type linkEvents struct {
	connEvents        // of the current link
	told       func() // the server shuts down
}

// network makes links.
type network struct {
	target connect.Target // the first server is home
	name   string
	log    *slog.Logger
}

// newNetwork makes the network of one process. Home is the own host's core; for
// who has none, one of them by chance, so that all cores are home to as many.
func newNetwork(target connect.Target, name string, log *slog.Logger) *network {
	if target.Instance == nil {
		target.Servers = slices.Clone(target.Servers)
		rand.Shuffle(len(target.Servers), func(i, j int) {
			target.Servers[i], target.Servers[j] = target.Servers[j], target.Servers[i]
		})
	}
	return &network{target: target, name: name, log: log}
}

// first makes the link that a client begins with. That of an instance may still
// be on its way to its first connection.
func (n *network) first(ctx context.Context, on linkEvents) (*link, error) {
	l := &link{lost: make(chan struct{}), stage: current}
	conn, err := n.target.Connect(ctx, n.name, append(n.options(l, on), nats.DontRandomize())...)
	return n.made(l, conn), err
}

// second makes a link to one of servers, or fails. Each attempt has a link of its
// own: one that came second is closed, and that is no loss of the first.
func (n *network) second(ctx context.Context, servers []string, on linkEvents) (*link, error) {
	links := make([]*link, len(servers))
	conn, i, err := n.target.ConnectTo(ctx, servers, n.name, func(i int) []nats.Option {
		links[i] = &link{lost: make(chan struct{}), stage: coming}
		return n.options(links[i], on)
	})
	if err != nil {
		return nil, err
	}
	return n.made(links[i], conn), nil
}

func (n *network) made(l *link, conn *nats.Conn) *link {
	if conn == nil {
		return nil
	}
	l.conn = conn
	if conn.IsConnected() {
		l.up(n.until())
	}
	return l
}

// until is when the credential ends that a connection shows now.
func (n *network) until() time.Time {
	c, err := n.credential()
	if err != nil {
		return time.Time{}
	}
	_, until := c.Holds()
	return until
}

// credential is that of the process as it is now. Only those in a file come to an end.
func (n *network) credential() (credential.Credential, error) {
	if n.target.CredentialFile == "" {
		return credential.Credential{}, nil
	}
	return credential.Load(n.target.CredentialFile)
}

// elsewhere are the servers to move to from a link: home first, if it is not
// home that shuts down.
func (n *network) elsewhere(l *link) []string {
	servers := n.target.Others(l.conn)
	if i := slices.Index(servers, n.home()); i > 0 {
		servers[0], servers[i] = servers[i], servers[0]
	}
	return servers
}

func (n *network) home() string { return n.target.Servers[0] }

func (n *network) options(l *link, on linkEvents) []nats.Option {
	return []nats.Option{
		nats.ConnectHandler(func(*nats.Conn) {
			// Called for every first connection, some time later. It is news
			// only of one that was made in the background; to a call that was
			// sent meanwhile it would look like a loss.
			if since, _ := l.state(); since.IsZero() && l.is(current) {
				l.up(n.until())
				on.connected()
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			l.up(n.until())
			n.log.Info("connected again", "server", nc.ConnectedUrlRedacted())
			on.connected()
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if expected := l.down(); err != nil && !expected {
				n.log.Warn("connection lost", "err", err)
			}
		}),
		nats.ReconnectToServer(func(pool []nats.Server, _ nats.ServerInfo) (*nats.Server, time.Duration) {
			if l.is(current) {
				return nil, 0 // as nats.go would
			}
			return &pool[0], never
		}),
		nats.LameDuckModeHandler(func(*nats.Conn) {
			l.limp()
			on.told()
		}),
		nats.ClosedHandler(func(*nats.Conn) {
			if l.is(current) {
				on.closed()
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrSlowConsumer) && s != nil {
				n.log.Warn("messages dropped", "subject", s.Subject, "err", err)
				return
			}
			if subject, ok := refusedSubject(err); ok && on.refused != nil {
				on.refused(subject)
			}
			n.log.Warn("connection error", "err", err)
		}),
	}
}

// refusedSubject is the one that a server did not let this process publish to.
func refusedSubject(err error) (subject string, ok bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	_, rest, ok := strings.Cut(err.Error(), `for Publish to "`)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, `"`)
}

// never is how long a link that is given up waits before it reconnects; it is
// closed before.
const never = 24 * time.Hour
