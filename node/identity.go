package node

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/internal/pki"
)

// Files of a host's identity, under its data directory:
//
//	identity/host.key           its own, made before it first asks to join
//	identity/CLUSTER/root.key   of cores: admits other cores
//	identity/CLUSTER/root.crt   whom it believes
//	identity/CLUSTER/core.crt   of cores: with it and host.key it makes its own certificates; written last
const (
	identityDir = "identity"
	hostKeyFile = "host.key"
	rootKeyFile = "root.key"
	rootsFile   = "root.crt"
	coreFile    = "core.crt"
)

// identityEvery is how often a core looks at its certificate and its clock, and
// whom it believes follows the cluster's members.
const identityEvery = time.Second

// identity is what a core proves to others who it is with.
type identity struct {
	self  pki.Identity
	at    []net.IP // that clients reach it at
	key   crypto.Signer
	core  *pki.Authority
	root  *pki.Authority // nil: its key is not on this host
	roots []*x509.Certificate
	tls   *pki.Identities
	now   func() time.Time // the wall clock
	log   *slog.Logger
	// made is when the certificate that is shown was.
	made time.Time
}

// hostKey is the host's own key, made when there is none.
func hostKey(dir string) (crypto.Signer, error) {
	path := filepath.Join(dir, identityDir, hostKeyFile)
	key, err := pki.LoadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = pki.NewKey(); err != nil {
		return nil, fmt.Errorf("make the host's key: %w", err)
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	return key, pki.SaveKey(path, key)
}

// makeDir makes a directory that a power-off does not take back.
func makeDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make a directory for the identity: %w", err)
	}
	return durable.Sync(filepath.Dir(path))
}

func (m *membership) identityDir() string {
	return filepath.Join(filepath.Dir(m.path), identityDir, m.ClusterID)
}

func (m *membership) identity() pki.Identity {
	return pki.Identity{Cluster: m.ClusterID, Role: m.Role, Host: m.Host, Generation: m.Generation}
}

// foundIdentity makes the root of the cluster that this host founds, and its own
// intermediate. What a crash left of an earlier try is made anew: nobody has seen
// it.
func (m *membership) foundIdentity(now time.Time) error {
	key, err := hostKey(filepath.Dir(m.path))
	if err != nil {
		return err
	}
	root, err := m.rescuedRoot()
	if errors.Is(err, fs.ErrNotExist) {
		root, err = pki.NewRoot(m.ClusterID, now)
	}
	if err != nil {
		return err
	}
	core, err := root.Intermediate(key.Public(), m.identity(), now)
	if err != nil {
		return err
	}
	return m.saveIdentity(root.Key(), []*x509.Certificate{root.Cert}, core)
}

// rescuedRoot is the root of the cluster that this one was rescued from: its
// workers believe it. fs.ErrNotExist: there is none.
func (m *membership) rescuedRoot() (*pki.Authority, error) {
	if m.RescuedFrom == "" {
		return nil, fs.ErrNotExist
	}
	old := filepath.Join(filepath.Dir(m.identityDir()), m.RescuedFrom)
	key, err := pki.LoadKey(filepath.Join(old, rootKeyFile))
	if err != nil {
		return nil, err
	}
	roots, err := pki.LoadCerts(filepath.Join(old, rootsFile))
	if err != nil {
		return nil, err
	}
	return pki.NewAuthority(roots[0], key)
}

// roots are the cluster's, in PEM, as this host was given them.
func (m *membership) roots() (string, error) {
	certs, err := pki.LoadCerts(filepath.Join(m.identityDir(), rootsFile))
	if err != nil {
		return "", fmt.Errorf("the roots of cluster %s: %w", m.ClusterID, err)
	}
	return string(pki.EncodeCerts(certs...)), nil
}

