package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// Bounds of a follower.
const (
	feedMessages  = 4096    // received and not yet applied; more are dropped, which is a gap
	chunkMessages = 1000    // of one read
	chunkBytes    = 4 << 20 // of one read, below the pending limit of a subscription
	chunkTimeout  = 2 * time.Second
	feedPatience  = 20 * time.Millisecond // for the feed to bring what a read did not
	pauseMin      = 2 * time.Millisecond  // between reads that brought nothing
	pauseMax      = 100 * time.Millisecond
	stallAfter    = time.Second     // without progress by direct reads the leader is asked
	stallMessages = 100             // of one piece read from the leader
	checkEvery    = 2 * time.Second // look for changes that the feed did not bring
	hardenEvery   = time.Second     // as long as what was published is not proven whole
)

// follower reads a stream from its first message on and hands every change to
// publish, in order and in whole batches.
//
// It is fed by the stream's republished messages. They come at most once, so
// it counts sequences: the stream's sequence has no gaps in the feed, and what
// is missing is read from the stream. Such a read may be answered by any
// replica, also by one that lags: the end of an answer is not the end of the
// stream. And it leaves out messages that later ones have superseded, which
// may lie beyond its end: what was read is a state that the store really had
// only from a floor on, a sequence that was learned after the last read that
// left something out.
//
//	        read ends early           floor reached, batch whole
//	read ------------------> floor ----------------------------> publish
//	 ^                         | not reached                        |
//	 |<------------------------+                                    v
//	 +------------------------- gap in the feed <---------------- follow
//
// One goroutine, that of run, owns all fields below nudged.
type follower struct {
	conn   *nats.Conn
	js     jetstream.JetStream
	stream string
	feed   string // where the stream is republished
	clock  Clock
	log    *slog.Logger

	// floor returns a sequence that is at least that of every message stored
	// when it was called. proven is false when it is only what the stream's
	// leader says of itself.
	floor func(ctx context.Context) (seq uint64, proven bool, err error)
	// publish takes messages in order. reset: forget all earlier ones. After
	// the call the state is that of the stream at seq; proven as of floor.
	publish func(batch []message, reset bool, seq uint64, proven bool)

	// guard is a subject that every batch writes, or empty: its feed shows
	// when the store lost what it had republished.
	guard string

	nudged chan uint64 // a sequence that somebody waits for

	pos     uint64    // all messages up to here were published or are in pending
	seen    uint64    // the highest sequence that the feed named
	pending []message // not yet published
	open    bool      // the last of pending is inside a batch that goes on
	skipped bool      // messages were left out by a read since the floor was learned
	reset   bool      // pending starts from nothing
	proven  bool
	guarded uint64        // the last sequence of guard, 0 if not known
	back    bool          // the store's sequence seems to have gone back
	current time.Duration // clock, when it was last known that nothing is missing
}

// nudge makes the follower look for seq now. Safe for concurrent use.
func (f *follower) nudge(seq uint64) {
	select {
	case f.nudged <- seq:
	default: // one is under way; who waits nudges again
	}
}

// run follows until ctx ends, then returns nil.
func (f *follower) run(ctx context.Context) error {
	fed := make(chan *nats.Msg, feedMessages)
	sub, err := f.conn.ChanSubscribe(f.feed, fed)
	if err != nil {
		return fmt.Errorf("subscribe to changes of stream %s: %w", f.stream, err)
	}
	defer func() {
		if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			f.log.Warn("unsubscribe from changes", "object", f.stream, "err", err)
		}
	}()
	status := f.conn.StatusChanged(nats.CONNECTED)
	defer f.conn.RemoveStatusListener(status)
	connected := (<-chan nats.Status)(status)

	f.restart()
	f.catchUp(ctx, fed, 0)
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	harden := time.NewTicker(hardenEvery)
	defer harden.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-fed:
			f.take(ctx, fed, m)
		case seq := <-f.nudged:
			if f.pos < seq {
				f.catchUp(ctx, fed, seq)
			}
		case _, open := <-connected:
			if !open {
				connected = nil // the connection was closed for good
				continue
			}
			f.check(ctx, fed)
		case <-check.C:
			f.check(ctx, fed)
		case <-harden.C:
			if !f.proven {
				f.catchUp(ctx, fed, 0)
			}
		}
	}
}

