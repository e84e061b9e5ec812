package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestThreatsAreRefusedAndAudited: what an attacker with a token, a certificate or a
// credential that is not theirs tries is refused, and the audit trail says so.
func TestThreatsAreRefusedAndAudited(t *testing.T) {
	c := up(t, 1, "--demo")
	token := c.token(t.TempDir(), kbroker.RoleWorker)
	c.agent("h2", "--join", c.address("h1"), "--role", "worker", "--token-file", token)
	c.waitReady(20*time.Second, "hello", "hello", 3, nil)
	wait.Until(t, 20*time.Second, func() error {
		if rows := c.hostRows(); len(rows) != 2 {
			return fmt.Errorf("hosts are %s", show(rows))
		}
		return nil
	})
	f := c.forger()
	attacks := []threat{
		{"U1: a token is used a second time", func() error { return c.joins("h3", token) }, record{action: "join", host: "h3", code: kbroker.Refused}},
		{"U1: a token is used for another name", func() error {
			return c.joins("h6", c.token(t.TempDir(), kbroker.RoleWorker, "--name", "h7"))
		}, record{action: "join", host: "h6", code: kbroker.Refused}},
		{"U2: a worker's certificate on the routes", func() error {
			if said, _ := asServer(c.addresses("h1").Route, showing(f.certs["a worker's"])); said != "" {
				return nil
			}
			return errRefused
		}, record{action: "connect", object: "routes"}},
		{"U2: the certificate of another root on the routes", func() error {
			if said, _ := asServer(c.addresses("h1").Route, showing(f.certs["of another root, for the same cluster"])); said != "" {
				return nil
			}
			return errRefused
		}, record{action: "connect", object: "routes"}},
		{"U2: a credential of another cluster", func() error {
			_, err := c.dial(f.creds["of another cluster"])
			return err
		}, record{action: "connect", object: "clients"}},
		{"U4: a viewer listens to everything", func() error { return c.violates("viewer", "", ">") }, record{action: "subscribe", role: "viewer", object: "subject >"}},
		{"U4: a viewer writes to the control store", func() error { return c.violates("viewer", subjects.Control("place.h1.default.x"), "") }, record{action: "publish", role: "viewer", object: "subject $KV.kbroker.place.h1.default.x"}},
		{"U4: an operator looks into JetStream", func() error { return c.violates("operator", "$JS.API.STREAM.NAMES", "") }, record{action: "publish", role: "operator", object: "subject $JS.API.STREAM.NAMES"}},
		{"U5: a deployer speaks for somebody else", func() error {
			return c.violates("deployer", subjects.Super(subjects.VerbDeploy, kbroker.DefaultTenant, f.creds[""].Key()), "")
		}, record{action: "publish", role: "deployer", object: "subject kb.super.deploy.default." + f.creds[""].Key()}},
		{"U7: a viewer uploads a program", func() error {
			return c.violates("viewer", subjects.Core(subjects.VerbArtifactBegin, kbroker.DefaultTenant), "")
		}, record{action: "publish", role: "viewer", object: "subject kb.core.put.default"}},
		{"U7: a program is not what its digest says", func() error {
			api, err := client.Open(t.Context(), mustFind(c), "kbroker test")
			if err != nil {
				t.Fatal(err)
			}
			defer api.Close()
			return api.PutArtifact(t.Context(), strings.Repeat("00", 32), int64(len("tampered")), strings.NewReader("tampered"), nil)
		}, record{action: "put", object: "artifact", code: kbroker.Invalid}},
	}
	instance := c.credsIn("h1", "instances", "default", "*", "run", "*.creds")
	if instance == nil {
		instance = c.credsIn("h2", "instances", "default", "*", "run", "*.creds")
	}
	for _, subject := range []string{subjects.Method("bank", "ledger", "pay"), subjects.Demand(kbroker.DefaultTenant, "bank"), subjects.Super(subjects.VerbStop, kbroker.DefaultTenant, instance.Key())} {
		attacks = append(attacks, threat{"U5: an instance publishes to " + subject, func() error { return c.violatesAs(*instance, subject, "") }, record{action: "publish", key: instance.Key(), object: "subject " + subject}})
	}
	worker := c.credsIn("h2", "identity", "*", "host.creds")
	for _, subject := range []string{
		subjects.Control("place.h1.default.x"), subjects.Report("h1"), subjects.Sign("h1"), subjects.Super(subjects.VerbToken, kbroker.DefaultTenant, worker.Key()),
		subjects.Core(subjects.VerbArtifactBegin, kbroker.DefaultTenant), subjects.Core(subjects.VerbDevelop, kbroker.DefaultTenant), subjects.AuditRecord,
	} {
		attacks = append(attacks, threat{"U6: a worker publishes to " + subject, func() error { return c.violatesAs(*worker, subject, "") }, record{action: "publish", host: "h2", object: "subject " + subject}})
	}
	for _, a := range attacks {
		if err := a.try(); err == nil {
			t.Errorf("%s: it is not refused", a.name)
		}
	}
	for _, a := range attacks {
		wait.Until(t, 15*time.Second, func() error {
			_, err := c.refusals(a.want)
			return err
		})
	}
	// U3: a credential that was copied, after its instance has stopped. The server does not
	// say whose it was.
	connects := record{action: "connect", object: "clients"}
	before, err := c.refusals(connects)
	if err != nil {
		t.Fatal(err)
	}
	c.must("stop", "hello")
	wait.Until(t, revokedWithin, func() error {
		nc, err := c.dial(*instance)
		if err == nil {
			nc.Close()
			return errors.New("the credential of an instance that was stopped is taken")
		}
		return nil
	})
	wait.Until(t, 15*time.Second, func() error {
		if n, err := c.refusals(connects); err != nil || n <= before {
			return fmt.Errorf("%d clients are told to have been refused, %d before: %w", n, before, err)
		}
		return nil
	})
	// U11: nobody deletes of it.
	for _, subject := range []string{"$JS.API.STREAM.PURGE." + subjects.AuditStream, "$JS.API.STREAM.MSG.DELETE." + subjects.AuditStream, "$JS.API.STREAM.DELETE." + subjects.AuditStream} {
		if err := c.violates("admin", subject, ""); err == nil {
			t.Errorf("U11: an admin may ask %s", subject)
		}
	}
	v := c.intact()
	t.Logf("RESULT %d threats refused and audited, %d records intact", len(attacks)+1, v.Records)
}

