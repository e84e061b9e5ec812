package super

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

const (
	// maxJournal bounds the events that wait to be stored; further ones are
	// dropped and counted.
	maxJournal = 4096
	// journalBatch bounds the events that are stored at once, journalAttempt
	// how long that may take, journalPause is between attempts.
	journalBatch   = 64
	journalAttempt = 2 * time.Second
	journalPause   = 200 * time.Millisecond
	// journalEnd is how long the last events may take when the process ends.
	journalEnd = 500 * time.Millisecond
)

// journal stores events beside everything else: who adds one never waits, and
// nothing fails because an event could not be stored. Safe for concurrent use.
type journal struct {
	host    kbroker.HostID
	process string
	log     *slog.Logger

	mu      sync.Mutex
	waiting []kbroker.Event
	dropped int    // since it was last told
	lost    uint64 // likewise, since the start
	number  uint64
	stirred chan struct{} // capacity 1
}

func newJournal(host kbroker.HostID, process string, log *slog.Logger) *journal {
	return &journal{host: host, process: process, log: log, stirred: make(chan struct{}, 1)}
}

// add takes events that by decided or saw. Those without an ID get one of their
// own.
func (j *journal) add(by string, events ...kbroker.Event) {
	now := time.Now().UTC()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range events {
		if len(j.waiting) >= maxJournal {
			j.dropped++
			j.lost++
			continue
		}
		j.waiting = append(j.waiting, j.complete(e, by, now))
	}
	select {
	case j.stirred <- struct{}{}:
	default:
	}
}

// complete fills in what only the journal knows; the caller holds mu.
func (j *journal) complete(e kbroker.Event, by string, now time.Time) kbroker.Event {
	e.Time = now
	if e.By == "" {
		e.By = by
	}
	if e.ID == "" {
		j.number++
		e.ID = fmt.Sprintf("%s %s %d", j.host, j.process, j.number)
	}
	if len(e.Message) > kbroker.MaxEventMessage {
		e.Message = e.Message[:kbroker.MaxEventMessage] + "..."
	}
	return e
}

// next are the oldest events that wait, after those that were dropped since.
func (j *journal) next() []kbroker.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := min(len(j.waiting), journalBatch)
	out := append([]kbroker.Event{}, j.waiting[:n]...)
	j.waiting = append(j.waiting[:0:0], j.waiting[n:]...)
	if j.dropped > 0 && len(j.waiting) == 0 {
		out = append(out, j.complete(kbroker.Event{
			Kind: kbroker.EventEventsDropped, Host: j.host,
			Message: fmt.Sprintf("%d events were dropped: more than %d waited to be stored", j.dropped, maxJournal),
		}, "core "+string(j.host), time.Now().UTC()))
		j.dropped = 0
	}
	return out
}

// run stores what is added until ctx ends, then what is left, for a moment.
func (j *journal) run(ctx context.Context, store *state.Store) error {
	j.store(ctx, store)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalEnd)
	defer cancel()
	for batch := j.next(); len(batch) > 0 && last.Err() == nil; batch = j.next() {
		if err := store.PutEvents(last, batch); err != nil {
			j.log.Debug("events are lost", "err", err)
		}
	}
	return nil
}

func (j *journal) store(ctx context.Context, store *state.Store) {
	made := false // the stream is there
	var batch []kbroker.Event
	for ctx.Err() == nil {
		if batch == nil {
			batch = j.next()
		}
		if len(batch) == 0 {
			batch = nil
			select {
			case <-ctx.Done():
			case <-j.stirred:
			}
			continue
		}
		if err := put(ctx, store, batch, &made); err == nil {
			batch = nil
			continue
		} else if ctx.Err() == nil {
			made = false
			j.log.Debug("events wait", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(journalPause):
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting = append(batch, j.waiting...)
}

// put stores a batch, with the stream if it is not known to be there.
func put(ctx context.Context, store *state.Store, batch []kbroker.Event, made *bool) error {
	ctx, cancel := context.WithTimeout(ctx, journalAttempt)
	defer cancel()
	if !*made {
		if err := store.EnsureEvents(ctx); err != nil {
			return err
		}
		*made = true
	}
	return store.PutEvents(ctx, batch)
}
