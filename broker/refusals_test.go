package broker

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/wait"
)

func TestParseRefused(t *testing.T) {
	const user = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
	// As a client has it that calls itself
	// `x" - Publish Violation - Subject "kb.super.deploy.default`.
	const named = `10.0.0.9:4711 - cid:7 - "v1:go:x\" - Publish Violation - Subject \"kb.super.deploy.default" - "kbroker/jwt:UA" - `
	for _, tc := range []struct {
		format string
		v      []any
		want   refused
	}{
		{`10.0.0.9:4711 - cid:7 - Publish Violation - Subject %q`, []any{[]byte("kb.x")}, refused{address: "10.0.0.9", cid: 7, action: "publish", object: "subject kb.x"}},
		{named + `Publish Violation - Subject %q`, []any{[]byte("kb.y")}, refused{address: "10.0.0.9", cid: 7, action: "publish", object: "subject kb.y"}},
		{named + `Publish Violation - Reply %q`, []any{[]byte("kb.y")}, refused{address: "10.0.0.9", cid: 7, action: "publish", object: "subject kb.y"}},
		{named + `Subscription Violation - Subject "a\"b", Queue: "q", SID 1`, nil, refused{address: "10.0.0.9", cid: 7, action: "subscribe", object: `subject a"b`}},
		{named + `Subscription Violation Too Many Tokens - Subject "a.b", SID Subject "x"`, nil, refused{address: "10.0.0.9", cid: 7, action: "subscribe", object: "subject a.b"}},
		{`[::1]:4711 - cid:8 - %v - %s`, []any{server.ErrAuthentication, fmt.Sprintf("JWT User %q", user)}, refused{address: "::1", action: "connect", object: "clients", key: user}},
		{`10.0.0.9:4711 - cid:8 - ` + server.ErrAuthentication.Error(), nil, refused{address: "10.0.0.9", action: "connect", object: "clients"}},
		{`10.0.0.9:4711 - cid:8 - TLS handshake error: %v%s`, []any{errors.New("EOF"), ""}, refused{address: "10.0.0.9", action: "connect", object: "clients"}},
		{`10.0.0.9:4711 - rid:8 - TLS %s handshake error: %v%s`, []any{"route", errors.New("not of this cluster"), ""}, refused{address: "10.0.0.9", action: "connect", object: "routes"}},
	} {
		got, ok := parseRefused(tc.format, tc.v)
		if got.message == "" {
			t.Errorf("%s: it does not say why", tc.format)
		}
		got.message = ""
		if !ok || got != tc.want {
			t.Errorf("%s: %+v, %t; want %+v", tc.format, got, ok, tc.want)
		}
	}
	for _, format := range []string{
		named + "Processing close", "Publish Violation - Subject %q", `Error trying to connect to route (attempt %d): refused`,
		named + "Error flushing: %v", "", `10.0.0.9:4711 - cid:7 - %v - %s`,
	} {
		if got, ok := parseRefused(format, nil); ok {
			t.Errorf("%s: %+v, want that it is none", format, got)
		}
	}
}

func TestRefusalsAreBounded(t *testing.T) {
	var s refusals
	for i := range 10_000 {
		s.note(fmt.Sprintf(`10.0.%d.%d:4711 - cid:7 - TLS handshake error: %%v%%s`, i/250, i%250), []any{errors.New("EOF"), ""})
	}
	for range 10_000 {
		s.note(`10.0.0.1:4711 - cid:7 - TLS handshake error: %v%s`, []any{errors.New("EOF"), ""})
	}
	groups, dropped := s.take()
	all := dropped
	for _, g := range groups {
		all += g.count
	}
	if len(groups) != maxRefused || all != 20_000 {
		t.Errorf("%d groups of %d refusals, want %d of 20000", len(groups), all, maxRefused)
	}
	if groups, dropped = s.take(); len(groups) != 0 || dropped != 0 {
		t.Errorf("taken twice: %d, %d", len(groups), dropped)
	}
}

// TestWhoIsRefusedIsTold: by what the server knows of them, and not by what they say.
func TestWhoIsRefusedIsTold(t *testing.T) {
	var mu sync.Mutex
	told := map[string]kbroker.AuditRecord{}
	cfg := configOf(t, "c1", true)
	cfg.Refused = func(r kbroker.AuditRecord, more int) {
		mu.Lock()
		defer mu.Unlock()
		r.Count += told[r.Action].Count + more
		told[r.Action] = r
	}
	h := start(t, cfg)
	h.awaitReady(30 * time.Second)
	want := func(action string, count int, who kbroker.Caller, object string) {
		t.Helper()
		wait.Until(t, 5*time.Second, func() error {
			mu.Lock()
			defer mu.Unlock()
			r := told[action]
			if r.Count != count || r.Actor != who || r.Object != object || r.Code != kbroker.Refused || r.Time.IsZero() || r.By != "broker c1" {
				return fmt.Errorf("%s: told is %+v, want %d of %+v about %s", action, r, count, who, object)
			}
			return nil
		})
	}
	viewer := signed(t, "ann", grants.Viewer, map[string][]string{grants.TagTenant: {"default"}})
	ann := kbroker.Caller{Name: "ann", Role: "viewer", Key: viewer.key, Tenant: "default", Address: "127.0.0.1"}
	c := dialRaw(t, cfg.ClientAddr, viewer)
	for range 3 {
		c.flush("PUB kb.super.deploy.default 0\r\n\r\n")
	}
	want(actionPublish, 3, ann, "subject kb.super.deploy.default")
	c.flush("SUB $KV.kbroker.> 1\r\n")
	want(actionSubscribe, 1, ann, "subject $KV.kbroker.>")

	// Who is not let in is known by where they come from.
	other, err := grants.New(grants.NewSecret())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := newUser(func(key string) (string, error) {
		return other.Sign(grants.User{Role: grants.Admin, Name: "eve", Key: key, Tags: map[string][]string{grants.TagTenant: {"default"}}}, time.Now())
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = nats.Connect("nats://"+cfg.ClientAddr, nats.UserJWT(func() (string, error) { return stranger.jwt, nil }, stranger.key.Sign))
	if !errors.Is(err, nats.ErrAuthorization) {
		t.Fatalf("the stranger: %v, want that it is refused", err)
	}
	want(actionConnect, 1, kbroker.Caller{Address: "127.0.0.1"}, "clients")
}
