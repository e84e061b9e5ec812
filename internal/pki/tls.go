package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker"
)

// Identities is what a host's connections are made with: its certificate and
// whom it believes. Both can be replaced at any time: connections that are there
// stay, new ones use the new. Safe for concurrent use.
type Identities struct {
	now   func() time.Time
	open  atomic.Bool
	own   atomic.Pointer[tls.Certificate]
	trust atomic.Pointer[Trust]
}

// NewIdentities has no certificate yet, and believes nobody. now is the wall
// clock.
func NewIdentities(now func() time.Time) *Identities {
	i := &Identities{now: now}
	i.trust.Store(&Trust{})
	return i
}

// Use is the certificate that new connections show; see Shown.
func (i *Identities) Use(c *tls.Certificate) { i.own.Store(c) }

// Believe replaces the trust.
func (i *Identities) Believe(t Trust) { i.trust.Store(&t) }

// Open lets clients in, from now on: Server refuses them before.
func (i *Identities) Open() { i.open.Store(true) }

// errClosed: a client came before Open was called.
var errClosed = errors.New("this core takes no clients yet")

// errNoCertificate: a connection came before Use was called.
var errNoCertificate = errors.New("this host has no certificate yet")

// Peers is the configuration between cores, of both sides: TLS 1.3, each shows
// its certificate, and each must be a core's.
func (i *Identities) Peers() *tls.Config {
	c := i.shows()
	c.ClientAuth = tls.RequireAnyClientCert // judged below, by both sides
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.certificate() }
	c.InsecureSkipVerify = true // instead of the usual verification, not of any
	c.VerifyConnection = func(s tls.ConnectionState) error {
		return i.trust.Load().verifyTLS(s, i.now(), kbroker.RoleCore)
	}
	return c
}

// Server is the configuration for clients: they check the server, and prove who
// they are by other means. None is taken before Open.
func (i *Identities) Server() *tls.Config {
	c := i.shows()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if !i.open.Load() {
			return nil, errClosed
		}
		return nil, nil // the same
	}
	return c
}

// shows is the configuration of a side that shows its certificate.
func (i *Identities) shows() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.certificate() },
		Time:           i.now,
		// A ticket would let a session go on under a certificate that is out.
		SessionTicketsDisabled: true,
	}
}

func (i *Identities) certificate() (*tls.Certificate, error) {
	if c := i.own.Load(); c != nil {
		return c, nil
	}
	return nil, errNoCertificate
}

// Client is the configuration of a client that knows the cluster's roots and
// nothing else: it talks to cores. It needs no list of those that are out: a core
// that was removed takes no clients.
func Client(roots []*x509.Certificate, now func() time.Time) *tls.Config {
	trust := Trust{Roots: roots}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: ServerName, Time: now,
		InsecureSkipVerify: true, // instead of the usual verification, not of any
		VerifyConnection: func(s tls.ConnectionState) error {
			return trust.verifyTLS(s, now(), kbroker.RoleCore)
		},
	}
}

// ErrNotPinned: the server is not of the cluster whose root was pinned.
var ErrNotPinned = errors.New("the server is of another cluster")

// Pinned is the configuration of a client that knows of the cluster the Fingerprint
// of its root alone, from a token: it talks to cores that show this root and prove to
// be of it, before it has sent anything. Of others, the handshake's error wraps
// ErrNotPinned.
func Pinned(fingerprint string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: ServerName, Time: now,
		InsecureSkipVerify: true, // instead of the usual verification, not of any
		VerifyConnection: func(s tls.ConnectionState) error {
			root, err := pinned(s.PeerCertificates, fingerprint)
			if err != nil {
				return err
			}
			err = Trust{Roots: []*x509.Certificate{root}}.verifyTLS(s, now(), kbroker.RoleCore)
			if _, foreign := errors.AsType[x509.UnknownAuthorityError](err); foreign {
				return fmt.Errorf("%w: it shows the root and is not of it", ErrNotPinned)
			}
			return err
		},
	}
}

// pinned finds the root of a fingerprint among what a server shows.
func pinned(shown []*x509.Certificate, fingerprint string) (*x509.Certificate, error) {
	for _, c := range shown {
		// Who knows the root's public key can write a certificate around it, but not sign it.
		if FingerprintOf(c) == fingerprint && c.IsCA && c.CheckSignatureFrom(c) == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: it does not show the root with the fingerprint %s", ErrNotPinned, fingerprint)
}
