package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of the event stream. What is beyond any of them leaves it, the oldest
// first.
const (
	eventMaxAge   = 7 * 24 * time.Hour
	eventMaxBytes = 64 << 20
	eventMaxMsgs  = 100_000
	// eventTwice is how long the stream knows the ID of an event, so that one
	// that is stored again is not there twice.
	eventTwice = 2 * time.Minute
	// eventAttempt is how long the acknowledgement of one is waited for.
	eventAttempt = 2 * time.Second
	// eventPageBytes bounds a page, well below the payload limit of 1 MiB.
	eventPageBytes = 512 << 10
	// eventWindow is how far a page looks back at first, in events.
	eventWindow = 20_000
)

// PutEvents stores events in their order, or returns an error: then all may be
// stored again, and those that were taken are not there twice. It makes the
// stream where there is none yet, replicated as the control store is.
func (s *Store) PutEvents(ctx context.Context, events []kbroker.Event) error {
	futures := make([]jetstream.PubAckFuture, 0, len(events))
	for _, e := range events {
		m := newRecord(subjects.Event(e.Tenant, e.App, e.Instance), e)
		if e.ID != "" {
			m.Header.Set(jetstream.MsgIDHeader, e.ID)
		}
		future, err := s.js.PublishMsgAsync(m)
		if err != nil {
			return fmt.Errorf("publish an event: %w", err)
		}
		futures = append(futures, future)
	}
	for _, future := range futures {
		select {
		case <-future.Ok():
		case err := <-future.Err():
			return fmt.Errorf("store an event: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("store an event: %w", ctx.Err())
		}
	}
	return nil
}

// Status is what was last reported of an instance, as this core's replica has
// it now; false: nothing.
func (s *Store) Status(k PlacementKey) (kbroker.Status, bool) { return s.reports.status(k) }

// EnsureEvents makes the event stream exist.
func (s *Store) EnsureEvents(ctx context.Context) error {
	replicas, placement, err := s.like(ctx)
	if err != nil {
		return err
	}
	_, err = create(ctx, s.js, jetstream.StreamConfig{
		Name: subjects.EventStream, Subjects: []string{subjects.EventAll}, Discard: jetstream.DiscardOld,
		MaxMsgs: eventMaxMsgs, MaxBytes: eventMaxBytes, MaxAge: eventMaxAge, Duplicates: eventTwice,
		MaxMsgSize: -1, MaxConsumers: -1, MaxMsgsPerSubject: -1,
		Storage: jetstream.FileStorage, Replicas: replicas, Placement: placement, DenyDelete: true, AllowDirect: true,
	})
	return err
}

// Events returns a page of events, read from any replica of the stream, also
// without a leader. Reads of what comes after a sequence look at every message,
// whatever the request asks for, and Next is the last that was looked at: a
// replica that lags shows less, and the next read goes on from there. A request
// for the newest events that names an app or an instance reads the older ones
// by their subject; there a replica that lags may lack some.
//
// Errors: Unavailable when no replica answered.
func (s *Store) Events(ctx context.Context, r kbroker.EventsRequest) (kbroker.EventsReply, error) {
	if r.Limit <= 0 || r.Limit > kbroker.MaxEventsPerRequest {
		r.Limit = kbroker.MaxEventsPerRequest
	}
	page := eventPage{request: r}
	var err error
	if r.After != nil {
		err = s.eventsAfter(ctx, &page, *r.After)
	} else {
		err = s.newestEvents(ctx, &page)
	}
	if err != nil && !s.noStream(ctx, subjects.EventStream, err) {
		return kbroker.EventsReply{}, unavailable(err, "read the events")
	}
	return page.reply(), nil
}

// noStream reports whether a read failed because there is no stream: nothing
// has happened yet.
func (s *Store) noStream(ctx context.Context, stream string, err error) bool {
	if !errors.Is(err, nats.ErrNoResponders) {
		return false
	}
	_, err = streamOf(ctx, s.js, stream)
	return errors.Is(err, jetstream.ErrStreamNotFound)
}

// eventPage is a page that is being made.
type eventPage struct {
	request kbroker.EventsRequest
	events  []kbroker.Event // oldest first
	next    uint64
	more    bool
	passed  bool // something older than Since was seen
}

func (p *eventPage) wants(e kbroker.Event) bool {
	r := p.request
	switch {
	case e.Time.Before(r.Since):
		p.passed = true
		return false
	case r.Instance != "" && e.Instance != r.Instance, r.App != "" && e.App != r.App:
		return false
	}
	return e.Tenant == "" && r.App == "" || e.Tenant == r.Tenant
}

// reply bounds the page, by number and by bytes: what follows a sequence keeps
// its beginning, the newest keep their end.
func (p *eventPage) reply() kbroker.EventsReply {
	out := kbroker.EventsReply{Events: []kbroker.Event{}, Next: p.next, More: p.more}
	size := 0
	fits := func(e kbroker.Event) bool {
		raw, err := json.Marshal(e)
		size += len(raw)
		return err == nil && size <= eventPageBytes && len(out.Events) < p.request.Limit
	}
	if p.request.After == nil {
		for _, e := range slices.Backward(p.events) {
			if !fits(e) {
				break
			}
			out.Events = append(out.Events, e)
		}
		slices.Reverse(out.Events)
		return out
	}
	for i, e := range p.events {
		if !fits(e) && i > 0 {
			out.Next, out.More = p.events[i-1].Sequence, true
			break
		}
		out.Events = append(out.Events, e)
	}
	return out
}

// eventsAfter looks at what follows a sequence.
func (s *Store) eventsAfter(ctx context.Context, p *eventPage, after uint64) error {
	p.next = after
	events, left, err := s.readEvents(ctx, after+1, chunkMessages, "")
	if err != nil {
		return err
	}
	for _, e := range events {
		p.next = e.Sequence
		if p.wants(e) {
			p.events = append(p.events, e)
		}
	}
	p.more = left > 0
	return nil
}

// newestEvents looks back from the end of the stream until the page is full.
func (s *Store) newestEvents(ctx context.Context, p *eventPage) error {
	first, left, err := s.readEvents(ctx, 1, 1, "")
	if err != nil || len(first) == 0 {
		return err
	}
	begin := first[0].Sequence
	from := begin
	if span := uint64(chunkMessages); left >= span {
		from = begin + left - span + 1
	}
	// The end, every message of it: what follows goes on from there.
	p.next = from - 1
	for more := true; more; {
		events, left, err := s.readEvents(ctx, p.next+1, chunkMessages, "")
		if err != nil {
			return err
		}
		for _, e := range events {
			p.next = e.Sequence
			if p.wants(e) {
				p.events = append(p.events, e)
			}
		}
		more = left > 0 && len(events) > 0
	}
	subject := ""
	if r := p.request; r.App != "" {
		subject = subjects.EventsOf(r.Tenant, r.App, r.Instance)
	}
	window := uint64(chunkMessages)
	if subject != "" {
		window = eventWindow
	}
	for ; from > begin && len(p.events) < p.request.Limit && !p.passed; window *= 2 {
		to := from
		from = max(begin, to-min(to, window))
		older, err := s.eventsBetween(ctx, p, from, to, subject)
		if err != nil {
			return err
		}
		p.events = append(older, p.events...)
	}
	return nil
}

// eventsBetween are the wanted events from one sequence to below another.
func (s *Store) eventsBetween(ctx context.Context, p *eventPage, from, to uint64, subject string) (out []kbroker.Event, err error) {
	for from < to {
		events, left, err := s.readEvents(ctx, from, chunkMessages, subject)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if from = e.Sequence + 1; e.Sequence < to && p.wants(e) {
				out = append(out, e)
			}
		}
		if left == 0 || len(events) == 0 {
			break
		}
	}
	return out, nil
}

