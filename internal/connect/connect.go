// Package connect finds a cluster and connects to it: one finder and one set of
// connection options for the SDK and the command line.
//
// Find decides which cluster is meant; Target.Connect makes a connection that
// notices a frozen server within three seconds and never gives up reconnecting.
package connect

import (
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
)

const (
	// attemptTimeout bounds one attempt on one server, dial and handshake.
	attemptTimeout = time.Second
	// pingInterval and maxPingsOut: a server that does not answer is left at
	// the third tick.
	pingInterval = time.Second
	maxPingsOut  = 2
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
// 1 s each, and ends early when ctx does; the error is Unavailable then. An
// instance never fails: it connects in the background for as long as it takes,
// its own host first, everybody else in random order. The caller closes the
// connection; extra options come last and win.
func (t Target) Connect(ctx context.Context, name string, extra ...nats.Option) (*nats.Conn, error) {
	d := &dialer{}
	d.ctx.Store(&ctx)
	opts := []nats.Option{
		nats.Name(name),
		nats.Timeout(attemptTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPingsOut),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.ReconnectBufSize(reconnectBuffer),
		nats.IgnoreAuthErrorAbort(),
		nats.SetCustomDialer(d),
	}
	if t.Instance != nil {
		opts = append(opts, nats.DontRandomize(), nats.RetryOnFailedConnect(true))
	}
	nc, err := nats.Connect(strings.Join(t.Servers, ","), append(opts, extra...)...)
	lasting := context.Background()
	d.ctx.Store(&lasting) // ctx bounds the first connection only
	if err != nil {
		return nil, kbroker.Errorf(kbroker.Unavailable, "cannot reach the cluster at %s: %v", strings.Join(t.Servers, ", "), err).
			WithHint("these servers come from %s; is the cluster up?", t.Source)
	}
	return nc, nil
}

// dialer dials under a context that can be replaced: nats.go's dialers are given
// none, and the one of Connect must not outlive it.
type dialer struct {
	ctx atomic.Pointer[context.Context]
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: attemptTimeout}).DialContext(*d.ctx.Load(), network, address)
}

// reconnectDelay is the pause after the given number of rounds, from 1.
func reconnectDelay(rounds int) time.Duration {
	upper := reconnectMax << min(max(rounds-1, 0), 10)
	upper = min(upper, reconnectCap)
	return reconnectMin + rand.N(upper-reconnectMin)
}
