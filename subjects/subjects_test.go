package subjects_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// name draws what kbroker.CheckName allows.
func name[T ~string](t *rapid.T, what string) T {
	s := rapid.OneOf(
		rapid.StringMatching(`[a-z]([a-z0-9-]{0,10}[a-z0-9])?`),
		rapid.SampledFrom([]string{"app", "place", "host", "head", "kb", "svc", "v1", "lease", "super", "status"}),
	).Draw(t, what)
	if err := kbroker.CheckName(what, s); err != nil {
		t.Fatalf("the test draws a name that is none: %v", err)
	}
	return T(s)
}

func TestKeysComeBackFromParseKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenant, app, host := name[kbroker.TenantID](t, "tenant"), name[kbroker.AppName](t, "app"), name[kbroker.HostID](t, "host")
		instance := kbroker.InstanceID(string(app) + "-" + string(name[kbroker.ServiceName](t, "service")) + "-7")
		user := name[kbroker.UserName](t, "user")
		version := rapid.IntRange(1, 1<<31).Draw(t, "version")
		for key, want := range map[string]subjects.Key{
			subjects.KeySuperLease:                        {Table: subjects.LeaseTable},
			subjects.KeyApp(tenant, app):                  {Table: subjects.AppTable, Tenant: tenant, App: app},
			subjects.KeyVersion(tenant, app, version):     {Table: subjects.VersionTable, Tenant: tenant, App: app, Version: version},
			subjects.KeyPlacement(host, tenant, instance): {Table: subjects.PlacementTable, Host: host, Tenant: tenant, Instance: instance},
			subjects.KeyHead(host):                        {Table: subjects.HeadTable, Host: host},
			subjects.KeyHost(host):                        {Table: subjects.HostTable, Host: host},
			subjects.KeyDemand(tenant, app):               {Table: subjects.DemandTable, Tenant: tenant, App: app},
			subjects.KeyToken("a2b3c4d5e6f7"):             {Table: subjects.TokenTable, Token: "a2b3c4d5e6f7"},
			subjects.KeyUser(tenant, user):                {Table: subjects.UserTable, Tenant: tenant, Name: user},
			subjects.KeyNonce(host):                       {Table: subjects.NonceTable, Host: host},
			subjects.KeyCanary(host):                      {Table: subjects.CanaryTable, Host: host},
			subjects.KeyStatus(host, tenant, instance):    {Table: subjects.StatusTable, Host: host, Tenant: tenant, Instance: instance},
			subjects.KeyReport(host):                      {Table: subjects.ReportTable, Host: host},
		} {
			if got := subjects.ParseKey(key); got != want {
				t.Fatalf("ParseKey(%q) = %+v, want %+v", key, got, want)
			}
		}
	})
}

func TestParseKeyDoesNotGuess(t *testing.T) {
	for _, key := range []string{
		"", ".", "lease", "lease.other", "lease.super.x", "app", "app.t", "app..a", "app.t.a.", "app.t.a.3", "app.t.a.v", "app.t.a.v0",
		"app.t.a.v01", "app.t.a.v-1", "app.t.a.v1.x", "app.t.a.v99999999999999999999", "place.h.t", "place.h.t.i.x", "head", "head.h.x",
		"host.", "demand.t", "unknown.h", "status.h", "report.h.x", "token", "token.", "token.a.b", "user", "user.t", "user.t.", "user.t.u.x",
	} {
		if got := subjects.ParseKey(key); got != (subjects.Key{}) {
			t.Errorf("ParseKey(%q) = %+v, want UnknownTable", key, got)
		}
	}
}

// A parsed key is the key: no two spellings of one record.
func FuzzParseKey(f *testing.F) {
	for _, key := range []string{"lease.super", "app.t.a", "app.t.a.v12", "place.h.t.i", "head.h", "demand.t.a", "status.h.t.i", "report.h", "nonce.h", "canary.h", "host.h", "token.a2", "user.t.u"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		k := subjects.ParseKey(key)
		var again string
		switch k.Table {
		case subjects.UnknownTable:
			return
		case subjects.LeaseTable:
			again = subjects.KeySuperLease
		case subjects.AppTable:
			again = subjects.KeyApp(k.Tenant, k.App)
		case subjects.VersionTable:
			again = subjects.KeyVersion(k.Tenant, k.App, k.Version)
		case subjects.PlacementTable:
			again = subjects.KeyPlacement(k.Host, k.Tenant, k.Instance)
		case subjects.HeadTable:
			again = subjects.KeyHead(k.Host)
		case subjects.HostTable:
			again = subjects.KeyHost(k.Host)
		case subjects.DemandTable:
			again = subjects.KeyDemand(k.Tenant, k.App)
		case subjects.TokenTable:
			again = subjects.KeyToken(k.Token)
		case subjects.UserTable:
			again = subjects.KeyUser(k.Tenant, k.Name)
		case subjects.NonceTable:
			again = subjects.KeyNonce(k.Host)
		case subjects.CanaryTable:
			again = subjects.KeyCanary(k.Host)
		case subjects.StatusTable:
			again = subjects.KeyStatus(k.Host, k.Tenant, k.Instance)
		case subjects.ReportTable:
			again = subjects.KeyReport(k.Host)
		}
		if again != key {
			t.Fatalf("ParseKey(%q) = %+v, which is %q", key, k, again)
		}
	})
}

