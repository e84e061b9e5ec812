package node

import (
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/subjects"
)

// The server does not ask whether who publishes may also publish to the subject that it
// wants its answer on; who answers may, when it is a core, publish everywhere. So where
// an answer goes is for cores to look at.
func TestACoreAnswersToInboxesOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "h1")
	start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1"})
	m := awaitLeader(t, dir)
	core, err := m.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(core.Close)
	tenant := string(kbroker.DefaultTenant)
	for _, c := range []struct {
		role    grants.Role
		tag     string
		value   string
		subject string
	}{
		{grants.Gate, "", "", subjects.Join},
		{grants.Worker, grants.TagHost, "w1", subjects.View("w1")},
		{grants.Worker, grants.TagHost, "w1", subjects.Sign("w1")},
		{grants.Allocator, grants.TagTenant, tenant, subjects.Lease(kbroker.DefaultTenant, "shop")},
		{grants.Allocator, grants.TagTenant, tenant, subjects.Own(kbroker.DefaultTenant, "shop", subjects.VerbOwnWrite, "shop-allocator-1.a")},
		{grants.Allocator, grants.TagTenant, tenant, subjects.Own(kbroker.DefaultTenant, "shop", subjects.VerbOwnRead, "shop-allocator-1.a")},
		{grants.Viewer, grants.TagTenant, tenant, subjects.Endpoints(kbroker.DefaultTenant, "shop", "web")},
		{grants.Viewer, grants.TagTenant, tenant, subjects.Core(subjects.VerbHosts, kbroker.DefaultTenant)},
		{grants.Viewer, grants.TagTenant, tenant, subjects.Host("h1", subjects.VerbCheckup, kbroker.DefaultTenant)},
		{grants.Viewer, grants.TagTenant, tenant, subjects.Host("h1", subjects.VerbLogs, kbroker.DefaultTenant)},
	} {
		t.Run(string(c.role)+" asks "+c.subject, func(t *testing.T) {
			tags := map[string][]string{c.tag: {c.value}}
			if c.role == grants.Allocator {
				tags[grants.TagHost], tags[grants.TagApp], tags[grants.TagService] = []string{"h1"}, []string{"shop"}, []string{"allocator"}
				tags[grants.TagInstance], tags[grants.TagIncarnation] = []string{"shop-allocator-1"}, []string{"shop-allocator-1.a"}
			}
			nc := dialAs(t, m, c.role, tags)
			key := "x" + nats.NewInbox()[len("_INBOX."):]
			if err := nc.PublishRequest(c.subject, subjects.Control(key), []byte("{}")); err != nil {
				t.Fatal(err)
			}
			if _, err := nc.Request(c.subject, []byte("{}"), 5*time.Second); err != nil { // a refusal is an answer
				t.Fatalf("ask and hear: %v", err)
			}
			reply, err := core.Request(subjects.LeaderRead(subjects.ControlStream), []byte(`{"last_by_subj":"`+subjects.Control(key)+`"}`), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			var found struct {
				Message *struct{ Data []byte } `json:"message"`
			}
			if err := json.Unmarshal(reply.Data, &found); err != nil {
				t.Fatal(err)
			}
			if found.Message != nil {
				t.Errorf("a core wrote its answer, %.120q, into the control store, for %s who may not", found.Message.Data, c.role)
			}
		})
	}
}

// dialAs connects to a core with a credential of a role.
func dialAs(t *testing.T, m *membership, role grants.Role, tags map[string][]string) *nats.Conn {
	t.Helper()
	target, err := m.target()
	if err != nil {
		t.Fatal(err)
	}
	target.Credential, target.CredentialFile = "", ""
	inbox := nats.CustomInboxPrefix(subjects.GateInbox)
	if role != grants.Gate {
		if target.Credential, err = m.sign(grants.User{Role: role, Name: string(role), Tags: tags}); err != nil {
			t.Fatal(err)
		}
		c, err := credential.Parse([]byte(target.Credential))
		if err != nil {
			t.Fatal(err)
		}
		inbox = nats.CustomInboxPrefix(subjects.Inbox(c.Key()))
	}
	secure, err := target.Secure()
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(url(m.Client), append(secure, inbox, nats.NoReconnect())...)
	if err != nil {
		t.Fatalf("connect as %s: %v", role, err)
	}
	t.Cleanup(nc.Close)
	return nc
}
