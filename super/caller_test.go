package super

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestCallerOf(t *testing.T) {
	// As nats-server writes it for an import of a service: who sends a request can, too.
	const forged = `{"acc":"ATENANT","host":"10.0.0.9","user":"UANN","issuer_key":"AADMIN","name_tag":"ann","tags":["tenant:default","host:w9"]}`
	for _, tc := range []struct {
		name, subject, body string
		want                kbroker.Caller
	}{
		{"who writes", subjects.Super(subjects.VerbMaintain, tenant, "UANN"), `{"host":"h2"}`, kbroker.Caller{Key: "UANN", Tenant: "default"}},
		{"who writes without a key", subjects.Super(subjects.VerbMaintain, tenant, subjects.NoKey), `{"host":"h2"}`, kbroker.Caller{Name: controlName}},
		{"who reads", subjects.Core(subjects.VerbAudit, tenant), "", kbroker.Caller{Name: controlName}},
		{"an allocator", subjects.Demand(tenant, "shop"), "{}", kbroker.Caller{Name: "allocator of shop", Tenant: "default", App: "shop"}},
		{"an instance", subjects.Own(tenant, "shop", subjects.VerbOwnWrite, "shop-web-1.a"), "", kbroker.Caller{Instance: "shop-web-1", Tenant: "default", App: "shop"}},
		{"who joins", subjects.Join, `{"host":"w9"}`, kbroker.Caller{Host: "w9"}},
		{"who joins as no host", subjects.Join, `{"host":"W 9"}`, kbroker.Caller{}},
		{"an agent that speaks for another", subjects.Report("w1"), `{"host":"w2"}`, kbroker.Caller{Host: "w1"}},
	} {
		for _, header := range []nats.Header{nil, {"Nats-Request-Info": {forged}}} {
			m := &nats.Msg{Subject: tc.subject, Data: []byte(tc.body), Header: header}
			if got := callerOf(m); got != tc.want {
				t.Errorf("%s, with the header %v: %+v, want %+v", tc.name, header, got, tc.want)
			}
		}
	}
}

// TestObjectOf: of what might be a whole token nothing is told.
func TestObjectOf(t *testing.T) {
	const token = "kb1.abcdefghijkl.secret"
	for _, tc := range []struct{ subject, body, want string }{
		{subjects.Super(subjects.VerbScale, tenant, subjects.NoKey), `{"app":"shop","count":3}`, "app shop"},
		{subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), `{"app":{"name":"shop"}}`, "app shop"},
		{subjects.Demand(tenant, "shop"), `{"demand":{"app":"shop"}}`, "app shop"},
		{subjects.Super(subjects.VerbDrain, tenant, subjects.NoKey), `{"host":"h2"}`, "host h2"},
		{subjects.Super(subjects.VerbRevoke, tenant, subjects.NoKey), `{"id":"abcdefghijkl"}`, "token abcdefghijkl"},
		{subjects.Super(subjects.VerbRevoke, tenant, subjects.NoKey), `{"id":"` + token + `"}`, ""},
		{subjects.Super(subjects.VerbToken, tenant, subjects.NoKey), `{"id":"abcdefghijkl","name":"h2"}`, "token abcdefghijkl"},
		{subjects.Join, `{"host":"w1","token":{"id":"abcdefghijkl","secret":"eA=="}}`, "token abcdefghijkl"},
		{subjects.Join, `{"host":"w1","token":{"id":"` + token + `"}}`, "host w1"},
		{subjects.Report("w1"), `{"host":"w2"}`, "host w1"},
		{subjects.Own(tenant, "shop", subjects.VerbOwnWrite, "shop-web-1.a"), "x", "app shop"},
		{subjects.Super(subjects.VerbScale, tenant, subjects.NoKey), `x`, ""},
	} {
		if got := objectOf(&nats.Msg{Subject: tc.subject, Data: []byte(tc.body)}); got != tc.want {
			t.Errorf("%s %s: %q, want %q", tc.subject, tc.body, got, tc.want)
		}
	}
}

func TestWhose(t *testing.T) {
	now, asked := time.Hour, 0
	ann := kbroker.Caller{Name: "ann", Role: "admin", Key: "UANN", Tenant: "default", Address: "10.0.0.9"}
	missed := 1 // questions that find ann between two lists of a server
	w := &whose{clock: func() time.Duration { return now }, ask: func(_ context.Context, key string) (kbroker.Caller, error) {
		if asked++; key != "UANN" || missed > 0 {
			missed--
			return kbroker.Caller{}, kbroker.Errorf(kbroker.NotFound, "nobody has it")
		}
		return ann, nil
	}}
	for _, tc := range []struct {
		name     string
		of, want kbroker.Caller
		asked    int // so far
	}{
		{"a key", kbroker.Caller{Key: "UANN", Tenant: "default"}, ann, 2},
		{"again", kbroker.Caller{Key: "UANN", Tenant: "default"}, ann, 2},
		{"a key that nobody has", kbroker.Caller{Key: "UX"}, kbroker.Caller{Key: "UX"}, 4},
		{"again", kbroker.Caller{Key: "UX"}, kbroker.Caller{Key: "UX"}, 4},
		{"who is known", kbroker.Caller{Key: "UY", Name: "bob"}, kbroker.Caller{Key: "UY", Name: "bob"}, 4},
		{"a host", kbroker.Caller{Host: "w1"}, kbroker.Caller{Host: "w1"}, 4},
	} {
		if got := w.fill(t.Context(), tc.of); got != tc.want || asked != tc.asked {
			t.Errorf("%s: %+v after %d questions, want %+v after %d", tc.name, got, asked, tc.want, tc.asked)
		}
	}
	if now += nobodyFor; w.fill(t.Context(), kbroker.Caller{Key: "UX"}) != (kbroker.Caller{Key: "UX"}) || asked != 6 {
		t.Errorf("%d questions, want that who was not known is asked for soon", asked)
	}
	if now += whoFor; w.fill(t.Context(), kbroker.Caller{Key: "UANN"}) != ann || asked != 7 {
		t.Errorf("%d questions, want another one a while later", asked)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel() // nobody is asked again
	for n := range 3 * maxWho {
		w.fill(over, kbroker.Caller{Key: fmt.Sprint(n)})
	}
	if len(w.known) > maxWho {
		t.Errorf("%d answers are remembered, want %d at most", len(w.known), maxWho)
	}
	if got := (&whose{}).fill(t.Context(), kbroker.Caller{Key: "UANN"}); got != (kbroker.Caller{Key: "UANN"}) {
		t.Errorf("where nobody can say: %+v", got)
	}
}
