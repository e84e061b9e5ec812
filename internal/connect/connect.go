// Package connect finds a cluster and connects to it: one finder and one set of
// connection options for the SDK and the command line.
//
// Find decides which cluster is meant; Target.Connect makes a connection that
// notices a frozen server within three seconds and never gives up reconnecting;
// Target.ConnectTo makes a second one, for who moves to another server.
package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// attemptTimeout bounds one attempt on one server, dial and handshake.
	attemptTimeout = time.Second
	// pingInterval and maxPingsOut: a server that does not answer is left at
	// the third tick, and another one found, within three seconds.
	pingInterval = 900 * time.Millisecond
	maxPingsOut  = 2
	// writeTimeout bounds one write to a server: as long as two pings. nats.go
	// writes under the lock that its pings and callers need, for a minute.
	writeTimeout = maxPingsOut * pingInterval
	// After a round over all known servers the pause is random between
	// reconnectMin and reconnectMax, the latter doubling with every round up
	// to reconnectCap: a thousand processes must not come back in step.
	reconnectMin = 20 * time.Millisecond
	reconnectMax = 100 * time.Millisecond
	reconnectCap = 2 * time.Second
	// reconnectBuffer bounds what is kept for sending while there is no
	// connection: mostly replies of handlers that finish in that moment.
	reconnectBuffer = 8 << 20
)

// Connect connects as name (shown by the servers). It tries every server once,
// 1 s each, and ends early when ctx does; the error is Unavailable then, or Refused when
// the last of them did not take the credential. An
// instance never fails: it connects in the background for as long as it takes,
// its own host first, everybody else in random order. The caller closes the
// connection; extra options come last and win.
func (t Target) Connect(ctx context.Context, name string, extra ...nats.Option) (*nats.Conn, error) {
	if t.Instance != nil {
		extra = append([]nats.Option{nats.DontRandomize(), nats.RetryOnFailedConnect(true)}, extra...)
	}
	secure, err := t.Secure()
	if err != nil {
		return nil, err
	}
	nc, err := dial(ctx, &dialer{}, t.Servers, name, append(secure, extra...))
	if err != nil {
		return nil, t.unreachable(t.Servers, err)
	}
	return nc, nil
}

// Secure are the options with which the servers must prove, in TLS, that they are
// cores of the cluster, and this side shows its credential; neither when it is not
// known. Invalid: CA or the credential are none.
func (t Target) Secure() ([]nats.Option, error) {
	own, err := t.identify()
	if err != nil || t.CA == "" {
		return own, err
	}
	roots, err := pki.ParseCerts([]byte(t.CA))
	if err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "the roots of the cluster, from %s: %v", t.Source, err)
	}
	return append(own, nats.Secure(pki.Client(roots, time.Now))), nil
}

// Key is the public one of the credential; subjects.NoKey without one.
func (t Target) Key() (string, error) {
	c, err := t.credential()
	if err != nil || c == nil {
		return subjects.NoKey, err
	}
	return c.Key(), nil
}

// Signed is what a core signed of the credential (a JWT), as it is now; empty: nothing.
func (t Target) Signed() (string, error) {
	c, err := t.credential()
	if err != nil || c == nil {
		return "", err
	}
	return c.JWT(), nil
}

// Role is that of the person whose credential it is, as the credential says; empty: it
// does not, or cannot be read.
func (t Target) Role() string {
	c, err := t.credential()
	if err != nil || c == nil {
		return "" // who connects with it hears why
	}
	return c.Role()
}

// Start is the start of an instance that the credential was signed for; false: there is
// none, or it is that of somebody else.
func (t Target) Start() (kbroker.InstanceFile, bool, error) {
	c, err := t.credential()
	if err != nil || c == nil {
		return kbroker.InstanceFile{}, false, err
	}
	i, ok := c.Start()
	return i, ok, nil
}

