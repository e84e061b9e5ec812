package node

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// A start of an instance, by its credential, writes its own lease and its app's objects;
// nothing of another start, of another app, or of its allocator.
func TestACredentialOwnsAsItself(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "h1")
	start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1"})
	m := awaitLeader(t, dir)
	core, err := m.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(core.Close)
	store, err := state.Open(t.Context(), state.Config{Conn: core, Host: "h1", Process: "test", Times: state.Tuned})
	if err != nil {
		t.Fatal(err)
	}
	for _, app := range []kbroker.AppName{"shop", "bank"} {
		k := state.AppKey{Tenant: kbroker.DefaultTenant, App: app}
		if err := errors.Join(store.EnsureApp(t.Context(), k), store.EnsureObjects(t.Context(), k, 1)); err != nil {
			t.Fatal(err)
		}
		// As super would have it; nothing of it runs.
		record, err := json.Marshal(kbroker.AppRecord{Tenant: k.Tenant, App: app, Version: 1, Latest: 1, Stopped: true, ObjectStreams: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := core.Request(subjects.Control(subjects.KeyApp(k.Tenant, app)), record, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	const me, other = kbroker.Incarnation("shop-web-1.a"), kbroker.Incarnation("shop-web-2.b")
	nc := dialAs(t, m, grants.Instance, map[string][]string{
		grants.TagTenant: {"default"}, grants.TagHost: {"h1"}, grants.TagApp: {"shop"}, grants.TagService: {"web"},
		grants.TagInstance: {"shop-web-1"}, grants.TagIncarnation: {string(me)}, grants.TagCall: {"shop.*"}, grants.TagObjects: {"shop"}, grants.TagTopic: {"shop.*"},
	})
	heard, err := nc.SubscribeSync(subjects.OwnedOf(kbroker.DefaultTenant, "shop") + ">")
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	own := func(app kbroker.AppName, i kbroker.Incarnation) string {
		return subjects.Own(kbroker.DefaultTenant, app, subjects.VerbOwnWrite, i)
	}
	answered := 5 * time.Second
	write := func(subject, key string) error {
		body, err := kbroker.OwnWriteRequest{Writes: []kbroker.Write{{Key: key, Value: []byte("x")}}}.MarshalBinary()
		if err != nil {
			return err
		}
		reply, err := nc.Request(subject, body, answered)
		if err == nil && reply.Header.Get(subjects.HeaderCode) != "" {
			e := &kbroker.Error{}
			err = errors.Join(json.Unmarshal(reply.Data, e), e)
		}
		return err
	}
	alice := kbroker.Object{Kind: "account", ID: "alice"}
	wait.Until(t, 10*time.Second, func() error { return write(own("shop", me), subjects.KeyState(alice)) })
	if err := write(own("shop", me), subjects.KeyLease(me)); err != nil {
		t.Fatalf("its own lease: %v", err)
	}
	for name, c := range map[string]struct {
		subject, key string
		want         error
	}{
		"the lease of another":        {own("shop", me), subjects.KeyLease(other), kbroker.Refused},
		"an assignment":               {own("shop", me), subjects.KeyAssign(1), kbroker.Refused},
		"as another":                  {own("shop", other), subjects.KeyLease(other), nats.ErrTimeout}, // its server sends it nowhere
		"as its allocator":            {own("shop", "shop-allocator-1.a"), subjects.KeyAllocatorLease, nats.ErrTimeout},
		"an object of another app":    {own("bank", me), subjects.KeyState(alice), nats.ErrTimeout},
		"an object, without a core":   {"obj.default.shop.0." + subjects.KeyOut(alice, 1), "x", nats.ErrTimeout},
		"its own lease, without one":  {"own.default.shop." + subjects.KeyLease(me), "x", nats.ErrTimeout},
		"an object that exists":       {own("shop", me), subjects.KeyState(alice), kbroker.Conflict},
		"its own lease a second time": {own("shop", me), subjects.KeyLease(me), kbroker.Conflict},
		"what is republished, forged": {subjects.Owned(kbroker.DefaultTenant, "shop", subjects.KeyAssign(1)), "x", nats.ErrTimeout},
	} {
		if answered = 5 * time.Second; errors.Is(c.want, nats.ErrTimeout) {
			answered = 100 * time.Millisecond // an answer comes sooner; what was written all the same is found below
		}
		if err := write(c.subject, c.key); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if m, err := heard.NextMsg(5 * time.Second); err != nil || m.Subject != subjects.Owned(kbroker.DefaultTenant, "shop", subjects.KeyLease(me)) {
		t.Fatalf("heard %+v (%v), want the own lease", m, err)
	}
	if m, err := heard.NextMsg(50 * time.Millisecond); err == nil {
		t.Errorf("of all that was refused %s is %q", m.Subject, m.Data)
	}
	for _, app := range []kbroker.AppName{"shop", "bank"} {
		reply, err := store.OwnRead(t.Context(), state.AppKey{Tenant: kbroker.DefaultTenant, App: app}, 1, kbroker.OwnReadRequest{Keys: []string{subjects.KeyState(alice), subjects.KeyOut(alice, 1)}})
		if err != nil || reply.Records[0].Exists() != (app == "shop") || reply.Records[1].Revision != 0 {
			t.Errorf("the objects of %s are %+v (%v)", app, reply.Records, err)
		}
	}
}

// An allocator hears from cores which starts of its app have ended, when the agent of a
// host says so; nobody else does, and no application says it.
func TestAnAllocatorHearsWhichStartsHaveEnded(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "h1")
	start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1"})
	m := awaitLeader(t, dir)
	tags := func(app kbroker.AppName, service kbroker.ServiceName) map[string][]string {
		instance := string(app) + "-" + string(service) + "-1"
		return map[string][]string{
			grants.TagTenant: {"default"}, grants.TagHost: {"h1"}, grants.TagApp: {string(app)}, grants.TagService: {string(service)},
			grants.TagInstance: {instance}, grants.TagIncarnation: {instance + ".a"}, grants.TagCall: {"shop.*"}, grants.TagObjects: {"shop"}, grants.TagTopic: {"shop.*"},
		}
	}
	subject := subjects.Reaped(kbroker.DefaultTenant, "shop")
	listen := func(role grants.Role, app kbroker.AppName, service kbroker.ServiceName) (*nats.Conn, *nats.Subscription) {
		nc := dialAs(t, m, role, tags(app, service))
		sub, err := nc.SubscribeSync(subject)
		if err == nil {
			err = nc.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		return nc, sub
	}
	_, hears := listen(grants.Allocator, "shop", kbroker.AllocatorService)
	web, no := listen(grants.Instance, "shop", "web")
	_, nor := listen(grants.Allocator, "bank", kbroker.AllocatorService)
	if err := errors.Join(web.Publish(subject, []byte("forged")), web.Flush()); err != nil {
		t.Fatal(err)
	}
	signed, err := m.sign(grants.User{Role: grants.Instance, Name: "over", Tags: tags("shop", "web")})
	if err != nil {
		t.Fatal(err)
	}
	over, err := credential.Parse([]byte(signed))
	if err != nil {
		t.Fatal(err)
	}
	core, err := m.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(core.Close)
	report, err := json.Marshal(kbroker.ReportRequest{Host: "h1", Process: "test", Number: 1 << 20, Ended: []string{over.JWT()}})
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 10*time.Second, func() error {
		_, err := core.Request(subjects.Report("h1"), report, time.Second)
		return err
	})
	if m, err := hears.NextMsg(5 * time.Second); err != nil || string(m.Data) != `{"incarnations":["shop-web-1.a"]}` {
		t.Fatalf("the allocator hears %+v (%v), want which start has ended", m, err)
	}
	for who, sub := range map[string]*nats.Subscription{"an instance": no, "another app's allocator": nor} {
		if m, err := sub.NextMsg(50 * time.Millisecond); err == nil {
			t.Errorf("%s hears %q", who, m.Data)
		}
	}
}
