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
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/broker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/subjects"
)

// Files of a host's identity, under its data directory:
//
//	identity/host.key           its own, made before it first asks to join
//	identity/CLUSTER/root.key   of cores: admits other cores
//	identity/CLUSTER/root.crt   whom it believes
//	identity/CLUSTER/accounts.key  of cores: signs credentials
//	identity/CLUSTER/host.creds    of workers: what it connects with
//	identity/CLUSTER/core.crt   of cores: with it and host.key it makes its own certificates; written last
const (
	identityDir = "identity"
	hostKeyFile = "host.key"
	rootKeyFile = "root.key"
	rootsFile   = "root.crt"
	coreFile    = "core.crt"

	accountsFile = "accounts.key"
	credsFile    = "host.creds"
)

// identityEvery is how often a core looks at its certificate and its clock, and
// whom it believes follows the cluster's members.
const identityEvery = time.Second

// identity is what a core proves to others who it is with.
type identity struct {
	self pki.Identity
	at   []net.IP // that clients reach it at
	key  crypto.Signer
	core *pki.Authority
	dir  string
	// grants sign credentials.
	grants *grants.Authority
	life   time.Duration // of those of instances
	roots  []*x509.Certificate
	root   *x509.Certificate // the one that the core is of
	tls    *pki.Identities
	now    func() time.Time // the wall clock
	log    *slog.Logger
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

// clearKeys removes what a crash has left of files that have keys, in a data directory
// that the caller has locked.
func clearKeys(dir string) error {
	all := durable.Clear(dir, connect.ContextFile)
	dir = filepath.Join(dir, identityDir)
	all = errors.Join(all, durable.Clear(dir))
	clusters, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		all = errors.Join(all, fmt.Errorf("clear %s: %w", dir, err))
	}
	for _, c := range clusters {
		if c.IsDir() {
			all = errors.Join(all, durable.Clear(filepath.Join(dir, c.Name())))
		}
	}
	return all
}

func (m *membership) identityDir() string { return m.identityOf(m.ClusterID) }

// identityOf is where the identity in a cluster is that this host is, or was, of.
func (m *membership) identityOf(cluster string) string {
	return filepath.Join(filepath.Dir(m.path), identityDir, cluster)
}

func (m *membership) identity() pki.Identity {
	return pki.Identity{Cluster: m.ClusterID, Role: m.Role, Host: m.Host, Generation: m.Generation}
}

// foundIdentity makes this host's intermediate of the root of the cluster that it
// founds. What a crash left of an earlier try is gone on with.
func (m *membership) foundIdentity() error {
	key, err := hostKey(filepath.Dir(m.path))
	if err != nil {
		return err
	}
	root, roots, err := m.foundRoot()
	if err != nil {
		return err
	}
	core, err := root.Intermediate(key.Public(), m.identity())
	if err != nil {
		return err
	}
	secret, err := m.secret()
	if errors.Is(err, fs.ErrNotExist) {
		secret, err = grants.NewSecret(), nil
	}
	if err != nil {
		return err
	}
	return m.saveIdentity(root.Key(), secret, roots, core)
}

// foundRoot is the root of the cluster that this host founds: the one that is there,
// or that of the cluster that it was rescued from, whose workers believe it, or a new
// one, but not once others may know another.
func (m *membership) foundRoot() (*pki.Authority, []*x509.Certificate, error) {
	dirs := []string{m.identityDir()}
	if m.RescuedFrom != "" {
		dirs = append(dirs, m.identityOf(m.RescuedFrom))
	}
	for _, dir := range dirs {
		root, roots, err := loadRoot(dir)
		if !errors.Is(err, fs.ErrNotExist) {
			return root, roots, err
		}
	}
	joined, err := broker.Joined(brokerDir(filepath.Dir(m.path)))
	if err != nil {
		return nil, nil, err
	}
	if joined || m.RescuedFrom != "" {
		return nil, nil, kbroker.Errorf(kbroker.Refused, "host %s cannot prove who it is: neither %s nor %s is in %s", m.Host, coreFile, rootKeyFile, dirs[len(dirs)-1]).
			WithHint("restore %s, or put %s back until the agent has started", coreFile, rootKeyFile)
	}
	root, err := pki.NewRoot(m.ClusterID)
	if err != nil {
		return nil, nil, err
	}
	return root, []*x509.Certificate{root.Cert}, nil
}

// loadRoot reads the root whose key is in a directory of a cluster, and all that are
// believed. fs.ErrNotExist: its key is kept elsewhere.
func loadRoot(dir string) (*pki.Authority, []*x509.Certificate, error) {
	key, err := pki.LoadKey(filepath.Join(dir, rootKeyFile))
	if err != nil {
		return nil, nil, err
	}
	roots, err := pki.LoadCerts(filepath.Join(dir, rootsFile))
	if err != nil {
		return nil, nil, err
	}
	for _, cert := range roots {
		if root, err := pki.NewAuthority(cert, key); err == nil {
			return root, roots, nil
		}
	}
	return nil, nil, kbroker.Errorf(kbroker.Refused, "%s is not the key of a certificate in %s", filepath.Join(dir, rootKeyFile), rootsFile).
		WithHint("put the key back that belongs to it")
}