// restart forgets everything: the next publish begins with nothing.
func (f *follower) restart() {
	f.pos, f.seen, f.pending, f.open, f.reset, f.proven = 0, 0, nil, false, true, false
	f.guarded, f.back = 0, false
	f.current = f.clock()
}

// take applies one message of the feed.
func (f *follower) take(ctx context.Context, fed <-chan *nats.Msg, m *nats.Msg) {
	seq, ok := f.append(m)
	switch {
	case f.back:
		f.catchUp(ctx, fed, 0)
	case !ok:
		f.catchUp(ctx, fed, seq)
	case !f.open && len(f.pending) > 0:
		f.flush(f.proven)
	}
}

// append adds a message of the feed to pending, unless it is known already. It
// returns false if messages before it are missing.
//
// It also notices a store that went back: one with a single replica may
// republish messages and then lose them in a crash. The sequences that follow
// are used twice, which shows in the feed, or (where that was missed) in the
// guard, whose messages name their predecessor.
func (f *follower) append(m *nats.Msg) (seq uint64, ok bool) {
	seq, ok = headerUint(m.Header, jetstream.SequenceHeader)
	if !ok || m.Header.Get(jetstream.StreamHeader) != f.stream {
		return 0, true // not a republished message
	}
	if seq <= f.seen {
		f.back = true
		return seq, false
	}
	f.seen = seq
	if seq <= f.pos {
		return seq, true
	}
	if seq != f.pos+1 {
		return seq, false
	}
	subject := m.Header.Get(jetstream.SubjectHeader)
	before, named := headerUint(m.Header, jetstream.LastSequenceHeader)
	if named && subject == f.guard && f.guarded != 0 && before != f.guarded {
		f.back = true
		return seq, false
	}
	f.add(message{subject: subject, seq: seq, header: m.Header, data: m.Data})
	return seq, true
}

// add puts the next message at the end of pending.
func (f *follower) add(m message) {
	if m.seq != f.pos+1 {
		f.skipped, f.guarded = true, 0
	}
	f.pos = m.seq
	if m.subject == f.guard {
		f.guarded = m.seq
	}
	f.open = m.header.Get(headerBatch) != "" && m.header.Get(headerCommit) == ""
	f.pending = append(f.pending, m)
}

// flush publishes what is pending.
func (f *follower) flush(proven bool) {
	f.proven = proven
	f.publish(f.pending, f.reset, f.pos, proven)
	f.pending, f.reset = nil, false
	f.current = f.clock()
}

// check reads what the feed did not bring although nobody noticed: the last
// message before a silence, or all of it while the connection was down.
func (f *follower) check(ctx context.Context, fed <-chan *nats.Msg) {
	last, err := lastSequence(ctx, f.js, f.stream)
	if err != nil {
		return // no leader, no changes
	}
	switch {
	case last < f.pos && !f.stillThere(ctx):
		f.log.Warn("the stream went back; reading it again from the start", "object", f.stream, "rev", last)
		f.restart()
		f.catchUp(ctx, fed, 0)
	case last > f.pos:
		f.drain(ctx, fed, last)
		if f.pos < last || f.back {
			f.catchUp(ctx, fed, last)
		} else if !f.open && len(f.pending) > 0 {
			f.flush(f.proven)
		}
	default:
		f.current = f.clock()
	}
}

// stillThere reports whether the leader knows a message at or after pos: a
// leader that was elected just now may for a moment name a lower sequence.
func (f *follower) stillThere(ctx context.Context) bool {
	m, err := readNext(ctx, f.conn, f.stream, f.pos, ">")
	if err != nil || m != nil {
		return true
	}
	last, err := lastSequence(ctx, f.js, f.stream)
	return err != nil || last >= f.pos
}

