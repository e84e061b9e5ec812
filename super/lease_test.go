package super

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

func TestTheLeaseOfAnApp(t *testing.T) {
	d := startSuper(t)
	wait.Until(t, 10*time.Second, func() error {
		store := d.Super.store.Load()
		if store == nil {
			return errors.New("the store is not open")
		}
		return store.EnsureApp(t.Context(), state.AppKey{Tenant: tenant, App: "shop"})
	})
	subject := subjects.Lease(tenant, "shop")
	var seeded kbroker.LeaseReply
	wait.Until(t, 10*time.Second, func() error { return d.ask(subject, kbroker.LeaseRequest{}, &seeded) })
	if seeded.Sequence == 0 || seeded.Lease == nil || !seeded.Lease.Released {
		t.Fatalf("the lease of a new app is %+v, want it released", seeded)
	}
	mine := kbroker.LeaseRequest{Write: &kbroker.AllocatorLease{Holder: "shop-allocator-1.a", Epoch: 1}, Expected: seeded.Sequence}
	with := func(change func(*kbroker.AllocatorLease)) kbroker.LeaseRequest {
		l := *mine.Write
		change(&l)
		return kbroker.LeaseRequest{Write: &l, Expected: mine.Expected}
	}
	for name, c := range map[string]struct {
		subject string
		request any
		code    kbroker.Code
	}{
		"another app's holder":        {subject, with(func(l *kbroker.AllocatorLease) { l.Holder = "bank-allocator-1.a" }), kbroker.Invalid},
		"a request that is too large": {subject, map[string]any{"write": mine.Write, "expected": mine.Expected, "more": strings.Repeat("x", maxLeaseRequest)}, kbroker.Invalid},
		"no request":                  {subject, "x", kbroker.Invalid},
		"another tenant":              {subjects.Lease("other", "shop"), mine, kbroker.NotFound},
		"a name that is none":         {subjects.Lease(tenant, "SHOP"), mine, kbroker.Invalid},
		"an app without a lease":      {subjects.Lease(tenant, "bank"), kbroker.LeaseRequest{}, kbroker.Unavailable},
		"another sequence":            {subject, kbroker.LeaseRequest{Write: mine.Write, Expected: mine.Expected + 1}, kbroker.Conflict},
	} {
		if err := d.ask(c.subject, c.request, &kbroker.LeaseReply{}); !errors.Is(err, c.code) {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	// Nobody would hear of it: nothing is written.
	body, err := json.Marshal(mine)
	if err != nil {
		t.Fatal(err)
	}
	direct := newDesk(d.Super, d.Super.store.Load())
	for _, reply := range []string{"", subjects.Control("x")} {
		if _, err := direct.lease(t.Context(), &nats.Msg{Subject: subject, Reply: reply, Data: body}); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("the answer is to go to %q: %v, want invalid", reply, err)
		}
	}
	var got kbroker.LeaseReply
	if err := d.ask(subject, mine, &got); err != nil || got.Sequence <= seeded.Sequence {
		t.Fatalf("after all that was refused the lease is taken at %+v: %v; want a sequence above %d", got, err, seeded.Sequence)
	}
	if err := d.ask(subject, kbroker.LeaseRequest{}, &got); err != nil || got.Lease == nil || *got.Lease != *mine.Write {
		t.Fatalf("the lease is %+v (%v), want %+v", got.Lease, err, *mine.Write)
	}
}
