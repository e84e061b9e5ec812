package broker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestWhoNamesTheKeyOfAnotherIsNotThem: a server shows the key that a client names, or
// whose credential it shows in vain.
func TestWhoNamesTheKeyOfAnotherIsNotThem(t *testing.T) {
	cfg := configOf(t, "c1", true)
	h := start(t, cfg)
	h.awaitReady(30 * time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	viewer := callerNamed(t, "viewer")
	posing, err := nats.Connect("nats://"+cfg.ClientAddr, nats.NoReconnect(), nats.CustomInboxPrefix(subjects.GateInbox),
		nats.Nkey(viewer.key, func([]byte) ([]byte, error) { return []byte("x"), nil }))
	if err == nil {
		t.Cleanup(posing.Close)
	}
	thief := user{viewer.user.jwt, callerNamed(t, "operator").user.key}
	options, err := thief.options()
	if err != nil {
		t.Fatal(err)
	}
	if nc, err := nats.Connect("nats://"+cfg.ClientAddr, append(options, nats.NoReconnect())...); !errors.Is(err, nats.ErrAuthorization) {
		nc.Close()
		t.Fatalf("a credential without its key: %v", err)
	}
	if v, err := h.Who(ctx, viewer.key); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("who was never there is found: %+v, %v", v, err)
	}
	dialAs(t, cfg.ClientAddr, viewer)
	if v, err := h.Who(ctx, viewer.key); err != nil || v.Credential != viewer.user.jwt {
		t.Errorf("the viewer is %+v, %v", v, err)
	}
}

// TestWhoIsAtAnotherCoreIsFound, each time: the founder of two has a witness, whose
// answer is not that of the core.
func TestWhoIsAtAnotherCoreIsFound(t *testing.T) {
	a := start(t, configOf(t, "a", true))
	a.awaitReady(30 * time.Second)
	b := start(t, configOf(t, "b", false, a.cfg))
	b.awaitReady(30 * time.Second)
	wait.Until(t, 10*time.Second, func() error {
		if m := b.Members(); !m.Current["a"] || !m.Current["b"] || !m.Witness {
			return fmt.Errorf("members %+v, want a, b and the witness", m)
		}
		return nil
	})
	viewer := callerNamed(t, "viewer")
	dialAs(t, a.cfg.ClientAddr, viewer)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for n := range 300 {
		if v, err := b.Who(ctx, viewer.key); err != nil || v.Credential != viewer.user.jwt {
			t.Fatalf("question %d: the viewer is %+v, %v", n, v, err)
		}
	}
	if v, err := b.Who(ctx, callerNamed(t, "operator").key); !errors.Is(err, kbroker.NotFound) || ctx.Err() != nil {
		t.Errorf("who was never there is found: %+v, %v", v, err)
	}
}

// TestWaitsForWhoMayKnow: who is found is told without waiting for them.
func TestWaitsForWhoMayKnow(t *testing.T) {
	found := Visit{Since: time.Now()}
	for _, tc := range []struct {
		a     awaited
		found Visit
		want  bool
	}{
		{awaited{}, Visit{}, false},
		{awaited{"a": true}, Visit{}, true},
		{awaited{"a": true, "b": false}, found, true},
		{awaited{"b": false}, found, false},
		{awaited{"b": false}, Visit{}, true},
	} {
		if got := tc.a.matter(tc.found); got != tc.want {
			t.Errorf("%v with %v: %t, want %t", tc.a, tc.found.Since, got, tc.want)
		}
	}
}

// TestWhoShowsNoCredentialHasLittle: a few subscriptions, and small messages.
func TestWhoShowsNoCredentialHasLittle(t *testing.T) {
	cfg := configOf(t, "c1", true)
	start(t, cfg).awaitReady(30 * time.Second)
	refused := make(chan error, 100)
	nc, err := nats.Connect("nats://"+cfg.ClientAddr, nats.NoReconnect(), nats.CustomInboxPrefix(subjects.GateInbox),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	for range 20 {
		if _, err := nc.SubscribeSync(subjects.GateInbox + ".x"); err != nil {
			t.Fatal(err)
		}
	}
	_ = nc.Flush()
	select {
	case <-refused:
	case <-time.After(5 * time.Second):
		t.Error("20 subscriptions are taken")
	}
	if max := nc.MaxPayload(); max > 64<<10 {
		t.Errorf("messages may have %d bytes", max)
	}
}