// readEvents reads a piece of the stream at and after a sequence: all messages,
// or those of a subject. left is how many more the replica has.
func (s *Store) readEvents(ctx context.Context, from uint64, n int, subject string) (out []kbroker.Event, left uint64, err error) {
	opts := []jetstreamext.GetBatchOpt{jetstreamext.GetBatchMaxBytes(chunkBytes)}
	if subject != "" {
		opts = append(opts, jetstreamext.GetBatchSubject(subject))
	}
	left, err = s.readPiece(ctx, subjects.EventStream, from, n, opts, func(m *jetstream.RawStreamMsg) {
		var e kbroker.Event
		if err := json.Unmarshal(m.Data, &e); err != nil {
			e = kbroker.Event{Time: m.Time, Message: "an event that this build cannot read"}
		}
		e.Sequence, e.ID = m.Sequence, ""
		out = append(out, e)
	})
	if err != nil {
		return nil, 0, err
	}
	return out, left, nil
}

// readPiece reads at most n messages of a stream at and after a sequence, from any
// replica, and hands them to each. left is how many more the replica has.
func (s *Store) readPiece(ctx context.Context, stream string, from uint64, n int, opts []jetstreamext.GetBatchOpt, each func(*jetstream.RawStreamMsg)) (left uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	answer, err := jetstreamext.GetBatch(ctx, s.js, stream, n, append(opts, jetstreamext.GetBatchSeq(from))...)
	if err != nil {
		return 0, fmt.Errorf("read stream %s from %d: %w", stream, from, err)
	}
	var before uint64
	for m, err := range answer {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read stream %s from %d: %w", stream, from, err)
		}
		m.Sequence, _ = headerUint(m.Header, jetstream.SequenceHeader)
		if prev, ok := headerUint(m.Header, jetstream.LastSequenceHeader); !ok || prev != before || m.Sequence < from {
			return 0, fmt.Errorf("read stream %s from %d: message %d follows %d, expected %d", stream, from, m.Sequence, prev, before)
		}
		before = m.Sequence
		left, _ = headerUint(m.Header, headerPending)
		each(m)
	}
	return left, nil
}
