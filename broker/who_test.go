package broker

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
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
