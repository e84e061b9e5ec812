package node

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// A start of an instance, by its credential, has events of its own app stored, and reads
// those of its app and of the topics that its spec names; nothing of others, nor as another.
func TestACredentialHasEventsStoredAsItself(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "h1")
	start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1"})
	m := awaitLeader(t, dir)
	core, err := m.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(core.Close)
	for _, app := range []kbroker.AppName{"shop", "bank"} {
		// As super would have it; nothing of it runs.
		for key, record := range map[string]any{
			subjects.KeyVersion(kbroker.DefaultTenant, app, 1): kbroker.AppVersion{Tenant: kbroker.DefaultTenant, Version: 1, App: kbroker.App{Name: app}},
			subjects.KeyApp(kbroker.DefaultTenant, app):        kbroker.AppRecord{Tenant: kbroker.DefaultTenant, App: app, Version: 1, Latest: 1, Stopped: true},
		} {
			body, err := json.Marshal(record)
			if err == nil {
				_, err = core.Request(subjects.Control(key), body, 5*time.Second)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	const me, other = kbroker.Incarnation("shop-web-1.a"), kbroker.Incarnation("shop-web-2.b")
	as := func(app, topic string, i kbroker.Incarnation) *nats.Conn {
		return dialAs(t, m, grants.Instance, map[string][]string{
			grants.TagTenant: {"default"}, grants.TagHost: {"h1"}, grants.TagApp: {app}, grants.TagService: {"web"},
			grants.TagInstance: {app + "-web-1"}, grants.TagIncarnation: {string(i)}, grants.TagCall: {app + ".*"}, grants.TagObjects: {app}, grants.TagTopic: {app + ".*", topic},
		})
	}
	shop, bank := as("shop", "bank.paid", me), as("bank", "shop.orders", "bank-web-1.c")
	answered := 5 * time.Second
	publish := func(nc *nats.Conn, app kbroker.AppName, topic string, i kbroker.Incarnation) error {
		body, err := kbroker.TopicPublishRequest{From: "a", Number: 1, Event: []byte("x")}.MarshalBinary()
		if err != nil {
			return err
		}
		reply, err := nc.Request(subjects.TopicAsk(kbroker.DefaultTenant, app, topic, subjects.VerbTopicPublish, i), body, answered)
		if err == nil && reply.Header.Get(subjects.HeaderCode) != "" {
			e := &kbroker.Error{}
			err = errors.Join(json.Unmarshal(reply.Data, e), e)
		}
		return err
	}
	read := func(nc *nats.Conn, app kbroker.AppName, topic string, i kbroker.Incarnation) (r kbroker.TopicReadReply, err error) {
		reply, err := nc.Request(subjects.TopicAsk(kbroker.DefaultTenant, app, topic, subjects.VerbTopicRead, i), []byte("{}"), answered)
		if err != nil {
			return r, err
		}
		return r, r.UnmarshalBinary(reply.Data)
	}
	wait.Until(t, 10*time.Second, func() error { return publish(shop, "shop", "orders", me) })
	for name, nc := range map[string]*nats.Conn{"its own app": shop, "an app that subscribes": bank} {
		i := me
		if nc == bank {
			i = "bank-web-1.c"
		}
		if got, err := read(nc, "shop", "orders", i); err != nil || len(got.Events) != 1 || string(got.Events[0].Data) != "x" {
			t.Errorf("%s reads %+v (%v)", name, got, err)
		}
	}
	if got, err := read(shop, "bank", "paid", me); err != nil || len(got.Events) != 0 {
		t.Errorf("of a topic of another app without events is read %+v (%v)", got, err)
	}
	answered = 100 * time.Millisecond // for who is not heard
	for name, err := range map[string]error{
		"an event of another app":      publish(shop, "bank", "paid", me),
		"an event as another start":    publish(shop, "shop", "orders", other),
		"to read what it does not say": errorOf(read(shop, "bank", "lost", me)),
		"to read as another start":     errorOf(read(shop, "shop", "orders", other)),
		"to publish what it may read":  publish(bank, "shop", "orders", "bank-web-1.c"),
	} {
		if !errors.Is(err, nats.ErrTimeout) { // its server sends it nowhere
			t.Errorf("%s: %v, want that nobody hears it", name, err)
		}
	}
	// Past a core there is no way into the stream.
	if reply, err := shop.Request(subjects.StoredEvent(kbroker.DefaultTenant, "shop", "orders", "a"), []byte("x"), answered); err == nil {
		t.Errorf("an event is taken past a core: %q", reply.Data)
	}
	answered = 5 * time.Second
	if got, err := read(shop, "shop", "orders", me); err != nil || len(got.Events) != 1 {
		t.Errorf("after all that was refused is read %+v (%v)", got, err)
	}
}

func errorOf[T any](_ T, err error) error { return err }