// threat is an attack and what the trail says of it.
type threat struct {
	name string
	try  func() error // nil: it was not refused
	want record
}

// record is what a record of a refusal has; empty: anything.
type record struct {
	action, object, key, role string
	host                      kbroker.HostID
	code                      kbroker.Code
}

func (want record) isOf(r kbroker.AuditRecord) bool {
	return r.Outcome == kbroker.AuditRefused && r.Action == want.action &&
		(want.object == "" || r.Object == want.object) && (want.key == "" || r.Actor.Key == want.key) &&
		(want.role == "" || r.Actor.Role == want.role) && (want.host == "" || r.Actor.Host == want.host) && (want.code == "" || r.Code == want.code)
}

// refusals is how many refusals of a kind the trail tells; an error: none.
func (c *cluster) refusals(want record) (n int, err error) {
	all, err := c.trail()
	for _, r := range all {
		if want.isOf(r) {
			n += max(1, r.Count)
		}
	}
	if err == nil && n == 0 {
		err = fmt.Errorf("there is no record %+v among %s", want, show(all))
	}
	return n, err
}

var errRefused = errors.New("refused")

// showing is a side that shows a certificate, and believes everybody.
func showing(cert *tls.Certificate) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify:   true, // an attacker does not care
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
	}
}

// joins is nil if a host that shows a token was admitted.
func (c *cluster) joins(host, token string) error {
	out, code := c.try("agent", "--dir", c.host(host), "--name", host, "--role", "worker", "--advertise", "127.0.0.1", "--join", c.address("h1"), "--token-file", token)
	if code == 0 {
		return nil
	}
	return errors.New(out)
}

// credsIn is the first credential in a host's data directory; nil: there is none.
func (c *cluster) credsIn(host string, parts ...string) *credential.Credential {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(append([]string{c.host(host)}, parts...)...))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			c.t.Fatal(err)
		}
		if own, err := credential.Parse(b); err == nil && own.IsSigned() && !strings.Contains(own.Name(), "allocator") {
			return &own
		}
	}
	return nil
}

// dial connects with a credential.
func (c *cluster) dial(own credential.Credential, opts ...nats.Option) (*nats.Conn, error) {
	target := mustFind(c)
	target.Credential = ""
	secure, err := target.Secure()
	if err != nil {
		c.t.Fatal(err)
	}
	return nats.Connect(target.Servers[0], append(append(secure, own.Options()...), append(opts, nats.NoReconnect(), nats.Timeout(3*time.Second))...)...)
}

// violates is nil if who has a role may publish to a subject, or subscribe to one.
func (c *cluster) violates(role, publish, subscribe string) error {
	c.t.Helper()
	own, err := credential.Parse([]byte(c.creds(c.host("h1"), role)))
	if err != nil {
		c.t.Fatal(err)
	}
	return c.violatesAs(own, publish, subscribe)
}

func (c *cluster) violatesAs(own credential.Credential, publish, subscribe string) error {
	c.t.Helper()
	said := make(chan error, 1)
	nc, err := c.dial(own, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case said <- err:
		default:
		}
	}))
	if err != nil {
		c.t.Fatal(err)
	}
	defer nc.Close()
	if publish != "" {
		err = nc.Publish(publish, []byte("{}"))
	} else {
		_, err = nc.SubscribeSync(subscribe)
	}
	if err := errors.Join(err, nc.Flush()); err != nil {
		c.t.Fatal(err)
	}
	select {
	case err := <-said:
		return err
	case <-time.After(time.Second):
		return nil
	}
}
