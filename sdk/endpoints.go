package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// endpointsFor is how long an answer to the question who listens where holds.
	endpointsFor = time.Second
	// endpointsAttempt bounds how long one core may take to answer; then another is asked.
	endpointsAttempt = time.Second
	// endpointsPause is between two attempts that nobody took.
	endpointsPause = 50 * time.Millisecond
	// maxListening bounds the answers that are remembered.
	maxListening = 256
)

// Endpoint is where an instance of a service listens.
type Endpoint = kbroker.Endpoint

// Endpoints are the ready instances of a service ("app/service", or "app"), and where they
// listen on the port of a name (empty: on all of its ports), in random order, so that who
// takes the first spreads over them. None is no error. It is asked over the connection of
// the app.
//
// A core is asked once a second at most, whoever asks how often: in between the last answer
// holds. So what it names may have gone: a connection that is refused says to take the
// next one. Errors: NotFound - there is no such service or port; Refused - the service is
// of another app, and the spec of this one does not name it in calls; Unavailable - no core
// answered before ctx ended (DefaultTimeout, where it has no end).
func Endpoints(ctx context.Context, app *App, service, port string) ([]Endpoint, error) {
	if app.client == nil {
		return nil, app.err
	}
	return app.client.Endpoints(ctx, service, port)
}

// Endpoints is the function of the same name, for who has no App.
func (c *Client) Endpoints(ctx context.Context, service, port string) ([]Endpoint, error) {
	to := Service(service)
	if to.err != nil {
		return nil, to.err
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	for {
		l, first := c.listening.join(to.String()+"/"+port, time.Now())
		if first {
			l.rows, l.err = c.askEndpoints(ctx, to, port)
			l.end = time.Now()
			close(l.done)
			if l.err != nil {
				return nil, l.err
			}
		}
		select {
		case <-l.done:
			if l.err == nil {
				return shuffled(l.rows), nil
			}
			// Who asked has got this error, maybe for want of time: ask oneself.
		case <-ctx.Done():
			return nil, endpointsSilent(to, ctx.Err())
		}
	}
}

func shuffled(rows []Endpoint) []Endpoint {
	out := slices.Clone(rows)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func endpointsSilent(to Target, why error) error {
	return fmt.Errorf("%w: %w", kbroker.Errorf(kbroker.Unavailable, "no core said where %s listens", to).
		WithHint("`kbroker status` says which cores are up"), why)
}

// listening has the last answers. The zero value is ready. Safe for concurrent use.
type listening struct {
	mu sync.Mutex
	of map[string]*listeners
}

// listeners is one question, under way or answered: then done is closed, and the rest is
// not written any more.
type listeners struct {
	done chan struct{}
	rows []Endpoint
	err  error
	end  time.Time
}

// join returns the question that is under way, or whose answer still holds; first: it is
// the caller's to answer.
func (l *listening) join(name string, now time.Time) (q *listeners, first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.of[name]; q != nil && q.holds(now) {
		return q, false
	}
	if l.of == nil || len(l.of) >= maxListening {
		l.of = map[string]*listeners{}
	}
	q = &listeners{done: make(chan struct{})}
	l.of[name] = q
	return q, true
}

func (q *listeners) holds(now time.Time) bool {
	select {
	case <-q.done:
		return q.err == nil && now.Sub(q.end) < endpointsFor
	default:
		return true
	}
}

// askEndpoints asks cores, one after the other, until one answers or ctx ends.
func (c *Client) askEndpoints(ctx context.Context, to Target, port string) ([]Endpoint, error) {
	t, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(kbroker.EndpointsRequest{Port: port})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	subject, began := subjects.Endpoints(c.tenant, to.app, to.service), time.Now()
	for {
		refused := c.refused.wait()
		answer := make(chan *nats.Msg, 1)
		wait := endpointsAttempt
		slot, err := t.request(&nats.Msg{Subject: subject, Data: body}, func(_ uint64, m *nats.Msg) { answer <- m })
		if err != nil { // there is no connection now
			wait = endpointsPause
		}
		m, err := await(ctx, answer, refused, wait)
		if slot != 0 {
			t.forget(slot)
		}
		switch {
		case c.refusedSince(subject, began):
			return nil, kbroker.Errorf(kbroker.Refused, "the credential of this process does not allow to ask where %s listens", to).
				WithHint("the spec of a service names those of other apps that it uses, as in calls: [%s]", to)
		case c.hasEnded():
			return nil, kbroker.Errorf(kbroker.Unavailable, "the client is closed")
		case err != nil:
			return nil, endpointsSilent(to, err)
		case m == nil:
			continue
		}
		failure, nobody := answerOf(m)
		switch {
		case nobody || failure != nil && (failure.Code == kbroker.Overloaded || failure.Code == kbroker.Unavailable):
			if _, err := await(ctx, nil, nil, endpointsPause); err != nil {
				return nil, endpointsSilent(to, err)
			}
			continue
		case failure != nil:
			return nil, failure
		}
		return readyOf(to, m.Data)
	}
}

// await returns an answer, nil after a while or when something else is to be looked at, or
// the error of ctx.
func await(ctx context.Context, answer <-chan *nats.Msg, stirred <-chan struct{}, wait time.Duration) (*nats.Msg, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case m := <-answer:
		return m, nil
	case <-stirred:
	case <-timer.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return nil, nil
}

func readyOf(to Target, body []byte) ([]Endpoint, error) {
	var rows []Endpoint
	if err := json.Unmarshal(body, &rows); err != nil {
		return nil, kbroker.Errorf(kbroker.Internal, "the answer where %s listens is not understood: %v", to, err)
	}
	return slices.DeleteFunc(rows, func(e Endpoint) bool { return !e.Ready }), nil
}