func TestKeysComeBackFromBothSidesOfTheirStream(t *testing.T) {
	for _, key := range []string{subjects.KeySuperLease, subjects.KeyApp("default", "bank"), subjects.KeyHead("h1")} {
		for _, s := range []string{subjects.Control(key), subjects.Changed(key)} {
			if got, ok := subjects.ControlKey(s); !ok || got != key {
				t.Errorf("ControlKey(%q) = %q, %t, want %q", s, got, ok, key)
			}
		}
	}
	key := subjects.KeyStatus("h1", "default", "bank-ledger-1")
	if got, ok := subjects.StatusKey(subjects.Status(key)); !ok || got != key {
		t.Errorf("StatusKey(%q) = %q, %t, want %q", subjects.Status(key), got, ok, key)
	}
	for _, s := range []string{"", "kb.changed.", "$KV.kbroker.", "kb.beat.h1", subjects.Status(key)} {
		if got, ok := subjects.ControlKey(s); ok {
			t.Errorf("ControlKey(%q) = %q, want none", s, got)
		}
	}
	if got, ok := subjects.StatusKey(subjects.Control("head.h1")); ok {
		t.Errorf("a key of the control store is taken for the status key %q", got)
	}
}

func TestRequestsComeBackFromTheirSubjects(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		verb, tenant, host := name[string](t, "verb"), name[kbroker.TenantID](t, "tenant"), name[kbroker.HostID](t, "host")
		for _, s := range []string{subjects.Super(verb, tenant, "UKEY"), subjects.Core(verb, tenant)} {
			if v, n, ok := subjects.ParseAPI(s); !ok || v != verb || n != tenant {
				t.Fatalf("ParseAPI(%q) = %q, %q, %t, want %q, %q", s, v, n, ok, verb, tenant)
			}
		}
		for _, s := range []string{subjects.View(host), subjects.Report(host), subjects.Heartbeat(host), subjects.Figures(host)} {
			if h, ok := subjects.HostOf(s); !ok || h != host {
				t.Fatalf("HostOf(%q) = %q, %t, want %q", s, h, ok, host)
			}
		}
	})
	for _, s := range []string{"", "kb.super", "kb.super.deploy", "kb.super..default", "kb.super.deploy.", "kb.super.deploy.default", "kb.super.deploy.default.", "kb.super.deploy.default.k.x", "kb.join.x", "kb.core.ps.default.x", "kb.view.h1", "xx.core.ps.default"} {
		if v, n, ok := subjects.ParseAPI(s); ok {
			t.Errorf("ParseAPI(%q) = %q, %q, want none", s, v, n)
		}
	}
	for _, s := range []string{"", "kb.view", "kb.view.", "kb.view.h.x", "xx.view.h"} {
		if h, ok := subjects.HostOf(s); ok {
			t.Errorf("HostOf(%q) = %q, want none", s, h)
		}
	}
}

// matches is NATS's rule: * is one token, > one or more at the end.
func matches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range p {
		switch {
		case token == ">":
			return i == len(p)-1 && len(s) > i
		case i >= len(s) || token != "*" && token != s[i]:
			return false
		}
	}
	return len(p) == len(s)
}

