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
	gone  bool            // lost is closed
	lame  bool            // its server shuts down
	since time.Time       // of the connection; zero while there is none
	shown credential.Held // with the last attempt to connect
	holds credential.Held // what the connection was made with
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

// show notes the credential that an attempt to connect shows.
func (l *link) show(h credential.Held) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown = h
}

// up notes a connection.
func (l *link) up() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since, l.lame, l.holds = time.Now(), false, l.shown
}

// held is what the connection was made with: it is cut when that ends.
func (l *link) held() credential.Held {
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
	target connect.Target   // the first server is home
	own    *credential.Kept // of the process; nil: it has none that comes to an end
	name   string
	log    *slog.Logger
	extra  []nats.Option
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
	if file := n.target.CredentialFile; file != "" && n.own == nil {
		own, err := credential.Keep(file)
		if err != nil {
			return nil, err
		}
		n.own, n.target.Credential, n.target.CredentialFile = own, "", ""
	}
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
		l.up()
	}
	return l
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
	var identity []nats.Option
	if n.own != nil {
		identity = n.own.Options(l.show)
	}
	return append(append(identity, n.extra...),
		nats.ConnectHandler(func(*nats.Conn) {
			// Called for every first connection, some time later. It is news
			// only of one that was made in the background; to a call that was
			// sent meanwhile it would look like a loss.
			if since, _ := l.state(); since.IsZero() && l.is(current) {
				l.up()
				on.connected()
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			l.up()
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
			if subject, ok := refusedSubscription(err); ok && on.refused != nil {
				on.refused(subject)
			}
			if subject, ok := refusedSubject(err); ok && on.refused != nil {
				on.refused(subject)
			}
			n.log.Warn("connection error", "err", err)
		}),
	)
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

// refusedSubscription is the subject that a server did not let this process hear.
func refusedSubscription(err error) (subject string, ok bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	_, rest, ok := strings.Cut(err.Error(), `for Subscription to "`)
	if !ok {
		return "", false
	}
	subject, _, ok = strings.Cut(rest, `"`)
	return subject, ok
}

// never is how long a link that is given up waits before it reconnects; it is
// closed before.
const never = 24 * time.Hour
