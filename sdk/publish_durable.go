package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxSenders bounds the events of a topic that one client has on their way to the store
	// outside of turns.
	maxSenders = 16
	// The pause before a core is asked again to store an event.
	storeAgainLeast = 10 * time.Millisecond
	storeAgainMost  = 500 * time.Millisecond
)

// PublishDurable has an event of a topic of the app stored, for those that subscribe to it by
// SubscribeObject and SubscribeDurable: each of them gets it, also one that is not there now.
// Who has called Subscribe hears it as well, as after Publish.
//
// In a turn of a Method the event is stored with what the turn does, as a Tell, and counts as
// one; nil says that it will be in the topic if the turn is stored: it is brought there again
// and again, across moves and failures. Those of one object to one topic are in the order of
// its turns, each once.
//
// Elsewhere it returns when the event is stored. The deadline is that of ctx, or
// DefaultTimeout. One that is published again after an error with Executed unknown may be
// there twice. Events that are published beside each other have no order.
//
// event is sent as JSON, a []byte as it is, at most 128 KiB. Errors: Invalid - as of Publish
// and of Tell; Unavailable, Overloaded - no core has stored it in time, or the app is not
// deployed.
func PublishDurable(ctx context.Context, topic string, event any) error {
	client, data, err := eventOf(ctx, topic, event, kbroker.MaxTopicEventBytes)
	if err != nil {
		return err
	}
	if t := turnOf(ctx); t != nil {
		return t.tell(&tell{To: receiver{topic: topic}, At: time.Now(), data: data})
	}
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	s, err := client.senders.take(ctx, topic)
	if err != nil {
		return notRun(kbroker.Errorf(kbroker.Overloaded, "an event of topic %s was not sent: %d others are on their way", topic, maxSenders))
	}
	defer client.senders.give(topic, s)
	s.number++
	last := s.last
	s.last = 0
	name := client.session + "-" + strconv.Itoa(s.index)
	s.last, err = client.store(ctx, topic, kbroker.TopicPublishRequest{From: name, Number: s.number, Last: last, Event: data})
	return err
}

func withDefaultTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, bounded := ctx.Deadline(); bounded {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, DefaultTimeout)
}

// sender has one event of a topic on its way at a time: a core knows it by the numbers of the
// sender, which grow.
type sender struct {
	index  int
	number uint64
	last   uint64 // sequence of its last event; 0: not known
}

// senders are those of a client that have nothing on their way, by topic. The zero value is
// ready.
type senders struct {
	mu sync.Mutex
	of map[string]*topicSenders
}

type topicSenders struct {
	places chan struct{}
	free   []*sender // the one that was used last at the end
	made   int
}

// take waits for one until ctx ends.
func (s *senders) take(ctx context.Context, topic string) (*sender, error) {
	s.mu.Lock()
	if s.of == nil {
		s.of = map[string]*topicSenders{}
	}
	t := s.of[topic]
	if t == nil {
		t = &topicSenders{places: make(chan struct{}, maxSenders)}
		s.of[topic] = t
	}
	s.mu.Unlock()
	select {
	case t.places <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(t.free); n > 0 {
		one := t.free[n-1]
		t.free = t.free[:n-1]
		return one, nil
	}
	t.made++
	return &sender{index: t.made}, nil
}

func (s *senders) give(topic string, one *sender) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of[topic]
	t.free = append(t.free, one)
	<-t.places
}

// publishTold stores an event that a turn has published.
func (k *keeper) publishTold(ctx context.Context, e ownership.Relay, m *tell) error {
	sequence, err := k.app.client.store(ctx, m.To.topic, kbroker.TopicPublishRequest{
		From: outboxID(k.own.App, e.Object), Number: e.Message.Number, Last: m.last, Again: !e.First, Event: m.data,
	})
	m.last = sequence
	return err
}

// places are the sequences of the last events of objects, by topic, as far as this owner has
// published them: of these no core has to look for it.
type places map[place]uint64

