package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Config of a Store.
type Config struct {
	Conn *nats.Conn
	// Host and Process name who reads and writes: the core, and this start of
	// its agent.
	Host    kbroker.HostID
	Process string
	// Earlier is the Process of an earlier start of the same agent whose data
	// directory lock this one holds: its lease may be taken over at once.
	Earlier string
	Times   Times
	Clock   Clock // nil: Boottime
	Log     *slog.Logger
}

func (c *Config) validate() error {
	switch {
	case c.Conn == nil:
		return errors.New("state: no connection")
	case c.Host == "" || c.Process == "":
		return errors.New("state: host and process must be named")
	}
	if err := c.Times.check(); err != nil {
		return err
	}
	if c.Clock == nil {
		c.Clock = Boottime
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Store is the control store as one core sees it. Safe for concurrent use.
type Store struct {
	cfg     Config
	js      jetstream.JetStream
	barrier *barrier
	control *replica
	reports *replica
	follow  [2]*follower
	trail   *trail
	topics  *looked

	mu       sync.Mutex
	watchers map[chan struct{}]struct{}
}

// Open binds to the buckets; NotFound if they do not exist (yet), Unavailable
// if nobody answers.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	js, err := jetstream.New(cfg.Conn, jetstream.WithPublishAsyncTimeout(eventAttempt))
	if err != nil {
		return nil, fmt.Errorf("open jetstream: %w", err)
	}
	for _, stream := range []string{subjects.ControlStream, subjects.StatusStream} {
		if _, err := lastSequence(ctx, js, stream); errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, kbroker.Errorf(kbroker.NotFound, "the control store does not exist: no stream %s", stream)
		} else if err != nil {
			return nil, unavailable(err, "the control store does not answer")
		}
	}
	s := &Store{cfg: cfg, js: js, barrier: newBarrier(js, cfg.Host, cfg.Log), trail: newTrail(cfg.Conn, js), topics: &looked{clock: cfg.Clock, apps: map[AppKey]lookedAt{}}, watchers: map[chan struct{}]struct{}{}}
	s.control = newReplica(cfg.Clock, cfg.Log, subjects.ControlKey, s.stir)
	s.reports = newReplica(cfg.Clock, cfg.Log, subjects.StatusKey, s.stir)
	s.follow[0] = s.newFollower(s.control, subjects.ControlStream, subjects.ControlChanged, s.provenFloor)
	s.follow[0].guard = subjects.Control(subjects.KeySuperLease)
	s.follow[1] = s.newFollower(s.reports, subjects.StatusStream, subjects.StatusChanged, s.statusFloor)
	return s, nil
}

func (s *Store) newFollower(r *replica, stream, feed string, floor func(context.Context) (uint64, bool, error)) *follower {
	f := &follower{
		conn: s.cfg.Conn, js: s.js, stream: stream, feed: feed, clock: s.cfg.Clock, log: s.cfg.Log,
		floor: floor, publish: r.publish, nudged: make(chan uint64, 1),
	}
	r.nudge = f.nudge
	return f
}

// provenFloor is a nonce: it is above everything that any replica can have
// shown before. Without writes it is what the leader says, if there is one.
func (s *Store) provenFloor(ctx context.Context) (uint64, bool, error) {
	attempt, cancel := context.WithTimeout(ctx, nonceAttempt)
	defer cancel()
	if seq, err := s.barrier.wait(attempt); err == nil {
		return seq, true, nil
	}
	seq, err := lastSequence(ctx, s.js, subjects.ControlStream)
	return seq, false, err
}

// statusFloor is good enough for statuses: they are reports of the past anyway.
func (s *Store) statusFloor(ctx context.Context) (uint64, bool, error) {
	seq, err := lastSequence(ctx, s.js, subjects.StatusStream)
	return seq, true, err
}

// Run keeps the replica current until ctx ends, then returns nil. Any other
// return is a failure that a retry in here would not cure.
func (s *Store) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	runs := []func(context.Context) error{s.barrier.run, s.follow[0].run, s.follow[1].run}
	ended := make(chan error, len(runs))
	for _, run := range runs {
		go func() { ended <- run(ctx) }()
	}
	var first error
	for range runs {
		err := <-ended
		cancel()
		if first == nil {
			first = err
		}
	}
	return first
}

// Changed returns a channel that receives (coalesced, capacity 1) after every
// change of a record other than lease, nonce and canary, and of a status; stop
// ends it.
func (s *Store) Changed() (ch <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[c] = struct{}{}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, c)
	}
}

// stir tells all watchers to look again.
func (s *Store) stir() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