// secure are the options of a connection to a core: one of the cluster whose roots
// this host was given. A host that was given none believes who answers at the
// address that it is to join through.
func (m *membership) secure() ([]nats.Option, error) {
	roots, err := m.roots()
	if errors.Is(err, fs.ErrNotExist) {
		anyone := func(o *nats.Options) error {
			o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
			return nil
		}
		return []nats.Option{anyone}, nil
	}
	if err != nil {
		return nil, err
	}
	return connect.Target{CA: roots, Source: m.path}.Secure()
}

// Roots are those of the cluster that the host of a data directory is of, in PEM.
// NotFound: it is of none yet.
func Roots(dir string) (string, error) {
	m, err := readMember(dir)
	if err != nil {
		return "", err
	}
	roots, err := m.roots()
	if errors.Is(err, fs.ErrNotExist) {
		return "", kbroker.Errorf(kbroker.NotFound, "host %s is of no cluster yet", m.Host)
	}
	return roots, err
}

func (m *membership) saveIdentity(rootKey crypto.Signer, roots []*x509.Certificate, core *x509.Certificate) error {
	dir := m.identityDir()
	if err := errors.Join(makeDir(filepath.Dir(dir)), makeDir(dir)); err != nil {
		return err
	}
	if rootKey != nil {
		if err := pki.SaveKey(filepath.Join(dir, rootKeyFile), rootKey); err != nil {
			return err
		}
	}
	if err := pki.SaveCerts(filepath.Join(dir, rootsFile), roots...); err != nil || core == nil {
		return err
	}
	return pki.SaveCerts(filepath.Join(dir, coreFile), core)
}

// takeIdentity keeps what this host was admitted with: a worker the roots alone.
func (m *membership) takeIdentity(r kbroker.JoinReply, box *pki.Box) error {
	roots, err := pki.ParseCerts([]byte(r.Roots))
	if err != nil {
		return fmt.Errorf("the roots of the cluster: %w", err)
	}
	if m.Role == kbroker.RoleWorker {
		return m.saveIdentity(nil, roots, nil)
	}
	core, err := pki.ParseCerts([]byte(r.Certificate))
	if err != nil {
		return fmt.Errorf("this host's certificate: %w", err)
	}
	var rootKey crypto.Signer
	if len(r.RootKey) > 0 {
		if rootKey, err = box.OpenKey(r.RootKey); err != nil {
			return err
		}
	}
	switch got, err := pki.IdentityOf(core[0]); {
	case err != nil:
		return err
	case got != m.identity():
		return fmt.Errorf("this host was given the certificate of %s, want that of %s", got.URI(), m.identity().URI())
	}
	if err := core[0].CheckSignatureFrom(roots[0]); err != nil {
		return fmt.Errorf("this host's certificate is not of the cluster's root: %w", err)
	}
	return m.saveIdentity(rootKey, roots, core[0])
}

// openIdentity reads the identity of a core and makes its first certificate, with
// which it is what it was however long it was off. A founder that has none yet
// makes it: a crash, or a rescue, was between.
func (m *membership) openIdentity(now func() time.Time, log *slog.Logger) (*identity, error) {
	dir := m.identityDir()
	certs, err := pki.LoadCerts(filepath.Join(dir, coreFile))
	if errors.Is(err, fs.ErrNotExist) && m.Founded {
		if err := m.foundIdentity(now()); err != nil {
			return nil, err
		}
		certs, err = pki.LoadCerts(filepath.Join(dir, coreFile))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kbroker.Errorf(kbroker.Refused, "%s is not there: host %s cannot prove who it is", filepath.Join(dir, coreFile), m.Host).
			WithHint("restore the file, or remove the host and join under another name with an empty data directory")
	}
	if err != nil {
		return nil, err
	}
	i := &identity{self: m.identity(), tls: pki.NewIdentities(now), now: now, log: log}
	if addr, err := netip.ParseAddrPort(m.Client); err == nil {
		i.at = []net.IP{addr.Addr().AsSlice()}
	}
	if i.roots, err = pki.LoadCerts(filepath.Join(dir, rootsFile)); err != nil {
		return nil, err
	}
	if i.key, err = pki.LoadKey(filepath.Join(filepath.Dir(m.path), identityDir, hostKeyFile)); err != nil {
		return nil, err
	}
	if i.core, err = pki.NewAuthority(certs[0], i.key); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, coreFile), err)
	}
	switch rootKey, err := pki.LoadKey(filepath.Join(dir, rootKeyFile)); {
	case errors.Is(err, fs.ErrNotExist): // it is kept elsewhere
	case err != nil:
		return nil, err
	default:
		if i.root, err = pki.NewAuthority(i.roots[0], rootKey); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, rootKeyFile), err)
		}
	}
	i.believe(nil)
	return i, i.renew()
}

