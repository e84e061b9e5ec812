package kbroker

import (
	"strings"
	"time"
)

// What instances ask cores for on subjects.TopicAsk: to store an event of a topic, and to
// read those that are stored. What carries events is encoded as objects are: a line of
// JSON, then the events.

// Bounds of the events that are stored.
const (
	// MaxTopicEventBytes bounds one event: what an object tells in a turn has no more.
	MaxTopicEventBytes = 128 << 10
	// MaxTopicEvents and MaxTopicPageBytes bound those that are read at once.
	MaxTopicEvents    = 256
	MaxTopicPageBytes = 512 << 10
	// MaxTopicFromBytes bounds what names a sender.
	MaxTopicFromBytes = 64
)

// TopicPublishRequest has an event of a topic stored, once for each From and Number. A
// sender has one event of a topic on its way at a time, and gives the next one a higher
// number; several at a time are several senders.
//
// Errors, each of this request alone: Overloaded - it was not stored, as another copy of it
// is being, or too many requests are; Unavailable - it may have been stored, or may yet be,
// unless Executed is no. After an error the same event is sent again, with Again.
type TopicPublishRequest struct {
	// From names the sender: 1 to MaxTopicFromBytes letters and digits of ASCII, - and _; not
	// _ alone.
	From string `json:"from"`
	// Number is from 1 on.
	Number uint64 `json:"number"`
	// Last is the sequence of the sender's event before this one in the topic, as the last
	// answer said; 0: it is not known, or there is none. It spares a core to look for it.
	Last uint64 `json:"last,omitempty"`
	// Again: the event may have been stored before, by a request of which nothing was heard.
	Again bool `json:"again,omitempty"`
	// Event is stored as it is; it may be empty.
	Event []byte `json:"-"`
}

// Check reports why it is none, or nil. The error has code Invalid.
func (r TopicPublishRequest) Check() error {
	switch {
	case r.From == "" || r.From == "_" || len(r.From) > MaxTopicFromBytes || strings.ContainsFunc(r.From, func(c rune) bool { return c == '%' || !strings.ContainsRune(keyBytes, c) }):
		return Errorf(Invalid, "%.80q names no sender of an event", r.From)
	case r.Number == 0:
		return Errorf(Invalid, "an event has the number 0, want 1 or more")
	case len(r.Event) > MaxTopicEventBytes:
		return Errorf(Invalid, "an event has %d bytes, at most %d are stored", len(r.Event), MaxTopicEventBytes)
	}
	return nil
}

// TopicPublishReply says where the sender's last event of the topic is stored: this one, or
// one with a higher number, which was sent when this one was stored already.
type TopicPublishReply struct {
	Sequence uint64 `json:"sequence"`
}

// TopicReadRequest reads the events of a topic behind a sequence.
type TopicReadRequest struct {
	// After is a sequence; 0: the oldest events that are kept.
	After uint64 `json:"after,omitempty"`
	// Stream is what the answer said that After is of; 0: it is not known.
	Stream uint64 `json:"stream,omitempty"`
	// Limit bounds the events, Bytes their sizes, but for one event; 0: as many as are
	// allowed, which is never exceeded.
	Limit int `json:"limit,omitempty"`
	Bytes int `json:"bytes,omitempty"`
	// End asks for no events, but for where they end: Last of the answer.
	End bool `json:"end,omitempty"`
}

// Check reports why it cannot be answered, or nil. The error has code Invalid.
func (r TopicReadRequest) Check() error {
	switch {
	case r.Limit < 0 || r.Limit > MaxTopicEvents:
		return Errorf(Invalid, "%d events are to be read, at most %d are at once", r.Limit, MaxTopicEvents)
	case r.Bytes < 0 || r.Bytes > MaxTopicPageBytes:
		return Errorf(Invalid, "%d bytes of events are to be read, at most %d are at once", r.Bytes, MaxTopicPageBytes)
	}
	return nil
}

// TopicReadReply has events of a topic, in the order of their sequences. There may be more:
// then reading on from Last finds them.
type TopicReadReply struct {
	Events []TopicEvent
	// Last is up to where all events of the topic are in this answer or in those before it:
	// not below After, where that is of the same stream. It may be beyond the last event:
	// the sequences of a topic have gaps, as all topics of an app are in one stream.
	Last uint64
	// First is the sequence of the first event of any topic that is kept; 0: it is not known.
	// One that is beyond After+1 says that events are gone that were not read, perhaps of
	// this topic.
	First uint64
	// Stream says which stream the sequences are of: never 0, once there is one. When it is
	// not that of the request the stream was made again, as when a cluster is rescued from a
	// copy, and the answer begins where the two are the same: Last may be below After then. It
	// begins with the oldest events that are kept where nothing is known of that.
	Stream uint64
}

// TopicEvent is one event of a topic, as it is stored.
type TopicEvent struct {
	Sequence uint64    `json:"sequence"`
	At       time.Time `json:"at"` // when it was stored, by the clock of a core
	Data     []byte    `json:"-"`
}

// The heads of what carries events.
type (
	topicPublishHead struct {
		TopicPublishRequest
		Size int `json:"size,omitempty"`
	}
	sizedTopicEvent struct {
		TopicEvent
		Size int `json:"size,omitempty"`
	}
	topicReadHead struct {
		Events []sizedTopicEvent `json:"events,omitempty"`
		Last   uint64            `json:"last"`
		First  uint64            `json:"first,omitempty"`
		Stream uint64            `json:"stream,omitempty"`
	}
)

// MarshalBinary encodes the request as it is sent. The error is that of Check.
func (r TopicPublishRequest) MarshalBinary() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	return joined(topicPublishHead{r, len(r.Event)}, [][]byte{r.Event})
}

// UnmarshalBinary decodes and checks what MarshalBinary has made: Invalid otherwise. The
// event is a part of data.
func (r *TopicPublishRequest) UnmarshalBinary(data []byte) error {
	var head topicPublishHead
	rest, err := cut(data, &head)
	if err != nil {
		return err
	}
	if head.Event, rest, err = valueOf(rest, head.Size); err != nil {
		return err
	}
	if len(rest) > 0 {
		return Errorf(Invalid, "%d bytes too many", len(rest))
	}
	*r = head.TopicPublishRequest
	return r.Check()
}

// MarshalBinary encodes the reply as it is sent.
func (r TopicReadReply) MarshalBinary() ([]byte, error) {
	head := topicReadHead{Events: make([]sizedTopicEvent, len(r.Events)), Last: r.Last, First: r.First, Stream: r.Stream}
	values := make([][]byte, len(r.Events))
	for i, e := range r.Events {
		head.Events[i], values[i] = sizedTopicEvent{e, len(e.Data)}, e.Data
	}
	return joined(head, values)
}

// UnmarshalBinary decodes what MarshalBinary has made: Invalid otherwise. The events are
// parts of data.
func (r *TopicReadReply) UnmarshalBinary(data []byte) error {
	var head topicReadHead
	rest, err := cut(data, &head)
	if err != nil {
		return err
	}
	if len(head.Events) > MaxTopicEvents {
		return Errorf(Invalid, "%d events, at most %d are read at once", len(head.Events), MaxTopicEvents)
	}
	reply := TopicReadReply{Last: head.Last, First: head.First, Stream: head.Stream}
	for _, e := range head.Events {
		if e.Data, rest, err = valueOf(rest, e.Size); err != nil {
			return err
		}
		reply.Events = append(reply.Events, e.TopicEvent)
	}
	if len(rest) > 0 {
		return Errorf(Invalid, "%d bytes too many", len(rest))
	}
	*r = reply
	return nil
}