// credential is the one that is shown; nil: none.
func (t Target) credential() (*credential.Credential, error) {
	switch {
	case t.CredentialFile != "":
		c, err := credential.Load(t.CredentialFile)
		return &c, err
	case t.Credential != "":
		c, err := credential.Parse([]byte(t.Credential))
		if err != nil {
			return nil, kbroker.Errorf(kbroker.Invalid, "the credential from %s: %v", t.Source, err)
		}
		return &c, nil
	}
	return nil, nil
}

// identify are the options that show the credential.
func (t Target) identify() ([]nats.Option, error) {
	if t.CredentialFile != "" {
		return credential.FileOptions(t.CredentialFile)
	}
	c, err := t.credential()
	if err != nil || c == nil {
		return nil, err
	}
	return c.Options(), nil
}

func (t Target) unreachable(servers []string, err error) error {
	if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) {
		return kbroker.Errorf(kbroker.Refused, "the cluster at %s does not take the credential from %s: it was revoked, has expired, or is of another cluster", strings.Join(servers, ", "), t.Source).
			WithHint("an admin makes another one: kbroker user create")
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && t.CA == "" {
		return kbroker.Errorf(kbroker.Unavailable, "the cluster at %s proves itself with a root that is not known here: %v", strings.Join(servers, ", "), err).
			WithHint("%s names the file of its roots: identity/*/root.crt in the data directory of a core", EnvCA)
	}
	return kbroker.Errorf(kbroker.Unavailable, "cannot reach the cluster at %s: %v", strings.Join(servers, ", "), err).
		WithHint("these servers come from %s; is the cluster up?", t.Source)
}

// dial makes a connection. ctx bounds the first try of the servers only.
func dial(ctx context.Context, d *dialer, servers []string, name string, extra []nats.Option) (*nats.Conn, error) {
	d.ctx = ctx
	defer context.AfterFunc(ctx, d.interrupt)()
	defer d.settle()
	return nats.Connect(strings.Join(servers, ","), append([]nats.Option{
		nats.Name(name),
		nats.Timeout(attemptTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPingsOut),
		nats.FlusherTimeout(writeTimeout),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.ReconnectBufSize(reconnectBuffer),
		nats.IgnoreAuthErrorAbort(),
		nats.SetCustomDialer(d),
	}, extra...)...)
}

// dialer dials and shakes hands under a context until it is settled: nats.go's
// dialers are given none, and the one of Connect must not outlive it.
type dialer struct {
	once bool // only one dial until then

	mu      sync.Mutex
	ctx     context.Context
	conn    net.Conn // made under ctx
	dials   int
	settled bool
}

var errOneServer = errors.New("one server only")

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	ctx, err := d.begin()
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{Timeout: attemptTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil && !d.settled { // interrupt came too early
		_ = conn.Close()
		return nil, err
	}
	d.conn = conn
	return leaving{conn}, nil
}

// leaving is a connection that is closed when a write takes too long, so that
// its reader reports it. nats.go does so itself only when a part was written;
// else it drops what it had to send and stays.
type leaving struct{ net.Conn }

func (l leaving) Write(b []byte) (int, error) {
	n, err := l.Conn.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = l.Close() // its reader reports it
	}
	return n, err
}

func (d *dialer) begin() (context.Context, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dials++; d.once && d.dials > 1 && !d.settled {
		return nil, errOneServer
	}
	return d.ctx, d.ctx.Err()
}

// interrupt ends the handshake that is under way.
func (d *dialer) interrupt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil && !d.settled {
		_ = d.conn.Close() // its reader reports it
	}
}

// settle frees the dialer from its context.
func (d *dialer) settle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ctx, d.settled = context.Background(), true
}

// reconnectDelay is the pause after the given number of rounds, from 1.
func reconnectDelay(rounds int) time.Duration {
	upper := reconnectMax << min(max(rounds-1, 0), 10)
	upper = min(upper, reconnectCap)
	return reconnectMin + rand.N(upper-reconnectMin)
}