// roots are the cluster's, in PEM, as this host was given them.
func (m *membership) roots() (string, error) {
	path := filepath.Join(m.identityDir(), rootsFile)
	certs, err := pki.LoadCerts(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", kbroker.Errorf(kbroker.Refused, "%s is not there: host %s does not know whom of cluster %s to believe", path, m.Host, m.ClusterID).
			WithHint("restore the file, it is the same on every host of the cluster; a directory from before hosts had identities cannot be used")
	}
	if err != nil {
		return "", fmt.Errorf("the roots of cluster %s: %w", m.ClusterID, err)
	}
	return string(pki.EncodeCerts(certs...)), nil
}

// secure are the options of a connection to a core: one of the cluster whose roots
// this host was given.
func (m *membership) secure() ([]nats.Option, error) {
	gate := nats.CustomInboxPrefix(subjects.GateInbox)
	roots, err := m.roots()
	if err != nil {
		return nil, err
	}
	secure, err := connect.Target{CA: roots, Source: m.path}.Secure()
	return append(secure, gate), err
}

// Roots are those of the cluster that the host of a data directory is of, in PEM.
// NotFound: it is of none yet.
func Roots(dir string) (string, error) {
	m, err := readMember(dir)
	if err != nil {
		return "", err
	}
	if m.ClusterID == "" {
		return "", kbroker.Errorf(kbroker.NotFound, "host %s is of no cluster yet", m.Host)
	}
	return m.roots()
}

// Admitted reports whether the host of a data directory was ever admitted to a
// cluster, or has founded one: it needs no token.
func Admitted(dir string) (bool, error) {
	m, err := loadMembership(dir)
	return err == nil && m.ClusterID != "", err
}

func (m *membership) saveIdentity(rootKey crypto.Signer, secret []byte, roots []*x509.Certificate, core *x509.Certificate) error {
	dir := m.identityDir()
	if err := errors.Join(makeDir(filepath.Dir(dir)), makeDir(dir)); err != nil {
		return err
	}
	if rootKey != nil {
		if err := pki.SaveKey(filepath.Join(dir, rootKeyFile), rootKey); err != nil {
			return err
		}
	}
	if secret != nil {
		if err := pki.SaveSecret(filepath.Join(dir, accountsFile), secret); err != nil {
			return err
		}
	}
	if err := pki.SaveCerts(filepath.Join(dir, rootsFile), roots...); err != nil || core == nil {
		return err
	}
	return pki.SaveCerts(filepath.Join(dir, coreFile), core)
}

// takeIdentity keeps what this host was admitted with: a worker the roots alone. The
// root with the fingerprint pin is one of them; empty: any.
func (m *membership) takeIdentity(r kbroker.JoinReply, box *pki.Box, pin string) error {
	roots, err := pki.ParseCerts([]byte(r.Roots))
	if err != nil {
		return fmt.Errorf("the roots of the cluster: %w", err)
	}
	if pin != "" && !slices.ContainsFunc(roots, func(c *x509.Certificate) bool { return pki.FingerprintOf(c) == pin }) {
		return kbroker.Errorf(kbroker.Refused, "the cluster has admitted host %s, but does not name the root that the token is for among its own", m.Host).
			WithHint("do not trust it; kbroker token create on a host of the cluster that you mean makes another token")
	}
	if m.Role == kbroker.RoleWorker {
		if err := m.saveIdentity(nil, nil, roots, nil); err != nil {
			return err
		}
		return m.keepCredential(r.Credential)
	}
	if r.Certificate == "" {
		return m.keepIdentity(roots)
	}
	core, err := pki.ParseCerts([]byte(r.Certificate))
	if err != nil {
		return fmt.Errorf("this host's certificate: %w", err)
	}
	rootKey, err := box.OpenKey(r.RootKey)
	if err != nil {
		return err
	}
	if err := m.isMine(core[0], roots); err != nil {
		return err
	}
	secret, err := box.Open(r.Accounts)
	if err != nil {
		return err
	}
	return m.saveIdentity(rootKey, secret, roots, core[0])
}

// keepIdentity goes on with the certificate that this core was given when it was
// first admitted.
func (m *membership) keepIdentity(roots []*x509.Certificate) error {
	certs, err := pki.LoadCerts(filepath.Join(m.identityDir(), coreFile))
	if err == nil {
		err = m.isMine(certs[0], roots)
	}
	if err != nil {
		return kbroker.Errorf(kbroker.Refused, "host %s was admitted without a certificate, and has none that fits: %v", m.Host, err).
			WithHint("put %s back on the cores of the cluster, and start this agent again", rootKeyFile)
	}
	return m.saveIdentity(nil, nil, roots, nil)
}

