package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/subjects"
)

// TestEveryPortRefusesStrangers: the kernel says on which ports the processes of a
// cluster listen. Each of them greets nobody who speaks plain text, or shows, of a
// server, no certificate or one that is self-signed, has expired, or is another
// cluster's or a worker's; of a client, no credential or a forged, expired or foreign
// one. Who shows none may ask to join, no more.
func TestEveryPortRefusesStrangers(t *testing.T) {
	c := up(t, 2, "--demo")
	c.agent("h3", "--join", c.address("h1"), "--role", "worker", "--token-file", c.token(t.TempDir(), kbroker.RoleWorker))
	c.waitReady(20*time.Second, "hello", "hello", 3, nil)
	f := c.forger()
	clients, peers := 0, 0
	for _, addr := range c.ports() {
		switch kind := portKind(t, addr); kind {
		case "client":
			clients++
			t.Run("client port "+addr, func(t *testing.T) { f.knockAsClient(t, addr) })
		case "silent":
			peers++
			t.Run("port "+addr, func(t *testing.T) { f.knockAsServer(t, addr) })
		default:
			t.Errorf("port %s greets with %q, which nobody has said is safe", addr, kind)
		}
	}
	// Two cores, and the witness of the first, have one for clients and one for servers.
	if clients != 3 || peers != 3 {
		t.Errorf("%d ports for clients and %d others, want 3 of each", clients, peers)
	}
}

// knockTime bounds one knock; silence is how long a port that says nothing is given.
const (
	knockTime = 3 * time.Second
	silence   = 300 * time.Millisecond
)

// portKind is "client" of a port that greets in plain text as NATS servers greet
// clients, that they take up TLS, "silent" of one that says nothing; or what it says.
func portKind(t *testing.T, addr string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, knockTime)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(silence))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	var info struct {
		TLS bool `json:"tls_required"`
	}
	if rest, ok := strings.CutPrefix(line, "INFO "); ok && json.Unmarshal([]byte(rest), &info) == nil && info.TLS {
		return "client"
	}
	if line == "" {
		return "silent"
	}
	return line
}

// forger has what an attacker could have, and, to see that the test can fail, the real
// thing.
type forger struct {
	certs map[string]*tls.Certificate // by what is wrong with it; "" is good
	creds map[string]credential.Credential
}

func (c *cluster) forger() *forger {
	t := c.t
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(c.host("h1"), "identity", "*", "core.crt"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("identities of h1: %v, %v", dirs, err)
	}
	dir := filepath.Dir(dirs[0])
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	chain, err := pki.LoadCerts(filepath.Join(dir, "core.crt"))
	must(err)
	roots, err := pki.LoadCerts(filepath.Join(dir, "root.crt"))
	must(err)
	key, err := pki.LoadKey(filepath.Join(c.host("h1"), "identity", "host.key"))
	must(err)
	secret, err := pki.LoadSecret(filepath.Join(dir, "accounts.key"))
	must(err)
	core, err := pki.NewAuthority(chain[0], key)
	must(err)
	self, err := pki.IdentityOf(chain[0])
	must(err)
	f := &forger{certs: map[string]*tls.Certificate{"no certificate": {}}, creds: map[string]credential.Credential{}}
	show := func(what string, by *pki.Authority, root *x509.Certificate, as pki.Identity, made time.Time) {
		t.Helper()
		key, err := pki.NewKey()
		must(err)
		cert, err := by.Host(key.Public(), as, []net.IP{net.IPv4(127, 0, 0, 1)}, made)
		must(err)
		f.certs[what] = pki.Shown(key, cert, by.Cert, root)
	}
	worker := self
	worker.Role = kbroker.RoleWorker
	show("", core, roots[0], self, time.Now())
	show("expired", core, roots[0], self, time.Now().Add(-48*time.Hour))
	show("a worker's", core, roots[0], worker, time.Now())
	root, err := pki.NewRoot(self.Cluster)
	must(err)
	strange, err := pki.NewKey()
	must(err)
	between, err := root.Intermediate(strange.Public(), self)
	must(err)
	other, err := pki.NewAuthority(between, strange)
	must(err)
	show("of another root, for the same cluster", other, root.Cert, self, time.Now())
	f.certs["self-signed"] = &tls.Certificate{Certificate: [][]byte{root.Cert.Raw}, PrivateKey: root.Key()}

	real, err := grants.New(secret)
	must(err)
	foreign, err := grants.New(grants.NewSecret())
	must(err)
	admin := func(what string, by *grants.Authority, at time.Time) {
		t.Helper()
		own, err := credential.New()
		must(err)
		signed, err := by.Sign(grants.User{
			Role: grants.Admin, Name: "eve", Key: own.Key(), Life: time.Hour,
			Tags: map[string][]string{grants.TagTenant: {string(kbroker.DefaultTenant)}},
		}, at)
		must(err)
		f.creds[what] = own.Signed(signed)
	}
	admin("", real, time.Now())
	admin("expired", real, time.Now().Add(-2*time.Hour))
	admin("of another cluster", foreign, time.Now())
	thief, err := credential.New()
	must(err)
	f.creds["somebody else's, without the key"] = thief.Signed(f.creds[""].JWT())
	return f
}

