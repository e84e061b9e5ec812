package state

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// publishTries are made for one event that another write of its sender is in the way of,
	// publishPause apart, twice as long each time.
	publishTries = 5
	publishPause = 2 * time.Millisecond
	// publishAttempt is how long the acknowledgement of one is waited for.
	publishAttempt = 2 * time.Second
	// markFrom is the sender of marks, which are no events: no other has this name.
	markFrom = "_"
	// markAfter is how many sequences of other topics a reader may be behind the end without
	// a mark: each costs a write.
	markAfter = 4096
)

// TopicPublish stores an event of a topic, once for each sender and number; see
// kbroker.TopicPublishRequest. Further errors: Invalid - the request is none.
//
// Each event takes the place of its sender's last one, by compare-and-set on the subject of
// the two: so a copy that is late, as the core was paused that had it, is refused if any
// copy was stored, however long ago; an ID of the message would be known for minutes. A
// refusal has the core read the last one, which says who was right. Where nothing is left
// of a sender in the stream, after days, a late copy is stored.
func (s *Store) TopicPublish(ctx context.Context, k AppKey, w TopicsWanted, topic string, r kbroker.TopicPublishRequest) (kbroker.TopicPublishReply, error) {
	if err := errors.Join(kbroker.CheckName("topic", topic), r.Check()); err != nil {
		return kbroker.TopicPublishReply{}, kbroker.AsError(err)
	}
	if err := s.ensureTopics(ctx, k, w); err != nil {
		return kbroker.TopicPublishReply{}, err
	}
	stream, _ := subjects.TopicStream(k.Tenant, k.App)
	subject := subjects.StoredEvent(k.Tenant, k.App, topic, r.From)
	m := newMsg(subject, r.Event)
	m.Header.Set(subjects.HeaderNumber, strconv.FormatUint(r.Number, 10))
	last, known := r.Last, !r.Again
	var err error
	for try := range publishTries {
		if !known {
			stored, err := readLast(ctx, s.cfg.Conn, stream, subject)
			if err != nil {
				s.topics.forget(k) // it may have gone
				return kbroker.TopicPublishReply{}, notStored(unavailable(err, "read the last event of %s of topic %s/%s", r.From, k.App, topic))
			}
			if last = 0; stored != nil {
				if number, ok := headerUint(stored.header, subjects.HeaderNumber); ok && number >= r.Number {
					return kbroker.TopicPublishReply{Sequence: stored.seq}, nil
				}
				last = stored.seq
			}
		}
		expect(m, last)
		var ack *jetstream.PubAck
		if ack, err = s.publishOne(ctx, m); err == nil {
			return kbroker.TopicPublishReply{Sequence: ack.Sequence}, nil
		}
		switch c := code(err); {
		case c != codeWrongSequence && c != codeInFlight:
			return kbroker.TopicPublishReply{}, s.publishError(err, k, topic)
		case c == codeInFlight || !known:
			sleep(ctx, publishPause<<try)
		}
		known = false
	}
	return kbroker.TopicPublishReply{}, notStored(kbroker.Errorf(kbroker.Overloaded, "store event %d of %s of topic %s/%s: another write is in its way: %v", r.Number, r.From, k.App, topic, err))
}

func (s *Store) publishOne(ctx context.Context, m *nats.Msg) (*jetstream.PubAck, error) {
	ctx, cancel := context.WithTimeout(ctx, publishAttempt)
	defer cancel()
	// While servers change, nobody may be there for a moment.
	return s.js.PublishMsg(ctx, m, jetstream.WithRetryWait(unansweredPause), jetstream.WithRetryAttempts(int(unansweredFor/unansweredPause)))
}

// notStored is an error of who has stored nothing.
func notStored(cause error) error {
	e := *kbroker.AsError(cause)
	e.Executed = kbroker.ExecutedNo
	return &e
}

// publishError says what became of an event.
func (s *Store) publishError(err error, k AppKey, topic string) error {
	e := kbroker.Errorf(kbroker.Unavailable, "store an event of topic %s/%s: %v", k.App, topic, err)
	e.Executed = kbroker.ExecutedUnknown
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		e.Executed = kbroker.ExecutedNo // nobody leads the stream, or there is none any more
		s.topics.forget(k)
	}
	return e
}

