package pki

import (
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

const cluster = "kb-1"

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// host is one with a certificate.
type host struct {
	Identity
	key   crypto.Signer
	chain []*x509.Certificate
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newRoot(t testing.TB, cluster string) *Authority {
	t.Helper()
	root, err := NewRoot(cluster)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// newCore makes a core's intermediate.
func newCore(t testing.TB, root *Authority, cluster string, name kbroker.HostID) *Authority {
	t.Helper()
	key := newKey(t)
	cert, err := root.Intermediate(key.Public(), Identity{cluster, kbroker.RoleCore, name, 1})
	if err != nil {
		t.Fatal(err)
	}
	core, err := NewAuthority(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return core
}

// newHost makes a host's certificate at a time.
func newHost(t testing.TB, core *Authority, i Identity, at time.Time) host {
	t.Helper()
	key := newKey(t)
	cert, err := core.Host(key.Public(), i, []net.IP{net.IPv4(127, 0, 0, 1)}, at)
	if err != nil {
		t.Fatal(err)
	}
	return host{i, key, []*x509.Certificate{cert, core.Cert}}
}

func TestACertificateSaysWhoseItIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Identity{
			Cluster: rapid.StringMatching(`[A-Za-z0-9-]{1,30}`).Draw(t, "cluster"),
			Role:    rapid.SampledFrom([]kbroker.Role{kbroker.RoleCore, kbroker.RoleWorker}).Draw(t, "role"),
			Host:    kbroker.HostID(rapid.StringMatching(`[a-z]([a-z0-9-]{0,20}[a-z0-9])?`).Draw(t, "host")), Generation: rapid.IntRange(1, 1<<30).Draw(t, "generation"),
		}
		got, err := IdentityOf(&x509.Certificate{URIs: []*url.URL{want.URI()}})
		if err != nil || got != want {
			t.Errorf("identity of %s is %+v, %v; want %+v", want.URI(), got, err, want)
		}
	})
}

func TestWhomACertificateIsBelieved(t *testing.T) {
	root, other := newRoot(t, cluster), newRoot(t, cluster)
	core := newCore(t, root, cluster, "a")
	worker := Identity{cluster, kbroker.RoleWorker, "w", 2}
	h := newHost(t, core, worker, began)
	trust := Trust{Cluster: cluster, Roots: []*x509.Certificate{root.Cert}}
	foreign := newHost(t, newCore(t, other, cluster, "a"), worker, began)
	elsewhere := newHost(t, newCore(t, root, "kb-2", "a"), Identity{"kb-2", kbroker.RoleWorker, "w", 2}, began)
	for name, tc := range map[string]struct {
		trust   Trust
		chain   []*x509.Certificate
		now     time.Time
		removed bool
		want    string // part of the error; empty: believed
	}{
		"one of the cluster":                             {trust, h.chain, began, false, ""},
		"one of a clock that goes an hour behind":        {trust, h.chain, began.Add(-skew), false, ""},
		"one that is not valid yet":                      {trust, h.chain, began.Add(-skew - time.Second), false, "not yet valid"},
		"one at the end of its life":                     {trust, h.chain, began.Add(HostLife), false, ""},
		"one whose life is over":                         {trust, h.chain, began.Add(HostLife + time.Second), false, "expired"},
		"one of another root":                            {trust, foreign.chain, began, false, "unknown authority"},
		"one of another root that is trusted, too":       {Trust{Cluster: cluster, Roots: []*x509.Certificate{root.Cert, other.Cert}}, foreign.chain, began, false, ""},
		"one of another cluster":                         {trust, elsewhere.chain, began, false, "kb-2"},
		"one without its core's":                         {trust, h.chain[:1], began, false, "unknown authority"},
		"a core's intermediate":                          {trust, h.chain[1:], began, false, "want 2"},
		"nothing":                                        {trust, nil, began, false, "no certificate"},
		"one of a host that was removed":                 {Trust{cluster, trust.Roots, []kbroker.HostID{"x", "w"}}, h.chain, began, true, "removed"},
		"one by a core that was removed":                 {Trust{cluster, trust.Roots, []kbroker.HostID{"a"}}, h.chain, began, true, "removed"},
		"one of a root that was made by a clock of 1970": {trust, newHost(t, core, worker, always).chain, always, false, ""},
		"one when nobody is trusted":                     {Trust{Cluster: cluster}, h.chain, began, false, "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			i, err := tc.trust.Verify(tc.chain, tc.now)
			if tc.want == "" && (err != nil || i.Host != "w") {
				t.Errorf("it is for %+v, %v; want it believed", i, err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, ErrRemoved) != tc.removed) {
				t.Errorf("error %v, want one that says %q (removed: %t)", err, tc.want, tc.removed)
			}
		})
	}
}