// Each kind of message reaches those who subscribe to its kind, and nobody
// else, whatever the names are.
func TestSubscriptionsAreApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		verb, tenant, host := name[string](t, "verb"), name[kbroker.TenantID](t, "tenant"), name[kbroker.HostID](t, "host")
		app, service := name[kbroker.AppName](t, "app"), name[kbroker.ServiceName](t, "service")
		instance := kbroker.InstanceID(string(app) + "-" + string(service) + "-1")
		start := kbroker.Incarnation(instance + ".00")
		state := subjects.KeyState(kbroker.Object{Kind: "account", ID: "alice"})
		_, owned := subjects.Ownership(tenant, app)
		_, objects := subjects.Objects(tenant, app, 1)
		_, prefix, _ := subjects.StoredAt(tenant, app, 4, state)
		stateSubject := prefix + state
		_, events := subjects.TopicStream(tenant, app)
		subscriptions := map[string]string{ // subject: who gets it
			subjects.Super(verb, tenant, "UKEY"):                       subjects.SuperAll(),
			subjects.Join:                                              subjects.Join,
			subjects.Core(verb, tenant):                                subjects.CoreAll(),
			subjects.View(host):                                        subjects.AllViews,
			subjects.Report(host):                                      subjects.AllReports,
			subjects.Heartbeat(host):                                   subjects.AllHeartbeats,
			subjects.Figures(host):                                     subjects.AllFigures,
			subjects.Heard:                                             subjects.Heard,
			subjects.Control(subjects.KeyHead(host)):                   subjects.ControlAll,
			subjects.Changed(subjects.KeyHead(host)):                   subjects.ControlChanged,
			subjects.Status(subjects.KeyReport(host)):                  subjects.StatusAll,
			subjects.AllocatorLease(tenant, app):                       owned,
			subjects.Control(subjects.KeySuperLease):                   subjects.ControlAll,
			subjects.Status(subjects.KeyStatus(host, tenant, "i")):     subjects.StatusAll,
			subjects.Method(app, service, "greet"):                     subjects.Method(app, service, "greet"),
			subjects.Host(host, verb, tenant):                          subjects.Host(host, verb, "*"),
			subjects.Upload(host, tenant, "s1"):                        subjects.Upload(host, "*", "*"),
			subjects.Ping(tenant, kbroker.Incarnation(instance+".00")): subjects.Ping(tenant, kbroker.Incarnation(instance+".00")),
			subjects.Pong(tenant, host, "q"):                           subjects.Pong("*", host, "*"),
			subjects.Event(tenant, app, instance):                      subjects.EventAll,
			subjects.Lease(tenant, app):                                subjects.AllLeases,
			subjects.Demand(tenant, app):                               subjects.AllDemands,
			subjects.Endpoints(tenant, app, service):                   subjects.AllEndpoints,
			subjects.Own(tenant, app, verb, start):                     subjects.AllOwn,
			subjects.Owned(tenant, app, subjects.KeyOwnershipHead):     subjects.AllOwned(tenant),
			subjects.Reaped(tenant, app):                               subjects.Reaped(tenant, app),
			subjects.Load(tenant, app, start):                          subjects.LoadOf(tenant, app) + "*.*",
			subjects.TopicAsk(tenant, app, "orders", verb, start):      subjects.AllTopicAsks,
			subjects.StoredEvent(tenant, app, "orders", "x"):           events,
			subjects.Topic(app, "orders"):                              subjects.Topic(app, "orders"),
			stateSubject:                                               objects,
			subjects.ObjectMethod(app, 3, "account", "deposit"):        subjects.ShardMethods(app, 3),
		}
		for subject, own := range subscriptions {
			for _, pattern := range subscriptions {
				if got, want := matches(pattern, subject), pattern == own; got != want {
					t.Fatalf("subject %q matches subscription %q: %t, want %t", subject, pattern, got, want)
				}
			}
		}
	})
}

func TestPlacementsOfAHostMatchOnlyItsOwn(t *testing.T) {
	all := subjects.KeyPlacements("h1")
	for key, want := range map[string]bool{
		subjects.KeyPlacement("h1", "default", "a-b-1"):  true,
		subjects.KeyPlacement("h11", "default", "a-b-1"): false,
		subjects.KeyStatus("h1", "default", "a-b-1"):     false,
		subjects.KeyHead("h1"):                           false,
	} {
		if got := matches(all, key); got != want {
			t.Errorf("%q matches %q: %t, want %t", all, key, got, want)
		}
	}
}

func TestLeasesComeBackFromParseLease(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenant, app := name[kbroker.TenantID](t, "tenant"), name[kbroker.AppName](t, "app")
		if gotTenant, gotApp, ok := subjects.ParseLease(subjects.Lease(tenant, app)); !ok || gotTenant != tenant || gotApp != app {
			t.Fatalf("ParseLease(%q) = %q, %q, %t", subjects.Lease(tenant, app), gotTenant, gotApp, ok)
		}
		for _, other := range []string{subjects.Demand(tenant, app), subjects.Lease(tenant, ""), subjects.Lease("", app), subjects.Lease(tenant, app) + ".x", subjects.AllocatorLease(tenant, app)} {
			if gotTenant, gotApp, ok := subjects.ParseLease(other); ok {
				t.Fatalf("ParseLease(%q) = %q, %q, want no lease", other, gotTenant, gotApp)
			}
		}
	})
}