// isMine says what is wrong with an intermediate for this core.
func (m *membership) isMine(core *x509.Certificate, roots []*x509.Certificate) error {
	switch got, err := pki.IdentityOf(core); {
	case err != nil:
		return err
	case got != m.identity():
		return fmt.Errorf("it is the certificate of %s, want that of %s", got.URI(), m.identity().URI())
	}
	_, err := pki.RootOf(core, roots)
	return err
}

// openIdentity reads the identity of a core and makes its first certificate, with
// which it is what it was however long it was off. A founder that has none yet
// makes it: a crash, or a rescue, was between.
func (m *membership) openIdentity(now func() time.Time, log *slog.Logger) (*identity, error) {
	dir := m.identityDir()
	certs, err := pki.LoadCerts(filepath.Join(dir, coreFile))
	if errors.Is(err, fs.ErrNotExist) && m.Founded {
		if err := m.foundIdentity(); err != nil {
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
	i := &identity{self: m.identity(), dir: dir, tls: pki.NewIdentities(now), now: now, log: log}
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
	if i.grants, err = m.grants(); err != nil {
		return nil, err
	}
	if i.root, err = pki.RootOf(i.core.Cert, i.roots); err != nil {
		return nil, kbroker.Errorf(kbroker.Refused, "%s does not fit %s: %v", filepath.Join(dir, coreFile), rootsFile, err).
			WithHint("restore both files; %s is the same on every host of the cluster", rootsFile)
	}
	i.believe(m.outs())
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
	i.tls.Use(pki.Shown(key, cert, i.core.Cert, i.root))
	i.made = made
	return nil
}

// believe is who is out from now on: cores that were removed.
func (i *identity) believe(out []kbroker.HostID) {
	i.tls.Believe(pki.Trust{Cluster: i.self.Cluster, Roots: i.roots, Removed: out})
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

// admit looks at the proof of who asks, and adds to a reply that admits it whom the host is to believe, and what a core needs to prove
// who it is. A host that was admitted before, and has that already, does without while
// the root's key is kept elsewhere.
func (i *identity) admit(r kbroker.JoinRequest, reply *kbroker.JoinReply) error {
	public, err := proved(r)
	if err != nil || !reply.Admitted {
		return err
	}
	reply.Roots = string(pki.EncodeCerts(i.roots...))
	if r.Role != kbroker.RoleCore {
		reply.Credential, err = i.grants.Sign(grants.User{
			Role: grants.Worker, Name: string(r.Host), Key: r.User, Tags: map[string][]string{grants.TagHost: {string(r.Host)}},
		}, i.now())
		if err != nil {
			err = kbroker.Errorf(kbroker.Invalid, "host %s asks to join: %v", r.Host, err)
		}
		return err
	}
	root, _, err := loadRoot(i.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && r.ClusterID == i.self.Cluster:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return kbroker.Errorf(kbroker.Refused, "the root key of cluster %s is not on host %s, which leads: it admits no core", i.self.Cluster, i.self.Host).
			WithHint("put %s back on the cores for as long as cores join", rootKeyFile)
	case err != nil:
		return err
	}
	cert, err := root.Intermediate(public, pki.Identity{Cluster: i.self.Cluster, Role: r.Role, Host: r.Host, Generation: reply.Generation})
	if err != nil {
		return err
	}
	if reply.RootKey, err = pki.SealKey(r.Box, root.Key()); err != nil {
		return kbroker.Errorf(kbroker.Invalid, "host %s asks to join without a box for the root key: %v", r.Host, err)
	}
	secret, err := pki.LoadSecret(filepath.Join(i.dir, accountsFile))
	if err != nil {
		return err
	}
	if reply.Accounts, err = pki.Seal(r.Box, secret); err != nil {
		return err
	}
	reply.Certificate = string(pki.EncodeCerts(cert))
	return nil
}

// prove signs a request to join with the host's key. What is sealed for its box is
// of no use to who repeats it.
func prove(key crypto.Signer, r *kbroker.JoinRequest) (err error) {
	if r.Key, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return fmt.Errorf("encode the host's key: %w", err)
	}
	r.Proof, err = pki.Sign(key, joinPurpose, claims(*r)...)
	return err
}

// proved returns the key that a request to join is of, which is the one of its
// fingerprint.
func proved(r kbroker.JoinRequest) (crypto.PublicKey, error) {
	public, err := x509.ParsePKIXPublicKey(r.Key)
	if err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "host %s asks to join with a key that cannot be read: %v", r.Host, err)
	}
	if f, err := pki.Fingerprint(public); err != nil || f != r.Fingerprint {
		return nil, kbroker.Errorf(kbroker.Invalid, "host %s asks to join with another key than its fingerprint says", r.Host)
	}
	if err := pki.CheckSignature(public, r.Proof, joinPurpose, claims(r)...); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "host %s asks to join with a key that is not its own: %v", r.Host, err)
	}
	return public, nil
}

const joinPurpose = "kbroker join"

// claims are what a host proves that it asked for.
func claims(r kbroker.JoinRequest) [][]byte {
	return [][]byte{[]byte(r.Host), []byte(r.Role), []byte(r.Client), []byte(r.Route), r.Box, []byte(r.User)}
}
