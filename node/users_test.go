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
				signed, err := open(t, m, now.Add(later)).signUser(u)
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
	for name, u := range map[string]kbroker.User{
		"what has ended":           {Tenant: kbroker.DefaultTenant, Name: "ann", Role: kbroker.UserViewer, Key: newKey(t).Key(), Expires: now.Add(-time.Second)},
		"a key of a wrong sum":     {Tenant: kbroker.DefaultTenant, Name: "ann", Role: kbroker.UserViewer, Key: "UAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
		"a role that is of nobody": {Tenant: kbroker.DefaultTenant, Name: "ann", Role: "boss", Key: newKey(t).Key()},
	} {
		if signed, err := i.signUser(u); err == nil {
			t.Errorf("%s: signed as %s", name, signed)
		}
	}
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
	ask := kbroker.UserRequest{Name: "ann", Role: role, Key: own.Key(), TTL: ttl}
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
	program := newKey(t)
	body, err := json.Marshal(kbroker.DevelopRequest{App: "shop", Service: "web", Instance: "shop-web-dev", Incarnation: "shop-web-dev.1", Key: program.Key()})
	if err != nil {
		t.Fatal(err)
	}
	reply, err := nc.Request(subjects.Core(subjects.VerbDevelop, kbroker.DefaultTenant), body, 3*time.Second)
	if err != nil || reply.Header.Get(subjects.HeaderCode) != "" {
		t.Fatalf("a deployer runs a program: %v, %v", reply, err)
	}
	var signed kbroker.SignReply
	if err := json.Unmarshal(reply.Data, &signed); err != nil {
		t.Fatal(err)
	}
	own, err := credential.Parse([]byte(ann.Credential))
	if err != nil {
		t.Fatal(err)
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
