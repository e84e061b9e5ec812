package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
)

// signFor is what a core signs for a key.
func signFor(key string, life time.Duration) string {
	account, err := nkeys.CreateAccount()
	if err != nil {
		panic(err)
	}
	claims := jwt.NewUserClaims(key)
	claims.Expires = time.Now().Add(life).Unix()
	signed, err := claims.Encode(account)
	if err != nil {
		panic(err)
	}
	return signed
}

// withCredential makes a file of a credential that holds for a life from now on.
func withCredential(t *testing.T, life time.Duration) (path string, own credential.Credential) {
	t.Helper()
	own, err := credential.New()
	if err != nil {
		t.Fatal(err)
	}
	own = own.Signed(signFor(own.Key(), life))
	path = filepath.Join(t.TempDir(), "home", "own.creds")
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), own.Save(path)); err != nil {
		t.Fatal(err)
	}
	return path, own
}

// dialWith is a caller that shows the credential of a file, on all servers of a cluster.
func dialWith(t *testing.T, c *natstest.Cluster, file string) *Client {
	t.Helper()
	client, err := Dial(t.Context(), func(o *options) {
		o.log = slog.New(slog.DiscardHandler)
		o.find = func(string) (connect.Target, error) {
			target := connect.Target{Tenant: kbroker.DefaultTenant, Source: "test", CredentialFile: file}
			for i := range c.Size() {
				target.Servers = append(target.Servers, c.URL(i))
			}
			return target, nil
		}
	})
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(client.Close)
	return client
}

func subscribe(t *testing.T, nc *nats.Conn, subject string, handle nats.MsgHandler) {
	t.Helper()
	if _, err := nc.Subscribe(subject, handle); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestALameDuckIsLeftWhileARenewalWaits for a core that does not answer.
func TestALameDuckIsLeftWhileARenewalWaits(t *testing.T) {
	c := natstest.StartCluster(t, 2)
	meshed(t, c)
	path, own := withCredential(t, 2*time.Second)
	asked := make(chan struct{}, 100)
	for i := range c.Size() {
		subscribe(t, c.Connect(t, i), "kb.renew."+own.Key(), func(*nats.Msg) { asked <- struct{}{} })
	}
	client := dialWith(t, c, path)
	<-asked
	began, was := time.Now(), client.server()
	c.LameDuck(t, map[string]int{"n1": 0, "n2": 1}[was])
	wait.Until(t, patience, func() error {
		if got := client.server(); got == was || got == "" {
			return fmt.Errorf("is on %q", got)
		}
		return nil
	})
	if took := time.Since(began); took > renewWithin { // a server takes a second of it to say so
		t.Errorf("it was left %v after the question: only when that was given up", took)
	}
}

// TestWhatMayWaitYieldsToALameDuck: a move that hangs is given up, and whoever shuts down is
// still looked at.
func TestWhatMayWaitYieldsToALameDuck(t *testing.T) {
	m := &mover{due: make(chan struct{}, 1)}
	m.yielding(t.Context(), func(way context.Context) {
		m.events().told()
		select {
		case <-way.Done():
		case <-time.After(patience):
			t.Error("it is not given up")
		}
	})
	select {
	case <-m.due:
	default:
		t.Error("nobody looks who shuts down")
	}
	m.yielding(t.Context(), func(way context.Context) {
		if way.Err() != nil {
			t.Error("it is given up for nobody")
		}
	})
	if len(m.due) > 0 {
		t.Error("somebody is said to shut down")
	}
}

// TestARenewedCredentialIsUsedThoughNotWritten: the disk is full. It is written once that
// can be done.
func TestARenewedCredentialIsUsedThoughNotWritten(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 2)
	meshed(t, c)
	path, own := withCredential(t, 2*time.Second)
	renewed := signFor(own.Key(), 20*time.Second)
	subscribe(t, c.Connect(t, 0), "kb.renew."+own.Key(), func(m *nats.Msg) {
		b, err := json.Marshal(kbroker.SignReply{Credential: renewed})
		if err == nil {
			err = m.Respond(b)
		}
		if err != nil {
			t.Error(err)
		}
	})
	client := dialWith(t, c, path)
	l := client.nats().link.Load()
	if got := l.held().JWT(); got != own.JWT() {
		t.Fatalf("the first connection was made with %.9q, want what is in the file", got)
	}
	aside := filepath.Dir(path) + ".aside"
	if err := os.Rename(filepath.Dir(path), aside); err != nil { // stands for a disk that takes nothing
		t.Fatal(err)
	}
	wait.Until(t, patience, func() error {
		if now := client.nats().link.Load(); now == l || now.held().JWT() != renewed {
			return errors.New("no connection was made with the renewed one")
		}
		return nil
	})
	if err := os.Rename(aside, filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, patience, func() error {
		there, err := credential.Load(path)
		if err == nil && there.JWT() != renewed {
			err = errors.New("it is not written")
		}
		return err
	})
}

// TestAConnectionIsOfWhatItHasShown, not of what is in the file by then: one that the agent
// has renewed meanwhile is moved to.
func TestAConnectionIsOfWhatItHasShown(t *testing.T) {
	c := natstest.StartCluster(t, 2)
	meshed(t, c)
	path, own := withCredential(t, 20*time.Second)
	client := dialWith(t, c, path)
	first := client.nats().link.Load()
	later := own.Signed(signFor(own.Key(), 40*time.Second))
	if err := later.Save(path); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, patience, func() error {
		if now := client.nats().link.Load(); now == first || now.held().JWT() != later.JWT() {
			return errors.New("no connection was made with what the agent has had renewed")
		}
		return nil
	})
	if first.held().JWT() != own.JWT() {
		t.Error("the first connection is said to be made with what came later")
	}
}

// TestNobodyAsksInALoop whatever is left, nor too late.
func TestNobodyAsksInALoop(t *testing.T) {
	path, _ := withCredential(t, time.Hour)
	for _, tc := range []struct {
		name     string
		age      time.Duration
		min, max time.Duration
	}{
		{"new", 0, lookMax, lookMax},
		{"nearly half", 30*time.Minute - 10*time.Second, 8 * time.Second, 12 * time.Second},
		{"over", 2 * time.Hour, lookMin, lookMin},
	} {
		at := time.Now().Add(-tc.age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		k, err := credential.Keep(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := lookIn(k.Now(), renewPart); got < tc.min || got > tc.max {
			t.Errorf("%s: looked at again in %v, want %v to %v", tc.name, got, tc.min, tc.max)
		}
		if got := askAgain(k.Now()); got < moveAgain || got > lookMax+moveAgain {
			t.Errorf("%s: asked again after %v", tc.name, got)
		}
	}
}
