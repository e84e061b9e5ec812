package broker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/grants"
)

// outsider makes a user with a credential of a role, by its public key.
func outsider(t *testing.T) (user, string) {
	t.Helper()
	u, err := newUser(func(key string) (string, error) {
		return testGrants.Sign(grants.User{Role: grants.Core, Name: "outsider", Key: key}, time.Now())
	})
	if err != nil {
		t.Fatal(err)
	}
	public, err := u.key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return u, public
}

// JetStream's API has no responders for a moment when somebody is taken out: ask does
// not say so to those who ask. When the first count stays 0, the server has learned to
// replace its imports at once, and ask need not repeat any more.
func TestARevocationTurnsNoQuestionAway(t *testing.T) {
	b := start(t, configOf(t, "c1", true))
	b.awaitReady(30 * time.Second)
	nc, err := b.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var turnedAway, asked atomic.Int64
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	for range 4 {
		asking.Go(func() {
			for ctx.Err() == nil {
				if _, err := nc.Request(server.JSApiAccountInfo, nil, time.Second); errors.Is(err, nats.ErrNoResponders) {
					turnedAway.Add(1)
				}
			}
		})
		asking.Go(func() {
			for ctx.Err() == nil {
				var r server.JSApiAccountInfoResponse
				attempt, done := context.WithTimeout(ctx, 5*time.Second)
				err := ask(attempt, nc, server.JSApiAccountInfo, nil, &r)
				done()
				if err != nil && ctx.Err() == nil {
					t.Errorf("a question while somebody was taken out: %v", err)
					return
				}
				asked.Add(1)
			}
		})
	}
	out := map[string]time.Time{}
	for until := time.Now().Add(30 * time.Second); turnedAway.Load() < 5; {
		if time.Now().After(until) {
			t.Fatalf("of %d questions, %d revocations turned %d away, want 5", asked.Load(), len(out), turnedAway.Load())
		}
		_, public := outsider(t)
		out[public] = time.Now().Add(time.Hour)
		if err := b.Revoke(out); err != nil {
			t.Fatal(err)
		}
	}
	if asked.Load() == 0 {
		t.Error("nothing was asked")
	}
}

// TestARevocationHoldsOnBothServers of a founder, for who is there, and for who comes.
func TestARevocationHoldsOnBothServers(t *testing.T) {
	b := start(t, configOf(t, "c1", true))
	b.awaitReady(30 * time.Second)
	thief, public := outsider(t)
	servers := map[string]*server.Server{"core": b.core, "witness": b.witnessServer()}
	closed := map[string]<-chan nats.Status{}
	for name, s := range servers {
		nc, err := thief.connect(s, nats.NoReconnect())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Cleanup(nc.Close)
		closed[name] = nc.StatusChanged(nats.CLOSED)
	}
	if err := b.Revoke(map[string]time.Time{public: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for name, s := range servers {
		select {
		case <-closed[name]:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: who was taken out is still connected", name)
		}
		if nc, err := thief.connect(s, nats.NoReconnect()); err == nil {
			nc.Close()
			t.Errorf("%s: who was taken out is let in again", name)
		}
	}
}
