package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func newKey(t *testing.T) credential.Credential {
	t.Helper()
	own, err := credential.New()
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// TestAUserIsSignedForAsOnRecord: name, role, and the end to the second; also later.
func TestAUserIsSignedForAsOnRecord(t *testing.T) {
	m := newHost(t, "kb-a", "h1")
	m.Founded = true
	now := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	for _, role := range kbroker.UserRoles {
		for _, life := range []time.Duration{0, time.Hour} {
			own := newKey(t)
			u := kbroker.User{Tenant: kbroker.DefaultTenant, Name: "ann", Role: role, Key: own.Key(), Created: now.Truncate(time.Second)}
			if life > 0 {
				u.Expires = u.Created.Add(life)
			}
			for _, later := range []time.Duration{0, 10*time.Minute + 900*time.Millisecond} {
				signed, err := open(t, m, now.Add(later)).signUser(u, userRequest(t, own, u))
				if err != nil {
					t.Fatal(err)
				}
				c := own.Signed(signed)
				if _, until := c.Holds(); c.Name() != "ann" || c.Role() != string(role) || !until.Equal(u.Expires) && !(until.IsZero() && u.Expires.IsZero()) {
					t.Errorf("%s: signed for %s, a %s, until %v; want ann until %v", role, c.Name(), c.Role(), until, u.Expires)
				}
				claims, err := jwt.DecodeUserClaims(signed)
				if err != nil || claims.Subject != own.Key() || len(claims.Permissions.Pub.Allow) > 0 {
					t.Errorf("%s: claims are %+v, %v", role, claims, err)
				}
			}
		}
	}
	i := open(t, m, now)
	own := newKey(t)
	for name, u := range map[string]kbroker.User{
		"what has ended":           {Tenant: kbroker.DefaultTenant, Name: "ann", Role: kbroker.UserViewer, Key: own.Key(), Expires: now.Add(-time.Second)},
		"a key of a wrong sum":     {Tenant: kbroker.DefaultTenant, Name: "ann", Role: kbroker.UserViewer, Key: "UAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
		"a role that is of nobody": {Tenant: kbroker.DefaultTenant, Name: "ann", Role: "boss", Key: own.Key()},
	} {
		if signed, err := i.signUser(u, userRequest(t, own, u)); err == nil {
			t.Errorf("%s: signed as %s", name, signed)
		}
	}
}

// userRequest asks for a user, with the proof of a key.
func userRequest(t *testing.T, own credential.Credential, u kbroker.User) kbroker.UserRequest {
	t.Helper()
	r := kbroker.UserRequest{Tenant: u.Tenant, Name: u.Name, Role: u.Role, Key: u.Key}
	r.Proof = mustProve(t, own, r.Claim())
	return r
}

func mustProve(t *testing.T, own credential.Credential, claim kbroker.Claim) []byte {
	t.Helper()
	proof, err := own.Prove(claim)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

// asks sends a request to a core that leads, on a connection of its own.
func asks(m *membership, subject string, in, out any) error {
	nc, err := m.dial()
	if err != nil {
		return err
	}
	defer nc.Close()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	reply, err := nc.Request(subject, body, 3*time.Second)
	if err != nil {
		return err
	}
	if reply.Header.Get(subjects.HeaderCode) != "" {
		e := new(kbroker.Error)
		return errors.Join(json.Unmarshal(reply.Data, e), e)
	}
	return json.Unmarshal(reply.Data, out)
}

// userOn makes a user on a core that leads, as one connects.
func userOn(m *membership, role kbroker.UserRole, ttl time.Duration) (connect.Target, error) {
	own, err := credential.New()
	if err != nil {
		return connect.Target{}, err
	}
	var reply kbroker.UserReply
	ask := kbroker.UserRequest{Tenant: kbroker.DefaultTenant, Name: "ann", Role: role, Key: own.Key(), TTL: ttl}
	if ask.Proof, err = own.Prove(ask.Claim()); err != nil {
		return connect.Target{}, err
	}
	if err := asks(m, subjects.Super(subjects.VerbUser, kbroker.DefaultTenant, subjects.NoKey), ask, &reply); err != nil {
		return connect.Target{}, err
	}
	roots, err := m.roots()
	if err != nil {
		return connect.Target{}, err
	}
	b, err := own.Signed(reply.Credential).Encode()
	return connect.Target{Servers: m.servers(), Tenant: kbroker.DefaultTenant, CA: roots, Credential: string(b), Source: "this test"}, err
}

// TestAUserIsInUntilRevoked, and back with another key.
func TestAUserIsInUntilRevoked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "h1")
	start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1"})
	m := awaitLeader(t, dir)
	create := func() (connect.Target, error) { return userOn(m, kbroker.UserViewer, 0) }
	var ann connect.Target
	wait.Until(t, 20*time.Second, func() (err error) { ann, err = create(); return err })
	nc, err := ann.Connect(t.Context(), "ann", nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if _, err := nc.Request(subjects.Core(subjects.VerbHosts, kbroker.DefaultTenant), []byte("{}"), 3*time.Second); err != nil {
		t.Fatalf("a viewer asks for the hosts: %v", err)
	}
	if err := asks(m, subjects.Super(subjects.VerbUserRevoke, kbroker.DefaultTenant, subjects.NoKey), kbroker.RevokeUserRequest{Name: "ann"}, new(kbroker.RevokeUserReply)); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 5*time.Second, func() error {
		if !nc.IsClosed() {
			return fmt.Errorf("the connection is %s", nc.Status())
		}
		return nil
	})
	again, err := ann.Connect(t.Context(), "ann")
	if err == nil {
		again.Close()
	}
	if !errors.Is(err, kbroker.Refused) {
		t.Errorf("with what was taken back: %v, want refused", err)
	}
	back, err := create()
	if err != nil {
		t.Fatal(err)
	}
	nc, err = back.Connect(t.Context(), "ann")
	if err != nil {
		t.Fatalf("with another key: %v", err)
	}
	nc.Close()
}

// TestAProgramOfWhoIsRevokedIsNotRenewed: what a deployer runs beside the cluster has the
// credential of an instance, which holds no longer than theirs.
func TestAProgramOfWhoIsRevokedIsNotRenewed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "h1")
	start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1"})
	m := awaitLeader(t, dir)
	var ann connect.Target
	wait.Until(t, 20*time.Second, func() (err error) { ann, err = userOn(m, kbroker.UserDeployer, 30*time.Minute); return err })
	nc, err := ann.Connect(t.Context(), "ann", nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	own, err := credential.Parse([]byte(ann.Credential))
	if err != nil {
		t.Fatal(err)
	}
	// develop has the answer come where somebody can hear it.
	develop := func(program credential.Credential, reply string) {
		t.Helper()
		body, err := json.Marshal(programRequest(t, program, own.JWT()))
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.PublishRequest(subjects.Core(subjects.VerbDevelop, kbroker.DefaultTenant), reply, body); err != nil {
			t.Fatal(err)
		}
	}
	program := newKey(t)
	var signed kbroker.SignReply
	if err := heardOn(t, nc, own, func(inbox string) { develop(program, inbox) }, &signed); err != nil {
		t.Fatalf("a deployer runs a program: %v", err)
	}
	running := ann
	b, err := program.Signed(signed.Credential).Encode()
	if err != nil {
		t.Fatal(err)
	}
	running.Credential = string(b)
	pc, err := running.Connect(t.Context(), "program", nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pc.Close)
	err = heardOn(t, pc, program, func(inbox string) { develop(newKey(t), inbox) }, new(kbroker.SignReply))
	if !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == "" {
		t.Errorf("a program of theirs asks in their place: %v, want refused with a hint", err)
	}
	_, end := own.Holds()
	renew := func() error {
		return asks(m, subjects.Renew(program.Key()), kbroker.RenewRequest(signed), &signed)
	}
	if err := renew(); err != nil {
		t.Fatalf("while the deployer is in: %v", err)
	}
	if _, until := program.Signed(signed.Credential).Holds(); until.IsZero() || until.After(end) {
		t.Errorf("the program's holds until %v, its deployer's until %v", until, end)
	}
	if err := asks(m, subjects.Super(subjects.VerbUserRevoke, kbroker.DefaultTenant, subjects.NoKey), kbroker.RevokeUserRequest{Name: "ann"}, new(kbroker.RevokeUserReply)); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 5*time.Second, func() error {
		if err := renew(); !errors.Is(err, kbroker.Refused) {
			return fmt.Errorf("renewed: %v, want refused", err)
		}
		return nil
	})
}

// programRequest asks for a program beside the cluster, with what a deployer shows.
func programRequest(t *testing.T, own credential.Credential, shown string) kbroker.DevelopRequest {
	t.Helper()
	r := kbroker.DevelopRequest{
		Tenant: kbroker.DefaultTenant, App: "shop", Service: "web", Instance: "shop-web-dev", Incarnation: "shop-web-dev.1",
		Key: own.Key(), Credential: shown,
	}
	r.Proof = mustProve(t, own, r.Claim())
	return r
}

// heardOn has something asked for, and hears the answer in an inbox of who has a key.
func heardOn(t *testing.T, nc *nats.Conn, own credential.Credential, ask func(inbox string), out any) error {
	t.Helper()
	inbox := own.Inbox() + ".answer"
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	ask(inbox)
	reply, err := sub.NextMsg(3 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Header.Get(subjects.HeaderCode) != "" {
		e := new(kbroker.Error)
		return errors.Join(json.Unmarshal(reply.Data, e), e)
	}
	return json.Unmarshal(reply.Data, out)
}
