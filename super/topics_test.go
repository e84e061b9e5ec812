package super

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// publish asks as a start of an app to have an event stored.
func (d *desktop) publish(subject string, r kbroker.TopicPublishRequest) (reply kbroker.TopicPublishReply, err error) {
	body, err := r.MarshalBinary()
	if err != nil {
		return reply, err
	}
	return reply, d.send(&nats.Msg{Subject: subject, Data: body}, &reply)
}

func (d *desktop) readTopic(subject string, r kbroker.TopicReadRequest) (reply kbroker.TopicReadReply, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return reply, err
	}
	m, err := d.nc.RequestMsg(&nats.Msg{Subject: subject, Data: body}, 5*time.Second)
	if err != nil {
		return reply, err
	}
	if m.Header.Get(subjects.HeaderCode) != "" {
		var e kbroker.Error
		return reply, errors.Join(json.Unmarshal(m.Data, &e), &e)
	}
	return reply, reply.UnmarshalBinary(m.Data)
}

func TestACoreStoresEventsOfTopics(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	app.Topics = kbroker.TopicLimits{Keep: time.Hour, MaxBytes: 4 << 20}
	mine := subjects.TopicAsk(tenant, "shop", "orders", subjects.VerbTopicPublish, webStart)
	read := subjects.TopicAsk(tenant, "shop", "orders", subjects.VerbTopicRead, "bank-api-1.d") // of another app
	one := kbroker.TopicPublishRequest{From: "a", Number: 1, Event: []byte("\x00\xff")}
	wait.Until(t, 10*time.Second, func() error {
		_, err := d.publish(mine, one)
		if e := kbroker.AsError(err); errors.Is(err, nats.ErrNoResponders) || e == nil || e.Code != kbroker.Unavailable || e.Executed != kbroker.ExecutedNo {
			return fmt.Errorf("before it is deployed: %w, want unavailable, executed no", err)
		}
		return nil
	})
	if got, err := d.readTopic(read, kbroker.TopicReadRequest{}); err != nil || len(got.Events) != 0 || got.Stream != 0 {
		t.Errorf("of an app that is not deployed is read: %+v (%v)", got, err)
	}
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &kbroker.DeployReply{})
	})
	var first kbroker.TopicPublishReply
	wait.Until(t, 5*time.Second, func() (err error) { // a core may be behind
		first, err = d.publish(mine, one)
		return err
	})
	again := one
	again.Again = true
	if got, err := d.publish(mine, again); err != nil || got != first {
		t.Errorf("sent again it is at %d (%v), want %d", got.Sequence, err, first.Sequence)
	}
	got, err := d.readTopic(read, kbroker.TopicReadRequest{})
	if err != nil || len(got.Events) != 1 || got.Events[0].Sequence != first.Sequence || string(got.Events[0].Data) != "\x00\xff" || got.Last != first.Sequence {
		t.Fatalf("read %+v (%v)", got, err)
	}
	stream, _ := subjects.TopicStream(tenant, "shop")
	var info struct {
		Config struct {
			MaxAge   time.Duration `json:"max_age"`
			MaxBytes int64         `json:"max_bytes"`
		} `json:"config"`
	}
	if m, err := d.nc.Request(subjects.LeaderInfo(stream), nil, 5*time.Second); err != nil || json.Unmarshal(m.Data, &info) != nil || info.Config.MaxAge != time.Hour || info.Config.MaxBytes != 4<<20 {
		t.Errorf("the stream is %+v (%v), want the limits of the spec", info, err)
	}
	for name, c := range map[string]struct {
		subject string
		r       kbroker.TopicPublishRequest
		code    kbroker.Code
	}{
		"of another tenant":         {subjects.TopicAsk("other", "shop", "orders", subjects.VerbTopicPublish, webStart), one, kbroker.NotFound},
		"of a name that is none":    {subjects.TopicAsk(tenant, "SHOP", "orders", subjects.VerbTopicPublish, webStart), one, kbroker.Invalid},
		"of a topic that is none":   {subjects.TopicAsk(tenant, "shop", "Orders", subjects.VerbTopicPublish, webStart), one, kbroker.Invalid},
		"what a core does not do":   {subjects.TopicAsk(tenant, "shop", "orders", "drop", webStart), one, kbroker.Invalid},
		"of an app that is not":     {subjects.TopicAsk(tenant, "bank", "orders", subjects.VerbTopicPublish, "bank-api-1.d"), one, kbroker.Unavailable},
		"to read what is no number": {read, one, kbroker.Invalid},
	} {
		if _, err := d.publish(c.subject, c.r); !errors.Is(err, c.code) {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	if err := d.send(&nats.Msg{Subject: mine, Data: []byte("x")}, &kbroker.TopicPublishReply{}); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("no request: %v, want invalid", err)
	}
	if err := d.send(&nats.Msg{Subject: read, Data: []byte(strings.Repeat(" ", maxTopicRead+1))}, &kbroker.TopicReadReply{}); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("a request to read that is too large: %v, want invalid", err)
	}
	// Nobody would hear of it: nothing is stored.
	body, err := kbroker.TopicPublishRequest{From: "b", Number: 1}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	direct := newDesk(d.Super, d.Super.store.Load())
	for _, reply := range []string{"", subjects.StoredEvent(tenant, "shop", "orders", "x"), subjects.Control("x")} {
		if _, err := direct.topic(t.Context(), &nats.Msg{Subject: mine, Reply: reply, Data: body}); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("the answer is to go to %q: %v, want invalid", reply, err)
		}
	}
	if got, err := d.readTopic(read, kbroker.TopicReadRequest{After: got.Last, Stream: got.Stream}); err != nil || len(got.Events) != 0 {
		t.Errorf("after all that was refused there is %+v (%v)", got, err)
	}
}

// A store that does not answer those who publish keeps neither owners of objects waiting nor
// agents.
func TestTopicsHaveARoomOfTheirOwn(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	wait.Until(t, 10*time.Second, func() error {
		if d.Super.store.Load() == nil {
			return errors.New("the store is not open")
		}
		return nil
	})
	d.stop() // another desk takes the place of its own
	full := newDesk(d.Super, d.Super.store.Load())
	for range maxDesk {
		full.topics <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- full.run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the desk ended: %v", err)
		}
	}()
	wait.Until(t, 10*time.Second, func() error {
		_, err := d.readTopic(subjects.TopicAsk(tenant, "shop", "orders", subjects.VerbTopicRead, webStart), kbroker.TopicReadRequest{})
		if !errors.Is(err, kbroker.Overloaded) {
			return fmt.Errorf("a full room of topics: %w, want overloaded", err)
		}
		return nil
	})
	if _, err := d.ownRead(subjects.Own(tenant, "SHOP", subjects.VerbOwnRead, webStart), kbroker.OwnReadRequest{Match: subjects.MatchAssigns}); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("an owner, beside a full room of topics: %v, want its answer", err)
	}
}
