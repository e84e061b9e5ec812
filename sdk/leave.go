package sdk

import (
	"context"
	"time"
)

// leave ends a link in the background, without losing what is on its way. spoke
// says that the transport sent over it until now. ctx ends it at once.
func (m *mover) leave(ctx context.Context, l *link, spoke bool) {
	on := m.t.joins.leave(l)
	m.left.Go(func() {
		defer m.t.joins.forget(l)
		defer l.conn.Close()
		// All that was sent before the switch has arrived once this is
		// answered, and its answers come by either link. If it is not, a call
		// may have been lost: as with any lost connection.
		if err := l.flush(ctx); err != nil && spoke && ctx.Err() == nil {
			m.on.connected()
		}
		l.until(ctx, m.pace.linger, nil)
		for _, n := range on {
			l.until(ctx, leaveWithin, n.closed)
		}
		_ = l.flush(ctx) // for whoever read the current link just before the switch
		done := make(chan struct{})
		if err := l.conn.Barrier(func() { close(done) }); err == nil {
			bounded, cancel := context.WithTimeout(ctx, leaveWithin)
			defer cancel()
			select { // a link that was lost hands over what it had received
			case <-done:
			case <-bounded.Done():
			}
		}
	})
}

// flush is a round trip to the link's server. Not for a current link.
func (l *link) flush(ctx context.Context) error {
	select {
	case <-l.lost:
		return errNotConnected
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, leaveWithin)
	defer cancel()
	return l.conn.FlushWithContext(ctx)
}

// until waits for done, but not longer than bound, and only while the link is
// there.
func (l *link) until(ctx context.Context, bound time.Duration, done <-chan struct{}) {
	over := time.NewTimer(bound)
	defer over.Stop()
	select {
	case <-done:
	case <-over.C:
	case <-l.lost:
	case <-ctx.Done():
	}
}