// renew shows a new certificate from now on, for a key of its own that never
// touches the disk.
func (i *identity) renew() error {
	key, err := pki.NewKey()
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	made := i.now()
	cert, err := i.core.Host(key.Public(), i.self, i.at, made)
	if err != nil {
		return err
	}
	i.tls.Use(pki.Shown(key, cert, i.core.Cert))
	i.made = made
	return nil
}

// believe is who is out from now on: cores that were removed. The name of a core
// is used once.
func (i *identity) believe(out []kbroker.HostID) {
	removed := map[kbroker.HostID]int{}
	for _, h := range out {
		removed[h] = math.MaxInt
	}
	i.tls.Believe(pki.Trust{Cluster: i.self.Cluster, Roots: i.roots, Removed: removed})
}

// run keeps the certificate young and the trust as the cluster has it, until ctx
// ends. out are the hosts that are no members of the broker any more.
func (i *identity) run(ctx context.Context, out func() []kbroker.HostID) error {
	tick := time.NewTicker(identityEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		i.believe(out())
		if !i.due() {
			continue
		}
		if err := i.renew(); err != nil {
			i.log.Error("this host's certificate is not renewed; trying again", "err", err)
		}
	}
}

// due reports whether the certificate has lived for half of its life, or was made
// by a clock that has been set back since.
func (i *identity) due() bool {
	age := i.now().Round(0).Sub(i.made.Round(0)) // by the wall clock
	return age < 0 || age >= pki.HostLife/2
}

// routes is the configuration of the routes between cores, clients that of their
// clients.
func (i *identity) routes() *tls.Config  { return i.tls.Peers() }
func (i *identity) clients() *tls.Config { return i.tls.Server() }

// admit adds to the reply whom the host is to believe, and what a core needs to prove
// who it is.
func (i *identity) admit(r kbroker.JoinRequest, reply *kbroker.JoinReply) error {
	reply.Roots = string(pki.EncodeCerts(i.roots...))
	if r.Role != kbroker.RoleCore {
		return nil
	}
	if i.root == nil {
		return kbroker.Errorf(kbroker.Refused, "the root key of cluster %s is not on host %s: it admits no core", i.self.Cluster, i.self.Host).
			WithHint("put %s back for as long as cores join", rootKeyFile)
	}
	public, err := x509.ParsePKIXPublicKey(r.Key)
	if err != nil {
		return kbroker.Errorf(kbroker.Invalid, "host %s asks to join with a key that cannot be read: %v", r.Host, err)
	}
	if f, err := pki.Fingerprint(public); err != nil || f != r.Fingerprint {
		return kbroker.Errorf(kbroker.Invalid, "host %s asks to join with another key than its fingerprint says", r.Host)
	}
	cert, err := i.root.Intermediate(public, pki.Identity{Cluster: i.self.Cluster, Role: r.Role, Host: r.Host, Generation: reply.Generation}, i.now())
	if err != nil {
		return err
	}
	if reply.RootKey, err = pki.SealKey(r.Box, i.root.Key()); err != nil {
		return kbroker.Errorf(kbroker.Invalid, "host %s asks to join without a box for the root key: %v", r.Host, err)
	}
	reply.Certificate = string(pki.EncodeCerts(cert))
	return nil
}
