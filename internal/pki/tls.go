package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker"
)

// Identities is what a host's connections are made with: its certificate and
// whom it believes. Both can be replaced at any time: connections that are there
// stay, new ones use the new. Safe for concurrent use.
type Identities struct {
	now   func() time.Time
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

// Use is the certificate that new connections show: chain is the host's own, then
// its core's intermediate.
func (i *Identities) Use(c *tls.Certificate) { i.own.Store(c) }

// Believe replaces the trust.
func (i *Identities) Believe(t Trust) { i.trust.Store(&t) }

// errNoCertificate: a connection came before Use was called.
var errNoCertificate = errors.New("this host has no certificate yet")

// Peers is the configuration between cores, of both sides: TLS 1.3, each shows
// its certificate, and each must be a core's.
func (i *Identities) Peers() *tls.Config {
	c := i.Server()
	c.ClientAuth = tls.RequireAnyClientCert // judged below, by both sides
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.certificate() }
	c.InsecureSkipVerify = true // instead of the usual verification, not of any
	c.VerifyConnection = func(s tls.ConnectionState) error {
		return i.trust.Load().verifyTLS(s, i.now(), kbroker.RoleCore)
	}
	return c
}

// Server is the configuration for clients: they check the server, and prove who
// they are by other means.
func (i *Identities) Server() *tls.Config {
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
