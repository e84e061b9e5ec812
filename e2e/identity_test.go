package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
)

// revokedWithin is when a credential holds nowhere any more, after its instance has
// stopped.
const revokedWithin = 5 * time.Second

// credsOf is the credential of the start of an instance that runs.
func (c *cluster) credsOf(host string, i kbroker.InstanceID) string {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.host(host), "instances", "default", string(i), "run", "*.creds"))
	if err != nil || len(files) != 1 {
		c.t.Fatalf("credentials of %s on %s: %v, %v; want one", i, host, files, err)
	}
	return files[0]
}

// TestAStolenCredentialEndsWithItsInstance: on every server, also on one that was away
// when it was taken back.
func TestAStolenCredentialEndsWithItsInstance(t *testing.T) {
	needLong(t)
	c := up(t, 3, "--demo")
	rows := c.waitReady(10*time.Second, "hello", "hello", 3, nil)
	away := other(c.super())
	var thief client.Target
	var of kbroker.InstanceID
	for _, r := range rows {
		if string(*r.Host) != away {
			thief, of = c.target(), *r.Instance
			thief.CredentialFile = filepath.Join(t.TempDir(), "stolen.creds")
			copyFile(t, c.credsOf(string(*r.Host), *r.Instance), thief.CredentialFile)
			break
		}
	}
	connect := func(server string) (*nats.Conn, error) { return connectAs(t, thief, server) }
	closed := map[string]<-chan nats.Status{}
	for _, host := range []string{"h1", "h2", "h3"} {
		server := "nats://" + c.address(host)
		nc, err := connect(server)
		if err != nil {
			t.Fatalf("while its instance runs, on %s: %v", host, err)
		}
		t.Cleanup(nc.Close)
		if host != away {
			closed[host] = nc.StatusChanged(nats.CLOSED)
		}
	}
	c.kill(away, true)
	c.must("stop", "hello", "--detach")
	wait.Until(t, 15*time.Second, func() error { // that on the host that is away is not known to have ended
		rows, err := list[kbroker.InstanceRow](c, "ps", "hello", "--all")
		for _, r := range rows {
			if *r.Instance == of && r.State == kbroker.StateExited {
				return err
			}
		}
		return fmt.Errorf("%s runs: %s, %v", of, show(rows), err)
	})
	stopped := time.Now()
	for host, cut := range closed {
		select {
		case <-cut:
			t.Logf("RESULT %s: cut %v after it was seen that the instance had stopped", host, time.Since(stopped).Round(time.Millisecond))
		case <-time.After(revokedWithin):
			t.Errorf("%s: connected with the credential of an instance that has stopped for %v", host, time.Since(stopped))
		}
		if nc, err := connect("nats://" + c.address(host)); err == nil {
			nc.Close()
			t.Errorf("%s takes the credential again", host)
		}
	}
	server := "nats://" + c.address(away)
	c.up()
	wait.Until(t, 20*time.Second, func() error { // from the first moment on
		nc, err := connect(server)
		if err == nil {
			nc.Close()
			t.Fatalf("%s, which was away, takes the credential", away)
		}
		if rows, err := list[struct {
			Name  string `json:"name"`
			State string `json:"state"`
		}](c, "hosts"); err != nil {
			return err
		} else if len(rows) != 3 || rows[0].State+rows[1].State+rows[2].State != "readyreadyready" {
			return fmt.Errorf("hosts are %s", show(rows))
		}
		return nil
	})
	if nc, err := connect(server); err == nil {
		nc.Close()
		t.Errorf("%s, which was away, takes the credential", away)
	}
}

// connectAs connects to one server alone.
func connectAs(t *testing.T, target client.Target, server string) (*nats.Conn, error) {
	t.Helper()
	options, err := target.Secure()
	if err != nil {
		t.Fatal(err)
	}
	return nats.Connect(server, append(options, nats.Timeout(time.Second), nats.NoReconnect(), nats.IgnoreDiscoveredServers())...)
}

// TestACredentialEndsWithItsHost: nobody says that what ran on a host is over which is
// gone for good, and yet its credentials hold on no core when it was removed. While its
// agent alone is down, they do.
func TestACredentialEndsWithItsHost(t *testing.T) {
	needLong(t)
	c := up(t, 4, "--demo")
	c.must("scale", "hello", "8")
	var of *kbroker.InstanceRow
	for _, r := range c.waitReady(15*time.Second, "hello", "hello", 8, nil) {
		if string(*r.Host) == "h4" {
			of = &r
		}
	}
	if of == nil {
		t.Fatalf("nothing runs on the worker: %s", c.must("ps", "hello"))
	}
	thief := c.target()
	thief.CredentialFile = filepath.Join(t.TempDir(), "stolen.creds")
	copyFile(t, c.credsOf("h4", *of.Instance), thief.CredentialFile)
	cores := []string{"h1", "h2", "h3"}
	closed := map[string]<-chan nats.Status{}
	c.kill("h4", true) // what it runs lives, and could have its credential renewed
	for _, host := range cores {
		nc, err := connectAs(t, thief, "nats://"+c.address(host))
		if err != nil {
			t.Fatalf("while its host is not judged, on %s: %v", host, err)
		}
		t.Cleanup(nc.Close)
		closed[host] = nc.StatusChanged(nats.CLOSED)
	}
	wait.Until(t, 20*time.Second, func() error {
		if out, code := c.try("remove", "h4"); code != 0 {
			return fmt.Errorf("remove: exit code %d: %s", code, out)
		}
		return nil
	})
	removed := time.Now()
	deadline := time.After(revokedWithin)
	for _, host := range cores {
		select {
		case <-closed[host]:
			t.Logf("RESULT %s: cut %v after the host was removed", host, time.Since(removed).Round(time.Millisecond))
		case <-deadline:
			t.Fatalf("%s: connected with the credential of an instance whose host was removed %v ago", host, time.Since(removed))
		}
		if nc, err := connectAs(t, thief, "nats://"+c.address(host)); err == nil {
			nc.Close()
			t.Errorf("%s takes the credential again", host)
		}
	}
}