// Names of streams and buckets have no separator of their own in them, so that
// two tenants never share one.
func TestStreamNamesAreApart(t *testing.T) {
	seen := map[string]string{}
	for _, tenant := range []kbroker.TenantID{"a", "a-b", "b"} {
		for _, app := range []kbroker.AppName{"c", "b-c", "a-c"} {
			stream, all := subjects.Ownership(tenant, app)
			who := string(tenant) + "/" + string(app)
			if other := seen[stream]; other != "" {
				t.Errorf("%s and %s share the stream %s", who, other, stream)
			}
			if strings.ContainsAny(stream, ". *>/\\") {
				t.Errorf("%q is not a stream name", stream)
			}
			if lease := subjects.AllocatorLease(tenant, app); !matches(all, lease) {
				t.Errorf("the lease %q is not in the stream of %q", lease, all)
			}
			if lease := subjects.AllocatorLease(tenant, app); !subjects.IsAllocatorLease(lease) || subjects.IsAllocatorLease(lease+".x") || subjects.IsAllocatorLease(all) {
				t.Errorf("the lease %q is not told from other subjects", lease)
			}
			seen[stream] = who
			for n := range 16 {
				stream, all := subjects.Objects(tenant, app, n)
				if other := seen[stream] + seen[all]; other != "" || strings.ContainsAny(stream, ". *>/\\") {
					t.Errorf("the stream %s of %s is that of %q, or no name of a stream", stream, who, other)
				}
				seen[stream], seen[all] = who, who
			}
		}
		if stream := subjects.Artifacts(tenant); strings.ContainsAny(stream, ". *>/\\") || seen[stream] != "" {
			t.Errorf("%q is not a stream name of its own", stream)
		}
	}
}

func TestArtifactsAreInTheStreamOfTheirTenant(t *testing.T) {
	meta, chunk := subjects.ArtifactMeta("a", "e3b0"), subjects.ArtifactChunk("a", "u1", 12)
	for subject, patterns := range map[string]map[string]bool{
		meta:                                   {subjects.ArtifactAll("a"): true, subjects.ArtifactAll("b"): false, subjects.ArtifactChunks("a", "u1"): false},
		chunk:                                  {subjects.ArtifactAll("a"): true, subjects.ArtifactAll("b"): false, subjects.ArtifactChunks("a", "u1"): true},
		subjects.ArtifactChunk("a", "u11", 12): {subjects.ArtifactChunks("a", "u1"): false},
	} {
		for pattern, want := range patterns {
			if got := matches(pattern, subject); got != want {
				t.Errorf("subject %q is in %q: %t, want %t", subject, pattern, got, want)
			}
		}
	}
}

func TestMicroNamesAreApart(t *testing.T) {
	one, other := subjects.MicroName("a-b", "c"), subjects.MicroName("a", "b-c")
	if one == other {
		t.Errorf("two services share the name %q", one)
	}
	if id := subjects.MicroID("bank-ledger-1.0123456789abcdef"); id != "bank-ledger-1_0123456789abcdef" {
		t.Errorf("the id is %q, want one token", id)
	}
}

// A method name that passes is one token of the subject, whatever it is.
func FuzzCheckMethod(f *testing.F) {
	for _, m := range []string{"greet", "", "a.b", "*", ">", "a b", strings.Repeat("x", 65), "ü", "a\x00"} {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, method string) {
		if err := subjects.CheckMethod(method); err != nil {
			if kbroker.AsError(err).Code != kbroker.Invalid || kbroker.AsError(err).Hint == "" {
				t.Fatalf("error %v is not an invalid one with a hint", err)
			}
			return
		}
		s := subjects.Method("bank", "ledger", method)
		if !matches("svc.bank.ledger.*", s) || strings.ContainsAny(method, " \t\r\n*>") || method == "" {
			t.Fatalf("method %q makes the subject %q", method, s)
		}
	})
}

func TestAnInboxHasAnOwner(t *testing.T) {
	for inbox, want := range map[string]string{
		subjects.Inbox("UABC") + ".x": "UABC", subjects.Inbox("UABC") + ".x.1": "UABC",
		subjects.Inbox("UABC"): "", "_INBOX..x": "", subjects.GateInbox + ".UABC.x": "", "kb.super.x.default": "", "": "",
	} {
		if got, ok := subjects.InboxOwner(inbox); got != want || ok != (want != "") {
			t.Errorf("%q is that of %q, %t; want %q", inbox, got, ok, want)
		}
	}
}
