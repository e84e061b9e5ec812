package allocator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// pace is how often the allocator does what.
type pace struct {
	lookApp    time.Duration // the wanted version is read at least this often
	lookPlace  time.Duration // the own placement likewise
	resend     time.Duration // the demand is sent at least this often
	lookLeases time.Duration // leases of incarnations are read this often: they are judged by that
	lookShards time.Duration // who owns what is read at least this often
	lookPlaced time.Duration // where placed objects are, likewise: there may be many
	turnsOver  time.Duration // the time constant of the averages of shards' turns
	// Where a service is scaled: which instances there are is read this often, and how many
	// there are to be is decided.
	lookInstances, decide time.Duration
	attempt               time.Duration // one request is given up
	retryLeast            time.Duration // after the first failure, doubling
	retryMost             time.Duration
	movesPerS             float64 // see ownership.AssignerConfig
}

var normalPace = pace{
	lookApp: 30 * time.Second, lookPlace: time.Minute, resend: 5 * time.Second,
	lookLeases: time.Second, lookShards: 30 * time.Second, lookPlaced: 5 * time.Minute, turnsOver: 15 * time.Second, lookInstances: time.Second, decide: 250 * time.Millisecond,
	attempt: 2 * time.Second, retryLeast: 100 * time.Millisecond, retryMost: 2 * time.Second,
}

// errDeposed ends rounds.
var errDeposed = errors.New("deposed")

// rounds calls round now, when the bell rings and at least every period;
// after a failure, soon. It returns nil when ctx ended and errDeposed when
// round did. The first failure in a row is logged with the constant message
// trouble.
func (a *Allocator) rounds(ctx context.Context, trouble string, b bell, period time.Duration, round func(context.Context) error) error {
	failures := 0
	retry := a.pace.retryLeast
	for {
		err := round(ctx)
		next := jitter(period)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errDeposed):
			return err
		case err != nil:
			if failures++; failures == 1 {
				a.log.Warn(trouble, "err", err)
			}
			next = min(next, jitter(retry))
			retry = min(2*retry, a.pace.retryMost)
		default:
			failures, retry = 0, a.pace.retryLeast
		}
		tick := time.NewTimer(next)
		select {
		case <-ctx.Done():
			tick.Stop()
			return nil
		case <-b:
			tick.Stop()
		case <-tick.C:
		}
	}
}

// jitter is d less up to a fifth, so that processes started together spread
// and no period is exceeded.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}

// bell says "look again"; several rings before the look are one.
type bell chan struct{}

func newBell() bell { return make(bell, 1) }

func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// ask sends in as JSON and decodes the answer into out (nil: the answer's body
// does not matter); errors as request.
func ask(ctx context.Context, conn *nats.Conn, timeout time.Duration, subject string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request to %s: %w", subject, err)
	}
	reply, err := request(ctx, conn, timeout, subject, body)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return fmt.Errorf("decode answer of %s: %w", subject, err)
	}
	return nil
}

// request sends a body and returns that of the answer. A failure that the other side
// reports is its Error; nobody there, or no answer within timeout, is Unavailable. Either
// way the other side may have acted: every request of this package may be repeated, but
// for a write of the lease and of a batch, after which is read.
func request(ctx context.Context, conn *nats.Conn, timeout time.Duration, subject string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply, err := conn.RequestWithContext(ctx, subject, body)
	if err != nil {
		return nil, fmt.Errorf("request to %s: %w: %w", subject, kbroker.Unavailable, err)
	}
	if code := reply.Header.Get(subjects.HeaderCode); code != "" {
		failure := &kbroker.Error{}
		if err := json.Unmarshal(reply.Data, failure); err != nil || failure.Code == "" {
			failure = kbroker.Errorf(kbroker.Code(code), "%s without a message", code)
		}
		return nil, fmt.Errorf("request to %s: %w", subject, failure)
	}
	return reply.Data, nil
}