type place struct {
	object kbroker.Object
	topic  string
}

// maxPlaces bounds them.
const maxPlaces = 10_000

func (p places) put(at place, sequence uint64) {
	if _, known := p[at]; !known && len(p) >= maxPlaces {
		for other := range p { // any
			delete(p, other)
			break
		}
	}
	p[at] = sequence
}

// store has an event stored, trying until ctx ends, and then tells whoever hears the topic
// now. Executed of the error is about all attempts.
func (c *Client) store(ctx context.Context, topic string, r kbroker.TopicPublishRequest) (sequence uint64, err error) {
	subject := subjects.TopicAsk(c.tenant, c.app, topic, subjects.VerbTopicPublish, c.start)
	unknown := false
	for again := storeAgainLeast; ; again = min(2*again, storeAgainMost) {
		sequence, e := c.storeOnce(ctx, subject, r)
		if e == nil {
			c.announce(topic, r.Event)
			return sequence, nil
		}
		r.Again = true
		if unknown = unknown || e.Executed != kbroker.ExecutedNo; unknown {
			e.Executed = kbroker.ExecutedUnknown
		}
		if e.Code != kbroker.Unavailable && e.Code != kbroker.Overloaded && e.Code != kbroker.Internal {
			return 0, e
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", e, ctx.Err())
		case <-time.After(again):
		}
	}
}

// storeOnce asks a core once.
func (c *Client) storeOnce(ctx context.Context, subject string, r kbroker.TopicPublishRequest) (sequence uint64, e *kbroker.Error) {
	body, err := r.MarshalBinary()
	if err != nil {
		return 0, notRun(kbroker.AsError(err))
	}
	m, e := c.askCore(ctx, &nats.Msg{Subject: subject, Data: body}, writeWithin)
	if e != nil {
		return 0, e
	}
	var reply kbroker.TopicPublishReply
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		return 0, kbroker.AsError(fmt.Errorf("a core's answer is not readable: %w", err))
	}
	return reply.Sequence, nil
}

// announce tells whoever hears a topic now of an event that is stored. One that is lost is
// found by those that read.
func (c *Client) announce(topic string, event []byte) {
	if o := c.opened.Load(); o != nil {
		_ = o.publish(&nats.Msg{Subject: subjects.Topic(c.app, topic), Data: event})
	}
}

// askCore sends a question to any core and waits for the answer. The error is the core's, or
// Unavailable.
func (c *Client) askCore(ctx context.Context, m *nats.Msg, within time.Duration) (*nats.Msg, *kbroker.Error) {
	unavailable := func(executed kbroker.Executed, why error) *kbroker.Error {
		e := kbroker.Errorf(kbroker.Unavailable, "no core takes %s: %v", m.Subject, why).WithHint("`kbroker status` says which cores are up")
		e.Executed = executed
		return e
	}
	t, err := c.open(ctx)
	if err != nil {
		return nil, unavailable(kbroker.ExecutedNo, err)
	}
	answers := make(chan *nats.Msg, 1)
	slot, err := t.request(m, func(_ uint64, m *nats.Msg) {
		select {
		case answers <- m:
		default:
		}
	})
	switch {
	case errors.Is(err, errNotConnected) || errors.Is(err, errClosed):
		return nil, unavailable(kbroker.ExecutedNo, err)
	case err != nil:
		return nil, unavailable(kbroker.ExecutedUnknown, err)
	}
	late := time.NewTimer(within)
	defer late.Stop()
	var answer *nats.Msg
	select {
	case answer = <-answers:
	case <-late.C:
		err = errNoCore
	case <-ctx.Done():
		err = ctx.Err()
	case <-c.ended:
		err = errClosed
	}
	if err != nil {
		t.forget(slot)
		return nil, unavailable(kbroker.ExecutedUnknown, err)
	}
	e, nobody := answerOf(answer)
	if nobody {
		e = unavailable(kbroker.ExecutedNo, errNoCore)
	}
	return answer, e
}