// TopicRead reads events of a topic; see kbroker.TopicReadRequest. Errors: Invalid - the
// request is none; Unavailable - the stream does not answer.
//
// Where nothing was ever stored there is nothing to read, whether the app is deployed or not.
// The events are read in one piece from any replica of the stream: one that lags shows a
// beginning of what there is, and Last is what was seen in that piece, never the end that
// the leader names: an event that the replica did not have yet would be passed by. So that a
// topic that is quiet beside others does not stay behind for ever, a mark is written into it
// now and then, for what reads next.
func (s *Store) TopicRead(ctx context.Context, k AppKey, w TopicsWanted, topic string, r kbroker.TopicReadRequest) (kbroker.TopicReadReply, error) {
	if err := errors.Join(kbroker.CheckName("topic", topic), r.Check()); err != nil {
		return kbroker.TopicReadReply{}, kbroker.AsError(err)
	}
	info, err := s.topicStream(ctx, k)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return kbroker.TopicReadReply{Last: r.After, Stream: r.Stream}, nil
	case err != nil:
		return kbroker.TopicReadReply{}, unavailable(err, "read topic %s/%s", k.App, topic)
	}
	s.limitTopics(ctx, k, w, info.Config)
	out := kbroker.TopicReadReply{Last: r.After, First: info.State.FirstSeq, Stream: uint64(info.Created.UnixNano())}
	if r.Stream != 0 && r.Stream != out.Stream {
		same, _ := strconv.ParseUint(info.Config.Metadata[subjects.CopiedUpTo], 10, 64)
		out.Last = min(r.After, same) // it was made again from a copy, which may lack the last ones
	}
	if r.End {
		out.Last = max(out.Last, info.State.LastSeq)
		return out, nil
	}
	if info.State.LastSeq <= out.Last {
		return out, nil
	}
	if err := s.readTopic(ctx, k, topic, r, &out); err != nil {
		return kbroker.TopicReadReply{}, unavailable(err, "read topic %s/%s", k.App, topic)
	}
	if behind := info.State.LastSeq - min(info.State.LastSeq, out.Last); len(out.Events) == 0 && (behind > markAfter || behind > 0 && out.First > out.Last+1) {
		s.markTopic(ctx, k, topic)
	}
	return out, nil
}

// readTopic adds events behind out.Last, and moves that on.
func (s *Store) readTopic(ctx context.Context, k AppKey, topic string, r kbroker.TopicReadRequest, out *kbroker.TopicReadReply) error {
	name, _ := subjects.TopicStream(k.Tenant, k.App)
	limit, room := cmp.Or(r.Limit, kbroker.MaxTopicEvents), cmp.Or(r.Bytes, kbroker.MaxTopicPageBytes)
	mark := subjects.StoredEvent(k.Tenant, k.App, topic, markFrom)
	opts := []jetstreamext.GetBatchOpt{jetstreamext.GetBatchSubject(subjects.StoredEvents(k.Tenant, k.App, topic)), jetstreamext.GetBatchMaxBytes(room)}
	size, full := 0, false
	_, err := s.readPiece(ctx, name, out.Last+1, limit, opts, func(m *jetstream.RawStreamMsg) {
		isMark := m.Subject == mark
		if size += len(m.Data); full || size > room && len(out.Events) > 0 {
			full = true
			return
		}
		if out.Last = m.Sequence; !isMark {
			out.Events = append(out.Events, kbroker.TopicEvent{Sequence: m.Sequence, At: m.Time, Data: m.Data})
		}
	})
	return err
}

// markTopic writes a mark into a topic. One that fails is written by the next read.
func (s *Store) markTopic(ctx context.Context, k AppKey, topic string) {
	if _, err := s.publishOne(ctx, newMsg(subjects.StoredEvent(k.Tenant, k.App, topic, markFrom), nil)); err != nil {
		s.cfg.Log.Debug("a topic was not marked; the next read tries again", "app", k.App, "object", topic, "err", err)
	}
}
