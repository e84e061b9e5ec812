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
	"path/filepath"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/pki"
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

// admit looks at the proof of who asks, and adds to a reply that admits it whom the host
// is to believe, and what it needs to prove who it is: a worker its credential, a core the
// secrets of the cluster. A core that was admitted before, and has those already, does
// without while the root's key is kept elsewhere.
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
