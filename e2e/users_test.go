package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/subjects"
)

// refusedWithin is when a command that its user may not give has ended: long before it
// would give up waiting for an answer.
const refusedWithin = 3 * time.Second

// user makes one, and returns the context file.
func (c *cluster) user(name, role string) (file string) {
	c.t.Helper()
	file = filepath.Join(c.t.TempDir(), name+".json")
	c.must("user", "create", name, "--role", role, "--out", file)
	return file
}

// TestUsers of each role give each command: those that they may not give are refused at
// once. Who is revoked is out on each core, connected or not.
func TestUsers(t *testing.T) {
	needLong(t)
	c := up(t, 2, "--demo")
	c.waitReady(20*time.Second, "hello", "hello", 3, nil)
	files := map[string]string{}
	for _, role := range kbroker.UserRoles {
		files[string(role)] = c.user("a-"+string(role), string(role))
	}
	c.giveCommands(files)
	c.exported(files["viewer"])
	c.revokeViewer(files["viewer"])
	if rows, err := list[kbroker.UserRow](c, "user", "ls", "--all"); err != nil || len(rows) != len(files) || rows[3].State != kbroker.UserRevoked {
		t.Errorf("users are %s, %v; want a-viewer revoked", show(rows), err)
	}
	c.user("a-viewer", "deployer") // the name is free, with another key
}

// giveCommands has each role give each command. What is named in them is not there, so
// that who may give one hears that, or changes nothing that counts.
func (c *cluster) giveCommands(files map[string]string) {
	c.t.Helper()
	spec := filepath.Join(c.t.TempDir(), "app.yaml")
	if err := os.WriteFile(spec, []byte("name: tool\nservices:\n  tool:\n    run: tool\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(spec), "tool"), []byte("#!/bin/sh\nexit 3\n"), 0o700); err != nil {
		c.t.Fatal(err)
	}
	roles := []string{"viewer", "deployer", "operator", "admin"}
	for _, cmd := range []struct {
		least   string // of the roles that may
		command string
		may     string // what the others may not
	}{
		{"viewer", "ps", ""},
		{"viewer", "apps", ""},
		{"viewer", "hosts", ""},
		{"viewer", "status", ""},
		{"viewer", "events", ""},
		{"viewer", "why hello", ""},
		{"viewer", "history hello", ""},
		{"viewer", "logs hello", ""},
		{"viewer", "plan " + spec, ""},
		{"viewer", "doctor", ""},
		{"deployer", "deploy --detach " + spec, "may not deploy"},
		{"deployer", "scale tool 1 --detach", "may not scale"},
		{"deployer", "stop tool --detach", "may not stop apps"},
		{"deployer", "restart none --detach", "may not restart instances"},
		{"deployer", "rollback none --detach", "may not roll back"},
		{"deployer", "call hello greet name=Ann", "does not allow calls of hello/hello"},
		{"operator", "drain none --detach", "may not drain hosts"},
		{"operator", "undrain none", "may not drain hosts"},
		{"operator", "remove none", "may not remove hosts"},
		{"operator", "exec none true", "may not run commands inside instances"},
		{"operator", "signal none HUP", "may not signal instances"},
		{"admin", "token ls", "may not see the tokens"},
		{"admin", "token create --role worker", "may not let hosts in"},
		{"admin", "token revoke aaaaaaaaaaaa", "may not revoke tokens"},
		{"admin", "user ls", "may not see the users"},
		{"admin", "user revoke none", "may not revoke users"},
		{"admin", "user create b-<role> --role admin --out " + filepath.Join(filepath.Dir(spec), "b-<role>.json"), "may not let users in"},
	} {
		for i, role := range roles {
			args := append(strings.Fields(strings.ReplaceAll(cmd.command, "<role>", role)), "--context", files[role])
			began := time.Now()
			out, code := c.try(args...)
			took := time.Since(began)
			switch allowed := i >= slices.Index(roles, cmd.least); {
			case allowed && (code == 4 || strings.Contains(out, "may not") || strings.Contains(out, "not allow")):
				c.t.Errorf("%s: kbroker %s: exit code %d, it may\n%s", role, cmd.command, code, out)
			case allowed:
			case code != 4 || !strings.Contains(out, cmd.may) || !strings.Contains(out, "hint: ") || !strings.Contains(out, role) && !strings.Contains(cmd.may, "calls"):
				c.t.Errorf("%s: kbroker %s: exit code %d, want 4, that it %s, and a hint\n%s", role, cmd.command, code, cmd.may, out)
			case took > refusedWithin:
				c.t.Errorf("%s: kbroker %s: refused after %v, want at once", role, cmd.command, took)
			}
		}
	}
	for _, role := range roles[:3] { // nobody raises themselves, and nothing is left of it
		if _, err := os.Stat(filepath.Join(filepath.Dir(spec), "b-"+role+".json")); !os.IsNotExist(err) {
			c.t.Errorf("%s, who may not make users, has a file of one: %v", role, err)
		}
	}
	c.must("user", "revoke", "b-admin")
	files["b"] = filepath.Join(filepath.Dir(spec), "b-admin.json")
}

// exported uses the cluster with what the nats CLI is given of a user's context.
func (c *cluster) exported(file string) {
	c.t.Helper()
	config := c.t.TempDir()
	c.t.Setenv("XDG_CONFIG_HOME", config)
	c.must("context", "add", "vic", "--from", file)
	c.must("context", "export", "vic")
	nc := c.natsCLI(config, "vic")
	defer nc.Close()
	reply, err := nc.Request(subjects.Core(subjects.VerbHosts, kbroker.DefaultTenant), []byte("{}"), 5*time.Second)
	if err != nil || !strings.Contains(string(reply.Data), `"h2"`) {
		c.t.Errorf("a NATS client with the exported context is answered %v, %v; want the hosts", reply, err)
	}
}

// revokeViewer takes the credential of a-viewer back, who is connected to each core.
func (c *cluster) revokeViewer(file string) {
	c.t.Helper()
	vic, err := client.Find(file)
	if err != nil {
		c.t.Fatal(err)
	}
	connect := func(host string) (*nats.Conn, error) {
		options, err := vic.Secure()
		if err != nil {
			c.t.Fatal(err)
		}
		return nats.Connect("nats://"+c.address(host), append(options, nats.Timeout(time.Second), nats.NoReconnect(), nats.IgnoreDiscoveredServers())...)
	}
	closed := map[string]<-chan nats.Status{}
	for _, host := range []string{"h1", "h2"} {
		nc, err := connect(host)
		if err != nil {
			c.t.Fatalf("before it is revoked, on %s: %v", host, err)
		}
		c.t.Cleanup(nc.Close)
		closed[host] = nc.StatusChanged(nats.CLOSED)
	}
	c.must("user", "revoke", "a-viewer")
	revoked := time.Now()
	for host, cut := range closed {
		select {
		case <-cut:
			c.t.Logf("RESULT %s: cut %v after the revocation", host, time.Since(revoked).Round(time.Millisecond))
		case <-time.After(time.Until(revoked.Add(revokedWithin))):
			c.t.Errorf("%s: connected as a user that was revoked %v ago", host, time.Since(revoked))
		}
		if nc, err := connect(host); err == nil {
			nc.Close()
			c.t.Errorf("%s takes the credential again", host)
		}
	}
	out, code := c.try("ps", "--context", file)
	if want := "does not take the credential"; code != 4 || !strings.Contains(out, want) || !strings.Contains(out, "hint: ") {
		c.t.Errorf("ps of who was revoked: exit code %d, want 4, %q and a hint\n%s", code, want, out)
	}
}
