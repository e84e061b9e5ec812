// Package client is the control API as Go calls: what the command line and the
// tests use to deploy, watch and end applications.
//
// Reads go to any core, writes to the leader only; both are NATS requests with
// JSON bodies (the messages of package kbroker, the subjects of package
// subjects). A read that is not answered is asked again, each time of whichever
// core the queue group picks. A write that is not answered is sent again too:
// deploy, scale and stop name the state that is wanted, and super answers one
// that already holds without writing anything, so that a late or repeated
// request changes nothing; rollback and restart carry the name of the request,
// which super does once.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// pace is how patient a client is. Tests are in more of a hurry.
type pace struct {
	// readAttempt is how long one core may take to answer a read, readBudget
	// how long a read is repeated.
	readAttempt, readBudget time.Duration
	// writeAttempt is how long the leader may take to answer a write: above
	// the time of a batch on a busy disk. writeBudget bounds a write whose
	// context has no deadline: several elections of a leader.
	writeAttempt, writeBudget time.Duration
	// chunkWait is how long the acknowledgement of a chunk may take before it
	// is sent again.
	chunkWait time.Duration
	// commitProbe is how often a core that is storing an artifact is asked
	// whether it is still there.
	commitProbe time.Duration
	// followEvery is the pause between looks at an app.
	followEvery time.Duration
	// verdictHold is how long a verdict against a rollout must be seen: a core
	// whose copy is behind may still show what was before it.
	verdictHold time.Duration
	// logEvery is the pause between rounds of following output, listEvery how
	// often new instances are looked for, logWait how long an agent may take
	// to answer.
	logEvery, listEvery, logWait time.Duration
	// eventEvery is the pause between looks for new events.
	eventEvery time.Duration
}

var usualPace = pace{
	readAttempt: time.Second, readBudget: 5 * time.Second,
	writeAttempt: 3 * time.Second, writeBudget: 30 * time.Second,
	chunkWait: 2 * time.Second, commitProbe: 2 * time.Second,
	followEvery: 200 * time.Millisecond, verdictHold: time.Second,
	logEvery: 250 * time.Millisecond, listEvery: time.Second, logWait: 2 * time.Second,
	eventEvery: 300 * time.Millisecond,
}

// Pauses between attempts that nobody took.
const (
	pauseMin = 20 * time.Millisecond
	pauseMax = 500 * time.Millisecond
)

// Client speaks the control API for one tenant. Safe for concurrent use.
type Client struct {
	conn     *nats.Conn
	tenant   kbroker.TenantID
	key      string                 // public, of the credential
	signed   func() (string, error) // the credential itself, a JWT
	pace     pace
	refusals *refusals
}

// newClient returns a client on a connection that shows the credential of a key.
func newClient(conn *nats.Conn, tenant kbroker.TenantID, key string) *Client {
	return &Client{
		conn: conn, tenant: tenant, key: key, pace: usualPace, refusals: &refusals{},
		signed: func() (string, error) { return "", nil },
	}
}

// read asks any core. Errors: what the core answered; Unavailable when none
// did within the budget or ctx.
func (c *Client) read(ctx context.Context, verb string, req, reply any) error {
	return c.ask(ctx, c.readOf(verb), req, reply)
}

func (c *Client) readOf(verb string) question {
	return question{
		subject: subjects.Core(verb, c.tenant),
		attempt: c.pace.readAttempt,
		budget:  c.pace.readBudget,
		silent:  kbroker.Errorf(kbroker.Unavailable, "no core answered").WithHint("`kbroker status` says what the cluster is missing"),
		nobody:  kbroker.Errorf(kbroker.Unavailable, "no core serves requests").WithHint("`kbroker status` says what the cluster is missing"),
	}
}

// write asks the leader. Errors: what super answered; NoLeader when nobody
// leads, Unavailable when the leader did not answer, each until ctx ended.
func (c *Client) write(ctx context.Context, verb string, req, reply any) error {
	q := question{
		subject: subjects.Super(verb, c.tenant, c.key),
		attempt: c.pace.writeAttempt,
		budget:  c.pace.writeBudget,
		silent:  kbroker.Errorf(kbroker.Unavailable, "the leader did not answer; the change may have been made").WithHint("run it again: a change that was made is not made twice"),
		nobody:  kbroker.Errorf(kbroker.NoLeader, "the cluster has no leader").WithHint("a leader needs a majority of the cores; see kbroker status"),
	}
	if _, ok := ctx.Deadline(); ok {
		q.budget = 0
	}
	return c.ask(ctx, q, req, reply)
}

// question is a request with its patience.
type question struct {
	subject string
	attempt time.Duration
	budget  time.Duration // 0: as long as ctx
	silent  *kbroker.Error
	nobody  *kbroker.Error
}

// ask repeats a request until it is answered, the budget is used up or ctx
// ends; then the error is that of the last attempt. An answer that says that
// there is no leader or no quorum is no answer.
func (c *Client) ask(ctx context.Context, q question, req, reply any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	if q.budget > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, q.budget)
		defer cancel()
	}
	last, pause := error(q.silent), pauseMin
	for {
		try, cancel := context.WithTimeout(ctx, q.attempt)
		msg, err := c.request(try, &nats.Msg{Subject: q.subject, Data: body})
		cancel()
		switch {
		case errors.Is(err, kbroker.Refused):
			return err
		case err == nil:
			err = decode(msg, reply)
			if !errors.Is(err, kbroker.NoLeader) && !errors.Is(err, kbroker.Unavailable) {
				return err
			}
			last = err
		case errors.Is(err, nats.ErrNoResponders):
			last = q.nobody
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
			// A deadline that cut the attempt short says nothing new.
			if ctx.Err() == nil {
				last = q.silent
			}
		case errors.Is(err, context.Canceled):
			return err
		case errors.Is(err, nats.ErrMaxPayload):
			return kbroker.Errorf(kbroker.Invalid, "a request of %d bytes is too large for the cluster", len(body))
		default:
			return kbroker.Errorf(kbroker.Unavailable, "ask the cluster: %v", err)
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return last
		case <-time.After(pause):
		}
		pause = min(2*pause, pauseMax)
	}
}

// request sends one request. Errors: those of nats.go; Refused - this side may not send
// it.
func (c *Client) request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	ctx, done := c.refusals.watch(ctx, m.Subject)
	defer done()
	reply, err := c.conn.RequestMsgWithContext(ctx, m)
	return reply, refused(ctx, err)
}

// decode reads a reply: the error in it, or its body into reply (nil: the
// body does not matter).
func decode(msg *nats.Msg, reply any) error {
	if code := msg.Header.Get(subjects.HeaderCode); code != "" {
		e := &kbroker.Error{}
		if err := json.Unmarshal(msg.Data, e); err != nil || e.Message == "" {
			e = kbroker.Errorf(kbroker.Code(code), "the cluster answered %q without saying why", code)
		}
		e.Code = kbroker.Code(code)
		return e
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(msg.Data, reply); err != nil {
		return kbroker.Errorf(kbroker.Internal, "the answer on %s is not understood: %v", msg.Subject, err).
			WithHint("are the command and the cluster of the same version?")
	}
	return nil
}
