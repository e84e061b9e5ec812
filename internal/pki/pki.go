// Package pki makes and judges the certificates of a cluster.
//
//	root             one per cluster; its key admits cores and may be kept off the hosts
//	  intermediate   one per core; its key never leaves that host
//	    host         a day; a core makes its own at every start and before the old one ends
//
// Whom a certificate is for is in it as a URI, see Identity. Hosts and programs of
// the SDK look at that, not at addresses: a cluster's hosts know each other by name
// and generation, wherever they are. The host's address is there for other clients. A cluster may trust two roots at once, while one
// takes the other's place.
//
// What lives longer than a day can be taken back: Trust.Verify refuses a chain with a
// host that was removed.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// HostLife is that of a host's certificate.
	HostLife = 24 * time.Hour
	// skew is how far hosts' clocks may be apart: a host's certificate holds that much
	// before it was made.
	skew = time.Hour

	scheme = "kbroker"
)

// Roots and intermediates hold for ever: a cluster must start however long it was
// off, and whatever its founder's clock said. RFC 5280, 4.1.2.5, has this date for
// that.
var (
	always  = time.Unix(0, 0).UTC()
	forEver = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// Identity is whom a certificate is for.
type Identity struct {
	Cluster    string
	Role       kbroker.Role
	Host       kbroker.HostID
	Generation int // of the host's admission
}

// URI is the form that a certificate carries:
// kbroker://<cluster>/<role>/<host>/<generation>.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: i.Cluster, Path: "/" + string(i.Role) + "/" + string(i.Host) + "/" + strconv.Itoa(i.Generation)}
}

func (i Identity) check() error {
	if i.Cluster == "" || strings.ContainsAny(i.Cluster, "/:@?#") {
		return fmt.Errorf("cluster %q cannot be in a certificate", i.Cluster)
	}
	if i.Role != kbroker.RoleCore && i.Role != kbroker.RoleWorker {
		return fmt.Errorf("role %q cannot be in a certificate", i.Role)
	}
	if i.Generation < 1 {
		return fmt.Errorf("generation %d of host %s cannot be in a certificate", i.Generation, i.Host)
	}
	return kbroker.CheckName("host", string(i.Host))
}

// IdentityOf reads whom a certificate is for.
func IdentityOf(c *x509.Certificate) (Identity, error) {
	if len(c.URIs) != 1 {
		return Identity{}, fmt.Errorf("the certificate of %q has %d identities, want one", c.Subject.CommonName, len(c.URIs))
	}
	u := c.URIs[0]
	parts := strings.Split(u.Path, "/")
	if u.Scheme != scheme || len(parts) != 4 || parts[0] != "" {
		return Identity{}, fmt.Errorf("%q is not the identity of a host", u)
	}
	generation, err := strconv.Atoi(parts[3])
	if err != nil {
		return Identity{}, fmt.Errorf("%q is not the identity of a host: %w", u, err)
	}
	i := Identity{Cluster: u.Host, Role: kbroker.Role(parts[1]), Host: kbroker.HostID(parts[2]), Generation: generation}
	if err := i.check(); err != nil {
		return Identity{}, fmt.Errorf("%q is not the identity of a host: %w", u, err)
	}
	if i.URI().String() != u.String() {
		return Identity{}, fmt.Errorf("%q is not written as the identity of a host is", u)
	}
	return i, nil
}

// NewKey makes the key of a certificate: ECDSA on P-256, which every TLS client
// knows.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// RootOf is the one of these roots that has signed a core's certificate.
func RootOf(core *x509.Certificate, roots []*x509.Certificate) (*x509.Certificate, error) {
	for _, root := range roots {
		if core.CheckSignatureFrom(root) == nil {
			return root, nil
		}
	}
	return nil, errors.New("it is not of the cluster's root")
}

// Fingerprint is how a key is named in records, tokens and revocations: the
// SHA-256 of its public half, in base64 without padding.
func Fingerprint(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encode a public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// FingerprintOf is the Fingerprint of a certificate's key.
func FingerprintOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Authority makes certificates: the cluster's root, or a core's intermediate.
// Its methods may be called concurrently.
type Authority struct {
	Cert *x509.Certificate
	key  crypto.Signer
}

// NewRoot makes the root of a cluster.
func NewRoot(cluster string) (*Authority, error) {
	key, err := NewKey()
	if err != nil {
		return nil, fmt.Errorf("make the key of a root: %w", err)
	}
	t, err := template("kbroker "+cluster, always, forEver)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	cert, err := sign(t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &Authority{cert, key}, nil
}

// Key is the private half: where the root's is, is where cores can be admitted.
func (a *Authority) Key() crypto.Signer { return a.key }

// NewAuthority joins a certificate that may sign others with its key.
func NewAuthority(cert *x509.Certificate, key crypto.Signer) (*Authority, error) {
	a, err := Fingerprint(key.Public())
	if err != nil {
		return nil, err
	}
	if a != FingerprintOf(cert) {
		return nil, fmt.Errorf("the certificate of %q is for another key", cert.Subject.CommonName)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("the certificate of %q cannot sign others", cert.Subject.CommonName)
	}
	return &Authority{cert, key}, nil
}

// Intermediate makes the certificate with which a core signs. Only a root can.
func (a *Authority) Intermediate(public crypto.PublicKey, i Identity) (*x509.Certificate, error) {
	if i.Role != kbroker.RoleCore {
		return nil, fmt.Errorf("host %s is a %s: only a core signs certificates", i.Host, i.Role)
	}
	if len(a.Cert.URIs) > 0 {
		return nil, errors.New("only the root admits cores")
	}
	t, err := forHost(i, always, forEver)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign
	return sign(t, a.Cert, public, a.key)
}

// Host makes a host's certificate, for HostLife: a server's and a client's; at are
// the addresses that clients reach it at. Only a core's intermediate can.
func (a *Authority) Host(public crypto.PublicKey, i Identity, at []net.IP, now time.Time) (*x509.Certificate, error) {
	if len(a.Cert.URIs) == 0 {
		return nil, errors.New("the root signs cores only")
	}
	t, err := forHost(i, now.Add(-skew), now.Add(HostLife))
	if err != nil {
		return nil, err
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	t.DNSNames, t.IPAddresses = []string{ServerName}, at
	return sign(t, a.Cert, public, a.key)
}

// ServerName is the name that every host's certificate has, for clients that know a
// core by an address that is not in it.
const ServerName = "host.kbroker.internal"

func forHost(i Identity, from, until time.Time) (*x509.Certificate, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	t, err := template(string(i.Role)+" "+string(i.Host), from, until)
	if err != nil {
		return nil, err
	}
	t.URIs = []*url.URL{i.URI()}
	return t, nil
}

func template(name string, from, until time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: from.UTC(), NotAfter: until.UTC(),
	}, nil
}

func sign(t, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %q: %w", t.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}