// catchUp reads until nothing is missing up to want and publishes. It returns
// early when ctx ends.
func (f *follower) catchUp(ctx context.Context, fed <-chan *nats.Msg, want uint64) {
	if f.clock()-f.current > markerTTL/2 && !f.reset {
		// Markers of deleted keys may be gone: only a fresh start misses none.
		f.restart()
	}
	var (
		floor  = want // not reached: something is missing
		proven bool
		asked  bool // floor was learned after the last read that left something out
		pause  = pauseMin
		moved  = f.clock()
		leader bool // read from the leader: direct reads bring nothing
	)
	for ctx.Err() == nil {
		if f.back {
			f.log.Warn("the store went back or has a new leader; reading it again from the start", "object", f.stream, "rev", f.pos)
			f.restart()
			asked = false
		}
		before := f.pos
		leader = leader || f.clock()-moved > stallAfter
		more, err := f.read(ctx, leader)
		if f.pos > before {
			pause, moved = pauseMin, f.clock()
		}
		if f.skipped {
			asked = false
		}
		if err != nil {
			f.log.Debug("read of the store failed; trying again", "object", f.stream, "err", err)
		} else if more {
			continue
		}
		if f.pos >= floor && !asked {
			f.skipped = false
			if floor, proven, err = f.floor(ctx); err != nil {
				f.log.Debug("the store has no leader; trying again", "object", f.stream, "err", err)
				f.publishUnproven()
				floor = 0
			} else {
				floor, asked = max(floor, want), true
			}
		}
		if asked {
			f.drain(ctx, fed, max(floor, f.seen))
			if f.pos >= max(floor, f.seen) && !f.open && !f.back {
				f.flush(proven)
				return
			}
		}
		sleep(ctx, pause)
		pause = min(2*pause, pauseMax)
	}
}

// publishUnproven shows what was read while the store has no leader to say
// whether that is all.
func (f *follower) publishUnproven() {
	if len(f.pending) > 0 && !f.open {
		current := f.current
		f.flush(false)
		f.current = current
	}
}

// drain takes messages of the feed until seq is reached, or nothing comes for
// a moment, or one is missing.
func (f *follower) drain(ctx context.Context, fed <-chan *nats.Msg, seq uint64) {
	patience := time.NewTimer(feedPatience)
	defer patience.Stop()
	for f.pos < seq || f.open {
		select {
		case <-ctx.Done():
			return
		case <-patience.C:
			return
		case m := <-fed:
			if _, ok := f.append(m); !ok {
				return
			}
			patience.Reset(feedPatience)
		}
	}
}

// read adds one piece of the stream after pos. more says that there was more
// in the replica that answered. leader: ask the leader, message by message.
func (f *follower) read(ctx context.Context, leader bool) (more bool, err error) {
	if leader {
		return f.readLeader(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	answer, err := jetstreamext.GetBatch(ctx, f.js, f.stream, chunkMessages,
		jetstreamext.GetBatchSeq(f.pos+1), jetstreamext.GetBatchMaxBytes(chunkBytes))
	if err != nil {
		return false, fmt.Errorf("read stream %s from %d: %w", f.stream, f.pos+1, err)
	}
	var before, left uint64
	for m, err := range answer {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read stream %s from %d: %w", f.stream, f.pos+1, err)
		}
		// Each message names the one before it, so that a lost one is seen.
		if prev, ok := headerUint(m.Header, jetstream.LastSequenceHeader); !ok || prev != before || m.Sequence <= f.pos {
			return false, fmt.Errorf("read stream %s from %d: message %d follows %d, expected %d", f.stream, f.pos+1, m.Sequence, prev, before)
		}
		before = m.Sequence
		left, _ = headerUint(m.Header, headerPending)
		f.add(message{subject: m.Subject, seq: m.Sequence, header: m.Header, data: m.Data})
	}
	return left > 0, nil
}

// readLeader adds a few messages after pos, read from the leader one by one.
func (f *follower) readLeader(ctx context.Context) (more bool, err error) {
	for range stallMessages {
		m, err := readNext(ctx, f.conn, f.stream, f.pos+1, ">")
		if err != nil {
			return false, err
		}
		if m == nil {
			f.seen = 0 // there is nothing more, whatever the feed named
			return false, nil
		}
		f.add(*m)
	}
	return true, nil
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
