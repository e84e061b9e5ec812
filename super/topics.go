package super

import (
	"context"
	"encoding/json"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// maxTopicRead bounds a request to read events: it has some numbers.
const maxTopicRead = 1 << 10

// topic stores events of topics, and reads them, for starts of instances. The subject says
// which topic of which app: servers let nobody ask who may not, nor as another. What is in
// the events is theirs.
func (d *desk) topic(ctx context.Context, m *nats.Msg) (any, error) {
	tenant, app, topic, verb, _, ok := subjects.ParseTopicAsk(m.Subject)
	if !ok {
		return nil, kbroker.Errorf(kbroker.Invalid, "subject %q names no topic of an app", m.Subject)
	}
	k, err := askedOf(m, tenant, app)
	if err != nil {
		return nil, err
	}
	switch verb {
	case subjects.VerbTopicPublish:
		var r kbroker.TopicPublishRequest
		if err := r.UnmarshalBinary(m.Data); err != nil {
			return nil, err
		}
		return d.store.TopicPublish(ctx, k, d.store.TopicsWanted(k), topic, r)
	case subjects.VerbTopicRead:
		return d.topicRead(ctx, k, topic, m.Data)
	}
	return nil, kbroker.Errorf(kbroker.Invalid, "a core does not know %q", verb)
}

func (d *desk) topicRead(ctx context.Context, k state.AppKey, topic string, body []byte) (any, error) {
	if len(body) > maxTopicRead {
		return nil, kbroker.Errorf(kbroker.Invalid, "a request of %d bytes to read, want %d at most", len(body), maxTopicRead)
	}
	var r kbroker.TopicReadRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	reply, err := d.store.TopicRead(ctx, k, d.store.TopicsWanted(k), topic, r)
	if err != nil {
		return nil, err
	}
	data, err := reply.MarshalBinary()
	return &nats.Msg{Data: data}, err
}
