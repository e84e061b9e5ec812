package sdk

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// topics are a core's part of docs/protocol.md, Durable topics, in memory.
type topics struct {
	t  *testing.T
	nc *nats.Conn

	mu     sync.Mutex
	stream uint64
	first  uint64
	last   uint64
	events map[uint64]storedEvent
	of     map[string]lastOf // the last event of each sender in each topic
	mute   func(verb string) int
	looked int // reads
	told   int // events whose sender has said where the one before is
}

type storedEvent struct {
	subject string
	kbroker.TopicEvent
}

type lastOf struct{ number, sequence uint64 }

func newTopics(t *testing.T, nc *nats.Conn) *topics {
	t.Helper()
	c := &topics{t: t, nc: nc, stream: 1, first: 1, events: map[uint64]storedEvent{}, of: map[string]lastOf{}}
	if _, err := nc.QueueSubscribe(subjects.AllTopicAsks, subjects.QueueCore, c.asked); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *topics) asked(m *nats.Msg) {
	_, app, topic, verb, _, ok := subjects.ParseTopicAsk(m.Subject)
	if !ok {
		c.t.Errorf("a request on %s", m.Subject)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	mute := 0
	if c.mute != nil {
		mute = c.mute(verb)
	}
	if mute == lostBefore {
		return
	}
	var body []byte
	var err error
	if verb == subjects.VerbTopicPublish {
		var reply kbroker.TopicPublishReply
		if reply, err = c.publish(string(app)+"."+topic, m.Data); err == nil {
			body, err = json.Marshal(reply)
		}
	} else {
		c.looked++
		body, err = c.read(string(app)+"."+topic, m.Data)
	}
	switch {
	case mute == unanswered:
	case err != nil:
		_ = c.nc.PublishMsg(errorReply(m.Reply, nil, kbroker.AsError(err)))
	default:
		_ = c.nc.Publish(m.Reply, body)
	}
}

// publish stores an event that is not stored. Under mu.
func (c *topics) publish(topic string, body []byte) (reply kbroker.TopicPublishReply, err error) {
	var r kbroker.TopicPublishRequest
	if err := r.UnmarshalBinary(body); err != nil {
		return reply, err
	}
	switch last := c.of[topic+"."+r.From]; {
	case last.number == r.Number:
		return kbroker.TopicPublishReply{Sequence: last.sequence}, nil
	case last.number > r.Number:
		return reply, notRun(kbroker.Errorf(kbroker.Refused, "number %d is stored, this is %d", last.number, r.Number))
	}
	if r.Last != 0 && r.Last == c.of[topic+"."+r.From].sequence {
		c.told++
	}
	c.last++
	c.events[c.last] = storedEvent{topic, kbroker.TopicEvent{Sequence: c.last, At: time.Now(), Data: r.Event}}
	c.of[topic+"."+r.From] = lastOf{r.Number, c.last}
	return kbroker.TopicPublishReply{Sequence: c.last}, nil
}

// read returns a page. Under mu.
func (c *topics) read(topic string, body []byte) ([]byte, error) {
	var r kbroker.TopicReadRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "%v", err)
	}
	reply := kbroker.TopicReadReply{First: c.first, Stream: c.stream, Last: r.After}
	if r.Stream != 0 && r.Stream != c.stream {
		reply.Last = 0
	}
	if r.End {
		reply.Last = c.last
	}
	for n := max(reply.Last+1, c.first); n <= c.last && len(reply.Events) < min(r.Limit, 20); n++ {
		if e := c.events[n]; e.subject == topic {
			reply.Events = append(reply.Events, e.TopicEvent)
			reply.Last = n
		}
	}
	return reply.MarshalBinary()
}

// begin has the stream be another one, with nothing in it.
func (c *topics) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stream++
	c.first, c.last = 1, 0
	clear(c.events)
	clear(c.of)
}

// drop takes away what is stored up to a sequence.
func (c *topics) drop(upTo uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = upTo + 1
}

func (c *topics) reads() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.looked
}

// count is how many events of a topic are stored.
func (c *topics) count(topic string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.subject == topic {
			n++
		}
	}
	return n
}

func (c *topics) silently(mute func(verb string) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = mute
}

// announce has who hears a topic look at it.
func (c *topics) announce(app kbroker.AppName, topic string) {
	_ = c.nc.Publish(subjects.Topic(app, topic), nil)
}

// publishAll stores events of a topic, as another client would; nobody is told.
func (c *topics) publishAll(topic string, all ...any) {
	c.t.Helper()
	for _, v := range all {
		event, err := json.Marshal(v)
		if err != nil {
			c.t.Fatal(err)
		}
		c.mu.Lock()
		n := c.of[topic+".test"].number + 1
		body, err := kbroker.TopicPublishRequest{From: "test", Number: n, Event: event}.MarshalBinary()
		if err == nil {
			_, err = c.publish(topic, body)
		}
		c.mu.Unlock()
		if err != nil {
			c.t.Fatal(fmt.Errorf("publish %v: %w", v, err))
		}
	}
}
