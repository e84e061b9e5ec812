package node

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

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
//	identity/host.key              its own, made before it first asks to join
//	identity/user.creds            of workers: the key that it asks for a credential with
//	identity/CLUSTER/root.key      of cores: admits other cores
//	identity/CLUSTER/root.crt      whom it believes
//	identity/CLUSTER/accounts.key  of cores: signs credentials
//	identity/CLUSTER/host.creds    of workers: what it connects with
//	identity/CLUSTER/core.crt      of cores: makes its own certificates; written last
//
// Beside those of them that nothing else makes good is a .copy, for when they are
// damaged; not of root.key, which may be kept elsewhere.
const (
	identityDir  = "identity"
	hostKeyFile  = "host.key"
	userFile     = "user.creds"
	rootKeyFile  = "root.key"
	rootsFile    = "root.crt"
	accountsFile = "accounts.key"
	credsFile    = "host.creds"
	coreFile     = "core.crt"
)

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
	return key, pki.SaveKeyTwice(path, key)
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