// knockAsServer holds that a port lets nobody in who does not prove to be a core.
func (f *forger) knockAsServer(t *testing.T, addr string) {
	if said, err := asServer(addr, nil); len(said) > 0 {
		t.Errorf("in plain text: it says %q (%v)", said, err)
	}
	for what, cert := range f.certs {
		said, err := asServer(addr, &tls.Config{
			InsecureSkipVerify:   true, // an attacker does not care
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
		})
		if got, want := len(said) > 0, what == ""; got != want {
			t.Errorf("with a certificate that is %q: it says %q (%v); want it to greet: %t", what, said, err, want)
		}
	}
}

// asServer speaks to a port as another server would, and returns the first it says.
func asServer(addr string, with *tls.Config) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, knockTime)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(knockTime))
	if with != nil {
		conn = tls.Client(conn, with)
	}
	if _, err := io.WriteString(conn, "CONNECT {}\r\nPING\r\n"); err != nil {
		return "", err
	}
	said := make([]byte, 64)
	n, err := io.ReadAtLeast(conn, said, 1)
	return string(said[:n]), err
}

// knockAsClient holds that a port takes no plain text, and lets nobody do anything
// without a credential of the cluster that holds.
func (f *forger) knockAsClient(t *testing.T, addr string) {
	if said, err := asServer(addr, nil); strings.Contains(said, "PONG") || strings.Contains(said, "+OK") {
		t.Errorf("in plain text: it says %q (%v)", said, err)
	}
	dial := func(opts ...nats.Option) (*nats.Conn, error) {
		return nats.Connect("nats://"+addr, append([]nats.Option{nats.NoReconnect(), nats.Timeout(knockTime), nats.IgnoreDiscoveredServers()}, opts...)...)
	}
	if nc, err := dial(); err == nil {
		nc.Close()
		t.Error("a client that knows no roots takes it for a core of its cluster")
	}
	blind := nats.Secure(&tls.Config{InsecureSkipVerify: true})
	for what, c := range f.creds {
		nc, err := dial(append(c.Options(), blind)...)
		if err == nil {
			nc.Close()
		}
		switch {
		case what == "" && err != nil:
			t.Errorf("a good credential: %v", err)
		case what != "" && !errors.Is(err, nats.ErrAuthorization):
			t.Errorf("a credential that is %q: %v, want it refused", what, err)
		}
	}
	// A certificate is nothing that a client could show: it is as if there were none.
	for what, cert := range f.certs {
		said := make(chan error, 8)
		options := []nats.Option{
			nats.Secure(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*cert}}), nats.CustomInboxPrefix(subjects.GateInbox),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { said <- err }),
		}
		if len(cert.Certificate) == 0 {
			options[0] = blind
		}
		nc, err := dial(options...)
		if err != nil {
			continue // also fine
		}
		refused := []string{subjects.Method("hello", "hello", "greet"), subjects.Core(subjects.VerbStatus, kbroker.DefaultTenant), "$JS.API.INFO"}
		for _, s := range refused {
			if err := nc.Publish(s, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := nc.SubscribeSync(">"); err != nil {
			t.Fatal(err)
		}
		_ = nc.Flush()
		var got []string
		for range len(refused) + 1 {
			select {
			case err := <-said:
				got = append(got, err.Error())
			case <-time.After(knockTime):
			}
		}
		nc.Close()
		for _, s := range append(refused, ">") {
			if !slices.ContainsFunc(got, func(said string) bool { return strings.Contains(said, fmt.Sprintf("%q", s)) }) {
				t.Errorf("without a credential, with a certificate that is %q: %s is not refused: %q", what, s, got)
			}
		}
	}
}
