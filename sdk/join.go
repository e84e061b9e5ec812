package sdk

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// goneAfter is how long a drain waits for a lost connection.
	goneAfter = 300 * time.Millisecond
	gonePoll  = 20 * time.Millisecond
)

// joins are the subscriptions of a transport and the links that they are on:
// all on the current link and on the one that comes, until they are drained.
// Safe for concurrent use. Calls of nats.go under the lock only write to its
// buffers.
type joins struct {
	mu     sync.Mutex
	listen func(*nats.Conn) error // joins the inbox
	links  []*link                // that are not closed
	subs   []*natsSubscription    // that are not drained
	closed bool
}

// join is a subscription on one link.
type join struct {
	link   *link
	sub    *nats.Subscription
	closed chan struct{} // after the last callback returned
}

type natsSubscription struct {
	all            *joins
	subject, queue string
	handle         func(*nats.Msg)
	on             []join // under all.mu
}

// begin takes the first link.
func (j *joins) begin(l *link, listen func(*nats.Conn) error) error {
	j.listen = listen
	return j.enter(l)
}

// enter joins everything on one more link, or nothing: after an error the
// link is the caller's to close. errClosed after close.
func (j *joins) enter(l *link) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errClosed
	}
	if err := j.listen(l.conn); err != nil {
		return err
	}
	for _, s := range j.subs {
		if err := s.join(l); err != nil {
			j.drop(l)
			return err
		}
	}
	j.links = append(j.links, l)
	return nil
}

// add joins one more subject. Links that are left do not get it.
func (j *joins) add(subject, queue string, handle func(*nats.Msg)) (*natsSubscription, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := &natsSubscription{all: j, subject: subject, queue: queue, handle: handle}
	for _, l := range j.links {
		if l.is(leaving) {
			continue
		}
		if err := s.join(l); err != nil {
			return nil, err
		}
	}
	j.subs = append(j.subs, s)
	return s, nil
}

// join subscribes on one link. Under all.mu.
func (s *natsSubscription) join(l *link) error {
	sub, err := l.conn.QueueSubscribe(s.subject, s.queue, s.handle)
	if err != nil {
		return err
	}
	// The status "closed" comes before the last callback has returned; the
	// closed handler after it.
	n := join{link: l, sub: sub, closed: make(chan struct{})}
	sub.SetClosedHandler(func(string) { close(n.closed) })
	s.on = append(s.on, n)
	return nil
}

// leave begins to drain all that is on a link that is left, the inbox excepted.
// What drains already is returned too.
func (j *joins) leave(l *link) []join {
	j.mu.Lock()
	defer j.mu.Unlock()
	l.turn(leaving)
	var on []join
	for _, s := range j.subs {
		for _, n := range s.on {
			if n.link == l {
				_ = n.sub.Drain() // fails only if the link is closed
				on = append(on, n)
			}
		}
	}
	return on
}

// forget drops a link that is closed.
func (j *joins) forget(l *link) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.drop(l)
}

// drop forgets a link. Under mu.
func (j *joins) drop(l *link) {
	j.links = slices.DeleteFunc(j.links, func(o *link) bool { return o == l })
	for _, s := range j.subs {
		s.on = slices.DeleteFunc(s.on, func(n join) bool { return n.link == l })
	}
}

// open returns the links that are not closed.
func (j *joins) open() []*link {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.links)
}

// close lets no more link enter and returns those that did.
func (j *joins) close() []*link {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	return slices.Clone(j.links)
}

// take ends the interest, on links to come too, and returns where it was.
func (s *natsSubscription) take() []join {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.all.subs = slices.DeleteFunc(s.all.subs, func(o *natsSubscription) bool { return o == s })
	return slices.Clone(s.on)
}

func (s *natsSubscription) drain(ctx context.Context) error {
	var errs error
	on := s.take()
	for _, n := range on {
		if err := n.sub.Drain(); err != nil && !n.link.is(leaving) {
			errs = errors.Join(errs, err)
		}
	}
	if errs != nil {
		return errs
	}
	for _, n := range on {
		if err := n.drained(ctx); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// drained waits for the last callback, but not for a bus that is gone: what was
// delivered before has been handed over long since, and there is nobody to
// unsubscribe from. A link that is left and lost is closed, which ends it too.
func (n join) drained(ctx context.Context) error {
	poll := time.NewTicker(gonePoll)
	defer poll.Stop()
	seen := time.Now()
	for {
		select {
		case <-n.closed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case now := <-poll.C:
			if n.link.conn.IsConnected() || n.link.is(leaving) {
				seen = now
			}
			if now.Sub(seen) > goneAfter {
				return errNotConnected
			}
		}
	}
}
