package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// lookEvents and lookBytes bound the events of one look: with what each adds to it, it is
	// one batch.
	lookEvents = 128
	lookBytes  = kbroker.MaxBatchBytes / 2
	// saveEvery is how often is stored how far a topic was read in which there was nothing.
	saveEvery = time.Minute
	// Methods of a subscription; no name of one that can be called has a blank.
	methodLook   = "(look for events)"
	methodPassBy = "(pass an event by)"
)

// topicCursor is the state of a durable subscription.
type topicCursor struct {
	// After is up to which sequence of the topic's stream it has made calls of the events.
	After  uint64 `json:"after"`
	Stream uint64 `json:"stream,omitempty"` // whose sequence it is; 0: there was none
	Begun  bool   `json:"begun"`            // it has read the topic
	Events uint64 `json:"events"`           // that it has read
	// PassedBy are those of them that no receiver has taken, nor will.
	PassedBy     uint64 `json:"passed_by,omitempty"`
	LastPassedBy string `json:"last_passed_by,omitempty"`
	// Missed are events that were gone before they were read: at most, as those of other topics
	// of the app count as well.
	Missed uint64 `json:"missed,omitempty"`

	seen  uint64    // up to where there was nothing; 0: not known
	saved time.Time // when After was set last
}

// kindOfSubscriptions is the kind of their objects.
func kindOfSubscriptions() *kind {
	k := &kind{
		name: subscriptionKind, idle: DefaultIdleAfter, mailbox: DefaultMailbox, methods: map[string]*objectMethod{},
		fresh: func() any { return new(topicCursor) }, load: loadState[topicCursor], store: storeState[topicCursor],
	}
	for _, m := range []*objectMethod{objectMethodOf(methodLook, false, (*topicCursor).look), objectMethodOf(methodPassBy, false, (*topicCursor).passBy)} {
		m.kind = k.name
		k.methods[m.name] = m
	}
	return k
}

// look reads the events behind the last ones, and tells them on: in one turn, so that each is
// told on once. A topic that cannot be read is no error of the turn: nothing has to be taken
// back.
func (s *topicCursor) look(ctx context.Context, _ struct{}) (struct{}, error) {
	t := turnOf(ctx)
	l := t.heard.look
	r := kbroker.TopicReadRequest{After: max(s.After, s.seen), Stream: s.Stream, Limit: lookEvents, Bytes: lookBytes}
	if !s.Begun && l.of.fromNow {
		r = kbroker.TopicReadRequest{End: true}
	}
	page, err := t.keeper.readTopic(ctx, l.of, r)
	if err != nil {
		l.err = err
		return struct{}{}, nil
	}
	apart := s.compare(t, r, page)
	l.behind = len(page.Events) > 0
	if s.saved.IsZero() {
		s.saved = time.Now()
	}
	if s.seen = max(page.Last, page.First-min(page.First, 1)); len(page.Events) > 0 || apart || !s.Begun || time.Since(s.saved) > saveEvery {
		s.After, s.saved = s.seen, time.Now()
	}
	s.Begun, s.Stream = true, page.Stream
	passed := 0
	var why error
	for _, e := range page.Events {
		m, err := l.of.forwarded(e.Data)
		if err != nil {
			passed, why = passed+1, fmt.Errorf("event %d: %w", e.Sequence, err)
			s.pass(why.Error())
		}
		if s.Events++; m == nil || err != nil {
			continue
		}
		m.At, m.Event, m.OnFailure, m.data = time.Now(), string(l.of.app)+"/"+l.of.topic, methodPassBy, e.Data
		if l.of.handled {
			m.Lane = 1 + int(s.Events%uint64(l.of.atOnce))
		}
		t.forward(m)
	}
	if passed > 0 {
		t.keeper.log.Warn("events are passed by that no receiver can take", "topic", l.of.String(), "events", passed, "err", why)
	}
	return struct{}{}, nil
}

// compare takes note of what is not in the stream any more, and reports whether the answer
// does not begin where the cursor is.
func (s *topicCursor) compare(t *turn, r kbroker.TopicReadRequest, page kbroker.TopicReadReply) bool {
	log, topic := t.keeper.log, t.object.ID
	switch {
	case s.Stream != 0 && page.Stream != s.Stream:
		log.Warn("the stream of a topic was made again; it is read on from where the two are the same, or from its oldest event", "topic", topic, "after", r.After, "last", page.Last)
		return true
	case s.Begun && page.First > r.After+1:
		s.Missed += page.First - 1 - r.After
		log.Warn("events are gone that were not read, of this topic or of others of its app", "topic", topic, "after", r.After, "first", page.First)
		return true
	}
	return false
}

// passBy follows an event that its receiver has refused for good.
func (s *topicCursor) passBy(_ context.Context, f Failure) (struct{}, error) {
	s.pass(fmt.Sprintf("%s of %s: %v", f.Method, f.Target, f.Error))
	return struct{}{}, nil
}

func (s *topicCursor) pass(why string) {
	s.PassedBy++
	s.LastPassedBy = strings.ToValidUTF8(why[:min(len(why), maxErrorBytes)], "")
}

// forwarded is the call that an event makes; nil: none.
func (d *durableTopic) forwarded(event []byte) (m *tell, err error) {
	defer func() {
		if p := recover(); p != nil {
			m, err = nil, fmt.Errorf("its key panicked: %v", p)
		}
	}()
	return d.forward(event)
}

// forward adds the call of an event to what the turn leaves behind.
func (t *turn) forward(m *tell) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tells = append(t.tells, m)
}

// readTopic reads events of a topic.
func (k *keeper) readTopic(ctx context.Context, of *durableTopic, r kbroker.TopicReadRequest) (kbroker.TopicReadReply, error) {
	var page kbroker.TopicReadReply
	body, err := json.Marshal(r)
	if err != nil {
		panic("sdk: a request does not marshal: " + err.Error()) // numbers only
	}
	subject := subjects.TopicAsk(k.own.Tenant, of.app, of.topic, subjects.VerbTopicRead, k.own.Incarnation)
	m, e := k.app.client.askCore(ctx, &nats.Msg{Subject: subject, Data: body}, readWithin)
	if e != nil {
		return page, e
	}
	return page, page.UnmarshalBinary(m.Data)
}