func TestWhoSignsWhom(t *testing.T) {
	root := newRoot(t, cluster)
	core := newCore(t, root, cluster, "a")
	key := newKey(t).Public()
	worker, another := Identity{cluster, kbroker.RoleWorker, "w", 1}, Identity{cluster, kbroker.RoleCore, "b", 1}
	for name, sign := range map[string]func() error{
		"the root no host":                       func() error { _, err := root.Host(key, worker, nil, began); return err },
		"a core no core's intermediate":          func() error { _, err := core.Intermediate(key, another); return err },
		"the root no worker's intermediate":      func() error { _, err := root.Intermediate(key, worker); return err },
		"nobody a host without a generation":     func() error { _, err := core.Host(key, Identity{cluster, "core", "b", 0}, nil, began); return err },
		"nobody a host with a role that is none": func() error { _, err := core.Host(key, Identity{cluster, "king", "b", 1}, nil, began); return err },
		"nobody a name that is none":             func() error { _, err := core.Host(key, Identity{cluster, "core", "b/c", 1}, nil, began); return err },
		"nobody with another's key":              func() error { _, err := NewAuthority(core.Cert, newKey(t)); return err },
	} {
		if err := sign(); err == nil {
			t.Errorf("%s: it was signed", name)
		}
	}
	// What a worker signs all the same is not believed.
	wKey := newKey(t)
	forged, err := template("worker w", always, forEver)
	if err != nil {
		t.Fatal(err)
	}
	forged.IsCA, forged.BasicConstraintsValid, forged.KeyUsage = true, true, x509.KeyUsageCertSign
	forged.URIs = append(forged.URIs, worker.URI())
	cert, err := sign(forged, core.Cert, wKey.Public(), core.key)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, &Authority{cert, wKey}, another, began)
	trust := Trust{Cluster: cluster, Roots: []*x509.Certificate{root.Cert}}
	if i, err := trust.Verify(append(h.chain, core.Cert), began); err == nil {
		t.Errorf("a certificate by a worker is believed: %+v", i)
	}
}

// shake makes a connection between two sides and returns what each of them says
// of it.
func shake(t *testing.T, server, client *tls.Config) (atServer, atClient error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		_ = a.Close()
		done <- err
	}()
	c := tls.Client(b, client)
	if atClient = c.Handshake(); atClient == nil {
		_, atClient = io.ReadFull(c, make([]byte, 1))
	}
	_ = b.Close()
	return <-done, atClient
}

func TestWhoTalksToWhom(t *testing.T) {
	root := newRoot(t, cluster)
	core := newCore(t, root, cluster, "a")
	now := began
	clock := func() time.Time { return now }
	trust := Trust{Cluster: cluster, Roots: []*x509.Certificate{root.Cert}}
	with := func(h host, trust Trust) *Identities {
		i := NewIdentities(clock)
		i.Use(Shown(h.key, h.chain...))
		i.Believe(trust)
		i.Open()
		return i
	}
	closed := NewIdentities(clock)
	shut := newHost(t, core, Identity{cluster, kbroker.RoleCore, "a", 1}, began)
	closed.Use(Shown(shut.key, shut.chain...))
	closed.Believe(trust)
	a := with(newHost(t, core, Identity{cluster, kbroker.RoleCore, "a", 1}, began), trust)
	b := with(newHost(t, newCore(t, root, cluster, "b"), Identity{cluster, kbroker.RoleCore, "b", 1}, began), trust)
	w := with(newHost(t, core, Identity{cluster, kbroker.RoleWorker, "w", 1}, began), trust)
	other := newRoot(t, cluster)
	stranger := with(newHost(t, newCore(t, other, cluster, "b"), Identity{cluster, kbroker.RoleCore, "b", 1}, began), trust)
	naked := NewIdentities(clock)
	for name, tc := range map[string]struct {
		server, client *tls.Config
		want           bool
	}{
		"two cores":                     {a.Peers(), b.Peers(), true},
		"a worker calls a core as one":  {a.Peers(), w.Peers(), false},
		"a core calls a worker as one":  {w.Peers(), a.Peers(), false},
		"a core of another root":        {a.Peers(), stranger.Peers(), false},
		"a core without a certificate":  {a.Peers(), naked.Peers(), false},
		"a core that shows none":        {a.Peers(), Client(trust.Roots, clock), false},
		"a client":                      {a.Server(), Client(trust.Roots, clock), true},
		"a client before it is open":    {closed.Server(), Client(trust.Roots, clock), false},
		"a core before it is open":      {closed.Peers(), b.Peers(), true},
		"a client of another root":      {a.Server(), Client([]*x509.Certificate{other.Cert}, clock), false},
		"a client that asks a worker":   {w.Server(), Client(trust.Roots, clock), false},
		"a client of the usual library": {a.Server(), &tls.Config{RootCAs: pool(root.Cert), ServerName: "127.0.0.1", Time: clock}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if s, c := shake(t, tc.server, tc.client); (s == nil && c == nil) != tc.want {
				t.Errorf("server %v, client %v; want it to come about: %t", s, c, tc.want)
			}
		})
	}

	// The cluster was off for 100 days: a core starts with what it makes itself.
	now = began.Add(100 * 24 * time.Hour)
	if s, c := shake(t, a.Peers(), b.Peers()); s == nil && c == nil {
		t.Error("certificates of 100 days ago are believed")
	}
	for who, i := range map[kbroker.HostID]*Identities{"a": a, "b": b} {
		h := newHost(t, newCore(t, root, cluster, who), Identity{cluster, kbroker.RoleCore, who, 1}, now)
		i.Use(Shown(h.key, h.chain...))
	}
	if s, c := shake(t, a.Peers(), b.Peers()); s != nil || c != nil {
		t.Errorf("with new certificates: server %v, client %v", s, c)
	}

	// One is removed: connections that begin then are refused, whoever calls.
	a.Believe(Trust{cluster, trust.Roots, []kbroker.HostID{"b"}})
	for _, pair := range [][2]*Identities{{a, b}, {b, a}} {
		if s, c := shake(t, pair[0].Peers(), pair[1].Peers()); s == nil && c == nil {
			t.Error("a core that was removed is talked to")
		}
	}
}

func pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func TestKeysAndCertificatesAreKept(t *testing.T) {
	root := newRoot(t, cluster)
	core := newCore(t, root, cluster, "a")
	keyFile, certFile := filepath.Join(t.TempDir(), "key"), filepath.Join(t.TempDir(), "certs")
	if err := errors.Join(SaveKey(keyFile, core.key), SaveCerts(certFile, core.Cert, root.Cert)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file of the key: %v, %v; want mode 0600", info.Mode(), err)
	}
	key, err := LoadKey(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := LoadCerts(certFile)
	if err != nil || len(certs) != 2 || !certs[1].Equal(root.Cert) {
		t.Fatalf("certificates are %v, %v; want those of the core and of the root", certs, err)
	}
	if _, err := NewAuthority(certs[0], key); err != nil {
		t.Errorf("the core's authority: %v", err)
	}
	for _, bad := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", string(EncodeCerts(root.Cert))} {
		if err := os.WriteFile(keyFile, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKey(keyFile); err == nil || bad != "" && strings.Contains(err.Error(), "AAAA") {
			t.Errorf("a file with %q: error %v", bad, err)
		}
	}
}

func TestAKeyTravelsSealed(t *testing.T) {
	root := newRoot(t, cluster)
	box, err := NewBox()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := SealKey(box.Public(), root.Key())
	if err != nil {
		t.Fatal(err)
	}
	key, err := box.OpenKey(sealed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewAuthority(root.Cert, key); err != nil {
		t.Errorf("what came out of the box: %v", err)
	}
	other, err := NewBox()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.OpenKey(sealed); err == nil {
		t.Error("another box opens it")
	}
	sealed[len(sealed)-1]++
	if _, err := box.OpenKey(sealed); err == nil {
		t.Error("what was changed on its way is believed")
	}
	if _, err := SealKey([]byte("x"), root.Key()); err == nil {
		t.Error("it was sealed for no key")
	}
}

func TestWhatIsSignedIsBelievedOfItsKeyAlone(t *testing.T) {
	key, other := newKey(t), newKey(t)
	parts := [][]byte{[]byte("h1"), []byte("core")}
	signature, err := Sign(key, "join", parts...)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckSignature(key.Public(), signature, "join", parts...); err != nil {
		t.Errorf("what was signed: %v", err)
	}
	_, edwards, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, check := range map[string]error{
		"another key":         CheckSignature(other.Public(), signature, "join", parts...),
		"another purpose":     CheckSignature(key.Public(), signature, "leave", parts...),
		"a part that moved":   CheckSignature(key.Public(), signature, "join", []byte("h1core"), nil),
		"a part less":         CheckSignature(key.Public(), signature, "join", parts[0]),
		"no signature":        CheckSignature(key.Public(), nil, "join", parts...),
		"a key of other kind": CheckSignature(edwards.Public(), signature, "join", parts...),
	} {
		if check == nil {
			t.Errorf("%s is believed", name)
		}
	}
}

func FuzzParseCerts(f *testing.F) {
	root := newRoot(f, cluster)
	f.Add(EncodeCerts(root.Cert))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := ParseCerts(b)
		if err == nil && len(certs) == 0 {
			t.Error("no certificate and no error")
		}
		for _, c := range certs {
			_, _ = IdentityOf(c) // must not panic
		}
	})
}
