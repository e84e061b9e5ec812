package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

// ErrRemoved is that of the certificate of a host that is out.
var ErrRemoved = errors.New("the host was removed")

// Trust is whom a host believes. The zero value believes nobody. It is a value:
// a change makes another one.
type Trust struct {
	Cluster string              // empty: any that has one of the roots
	Roots   []*x509.Certificate // two while one takes the other's place
	Removed []kbroker.HostID    // out for good: the name of a core is used once
}

// Verify returns whom a chain is for: the host's certificate first, then its
// core's intermediate. It does not matter whether the other side is a server or a
// client.
func (t Trust) Verify(chain []*x509.Certificate, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, errors.New("there is no certificate")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range t.Roots {
		roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return Identity{}, err
	}
	var all error
	for _, path := range paths {
		i, err := t.judge(path)
		if err == nil {
			return i, nil
		}
		all = errors.Join(all, err)
	}
	return Identity{}, all
}

// judge holds what X.509 does not know of: a path is a host's certificate, a core's
// intermediate and a root.
func (t Trust) judge(path []*x509.Certificate) (Identity, error) {
	if len(path) != 3 {
		return Identity{}, fmt.Errorf("the certificate of %q is %d steps from a root, want 2", path[0].Subject.CommonName, len(path)-1)
	}
	host, err := t.member(path[0])
	if err != nil {
		return Identity{}, err
	}
	core, err := t.member(path[1])
	if err != nil {
		return Identity{}, err
	}
	if core.Role != kbroker.RoleCore {
		return Identity{}, fmt.Errorf("host %s is a %s and signs nothing", core.Host, core.Role)
	}
	return host, nil
}

func (t Trust) member(c *x509.Certificate) (Identity, error) {
	i, err := IdentityOf(c)
	if err != nil {
		return Identity{}, err
	}
	switch {
	case t.Cluster != "" && i.Cluster != t.Cluster:
		return Identity{}, fmt.Errorf("host %s is one of cluster %s, not of %s", i.Host, i.Cluster, t.Cluster)
	case slices.Contains(t.Removed, i.Host):
		return Identity{}, fmt.Errorf("%w: %s", ErrRemoved, i.Host)
	}
	return i, nil
}

// verifyTLS judges the other side of a connection, which must have one of these
// roles.
func (t Trust) verifyTLS(s tls.ConnectionState, now time.Time, roles ...kbroker.Role) error {
	i, err := t.Verify(s.PeerCertificates, now)
	if err != nil {
		return err
	}
	if !slices.Contains(roles, i.Role) {
		return fmt.Errorf("host %s is a %s and has no business here", i.Host, i.Role)
	}
	return nil
}
