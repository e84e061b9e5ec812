package sdk

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// streamLook is how often a caller that waits for items looks whether the stream lives.
const streamLook = 250 * time.Millisecond

// Stream calls a method that HandleStream serves, and hands its items over in order, none
// left out and none twice. The error of a stream that did not come to its end is the last
// thing it yields: that of the handler, or Unavailable - who served it has died (nothing was
// heard for 5 s), leaves, or an item was lost on the way. What to do about the rest is the
// caller's affair: a stream is sent again only while it certainly has not begun, for
// DefaultTimeout. Items that are not taken wait, at most 64 of them, and then the handler
// does. To leave the loop, or to end ctx, ends the handler's context. A deadline of ctx, or
// Timeout, bounds the whole stream; without one it may go on for a day.
func Stream[Out any](ctx context.Context, to Target, method string, in any, opts ...CallOption) iter.Seq2[Out, error] {
	return func(yield func(Out, error) bool) {
		var none Out
		s, err := to.stream(ctx, method, in, opts)
		if err != nil {
			yield(none, err)
			return
		}
		defer s.close()
		for {
			item, err := s.next(ctx)
			if err != nil {
				yield(none, err)
				return
			}
			if item == nil {
				return
			}
			out, err := decode[Out](item.Data)
			if err != nil {
				e := kbroker.Errorf(kbroker.Invalid, "an item of %s %s is not a %T: %v", to, method, out, err)
				e.Executed = kbroker.ExecutedUnknown
				yield(out, e)
				return
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// stream begins one; what it returns is to be closed.
func (t Target) stream(ctx context.Context, method string, in any, opts []CallOption) (*stream, error) {
	within := requestOf(ctx)
	client := t.client
	if client == nil {
		client = clientOf(within)
	}
	switch {
	case t.err != nil:
		return nil, notRun(kbroker.AsError(t.err))
	case client == nil:
		return nil, notRun(kbroker.Errorf(kbroker.Invalid, "stream of %s: this process has no client", t).WithHint("make one with sdk.New or sdk.Dial first"))
	case t.isObject():
		return nil, notRun(kbroker.Errorf(kbroker.Invalid, "%s is an object, whose methods answer once", t).WithHint("services have streams: sdk.HandleStream"))
	}
	if err := subjects.CheckMethod(method); err != nil {
		return nil, notRun(kbroker.AsError(err))
	}
	data, err := encode(in)
	if err != nil {
		return nil, notRun(kbroker.Errorf(kbroker.Invalid, "the argument of %s %s: %v", t, method, err))
	}
	c := call{client: client, to: t, method: method, timeout: maxTimeout}
	for _, set := range opts {
		set(&c)
	}
	now := time.Now()
	deadline := now.Add(c.timeout)
	if d, bounded := ctx.Deadline(); bounded && d.Before(deadline) {
		deadline = d
	}
	if err := c.identify(within); err != nil {
		return nil, err
	}
	conn, err := client.open(ctx)
	if err != nil {
		return nil, notRun(kbroker.AsError(err))
	}
	s := &stream{client: client, conn: conn, to: t, method: method, began: now, deadline: deadline}
	s.msg = nats.Msg{Subject: subjects.Method(t.app, t.service, method), Data: data, Header: c.header}
	if s.msg.Header == nil {
		s.msg.Header = nats.Header{}
	}
	s.msg.Header.Set(subjects.HeaderRequestID, c.id)
	s.msg.Header.Set(subjects.HeaderStream, strconv.Itoa(streamWindow))
	s.got = newStreamBuffer(s.to, method, s.msg.Subject+".", conn)
	client.calls.Add(1)
	return s, s.send()
}

// stream is the side of one stream that asked for it. Owned by the caller's goroutine, but
// for got.
type stream struct {
	client   *Client
	conn     transport
	to       Target
	method   string
	began    time.Time
	deadline time.Time
	msg      nats.Msg
	got      *streamBuffer

	slot   uint64 // of the last attempt; 0: it has none
	sent   int
	again  time.Time      // when to make the next attempt; zero: one is under way
	inARow int            // attempts that certainly did not run
	last   *kbroker.Error // why the latest did not
}

// send makes an attempt.
func (s *stream) send() error {
	s.again = time.Time{}
	s.msg.Header[subjects.HeaderTimeout] = []string{timeoutHeader(time.Until(s.deadline))}
	slot, err := s.conn.request(&s.msg, s.got.deliver)
	switch {
	case errors.Is(err, errNotConnected):
		s.backOff(kbroker.Errorf(kbroker.Unavailable, "there is no connection to the cluster").WithHint("`kbroker status` says which cores are up"))
		return nil
	case errors.Is(err, nats.ErrMaxPayload):
		return notRun(kbroker.Errorf(kbroker.Invalid, "the request to %s %s has %d bytes, more than the cluster takes", s.to, s.method, len(s.msg.Data)))
	case err != nil:
		return s.unclear("the stream %s %s may not have been asked for: %v", s.to, s.method, err)
	}
	s.slot = slot
	s.sent++
	return nil
}

func (s *stream) backOff(why *kbroker.Error) {
	s.last = why
	s.again = time.Now().Add(backoff(s.inARow))
	s.inARow++
}

// next waits for the next item; nil, nil: there are no more.
func (s *stream) next(ctx context.Context) (*nats.Msg, error) {
	if item, over, err := s.got.next(time.Now()); item != nil || over {
		return item, err
	}
	timer := time.NewTimer(streamLook)
	defer timer.Stop()
	back, refused := s.client.back.wait(), s.client.refused.wait()
	for {
		select {
		case <-s.got.wake:
		case <-timer.C:
		case <-back:
			if s.client.hasEnded() {
				return nil, s.unclear("the client was closed during the stream %s %s", s.to, s.method)
			}
			back = s.client.back.wait()
		case <-refused:
			if c := (&call{to: s.to, sent: s.sent}); s.client.refusedSince(s.msg.Subject, s.began) {
				return nil, c.refused()
			}
			refused = s.client.refused.wait()
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", s.unclear("the stream %s %s was given up", s.to, s.method), ctx.Err())
		}
		now := time.Now()
		if item, over, err := s.got.next(now); item != nil || over {
			return item, err
		}
		if !now.Before(s.deadline) {
			return nil, fmt.Errorf("%w: %w", s.unclear("the deadline of the stream %s %s passed", s.to, s.method), context.DeadlineExceeded)
		}
		pause, err := s.begin(now)
		if err != nil {
			return nil, err
		}
		timer.Reset(min(pause, time.Until(s.deadline)))
	}
}

// begin makes another attempt while the stream has certainly not begun, and returns when to
// look again.
func (s *stream) begin(now time.Time) (time.Duration, error) {
	begun, refusal := s.got.begun()
	if refusal != nil {
		s.backOff(refusal)
	}
	late := now.Sub(s.began) > DefaultTimeout
	switch {
	case begun:
		return streamLook, nil
	case s.again.IsZero() && late:
		return 0, s.unclear("the stream %s %s has not begun within %v", s.to, s.method, DefaultTimeout)
	case late:
		return 0, notRun(s.last)
	case s.again.IsZero():
		return streamLook, nil
	case now.Before(s.again):
		return s.again.Sub(now), nil
	}
	return streamLook, s.send()
}

// unclear is the error of a stream of which nobody knows how far it came.
func (s *stream) unclear(format string, args ...any) *kbroker.Error {
	e := kbroker.Errorf(kbroker.Unavailable, format, args...)
	if e.Executed = kbroker.ExecutedUnknown; s.sent == 0 {
		e.Executed = kbroker.ExecutedNo
	}
	return e
}

// close gives the stream up, and tells who serves it.
func (s *stream) close() {
	s.got.close()
	if s.slot != 0 {
		s.conn.forget(s.slot)
	}
}
