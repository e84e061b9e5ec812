package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/kbroker/kbroker/internal/durable"
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	pemSecret      = "KBROKER SECRET"
)

// SaveKey keeps a key in a file of its own, 0600, which survives a power-off.
func SaveKey(path string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	return durable.Replace(path, pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), 0o600)
}

// LoadKey reads a key. Errors: that of the file, or that it holds something else;
// none shows what is in it.
func LoadKey(path string) (crypto.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemKey || len(rest) > 0 {
		return nil, fmt.Errorf("%s is not one key in PEM", path)
	}
	key, err := parseKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// SaveSecret keeps a secret in a file of its own, 0600, which survives a power-off.
func SaveSecret(path string, secret []byte) error {
	return durable.Replace(path, pem.EncodeToMemory(&pem.Block{Type: pemSecret, Bytes: secret}), 0o600)
}

// LoadSecret reads what SaveSecret wrote. Errors as those of LoadKey.
func LoadSecret(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemSecret || len(rest) > 0 {
		return nil, fmt.Errorf("%s is not one secret in PEM", path)
	}
	return block.Bytes, nil
}

// parseKey reads PKCS 8. Its errors show nothing of what it reads.
func parseKey(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("not a key in PKCS 8")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("a key that cannot sign")
	}
	return signer, nil
}

// EncodeCerts writes certificates in PEM, one after the other.
func EncodeCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})...)
	}
	return out
}

// ParseCerts reads what EncodeCerts wrote, at least one certificate and nothing
// else.
func ParseCerts(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for len(b) > 0 {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != pemCertificate {
			return nil, errors.New("not only certificates in PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out, b = append(out, c), rest
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate")
	}
	return out, nil
}

// SaveCerts keeps certificates in a file, which survives a power-off.
func SaveCerts(path string, certs ...*x509.Certificate) error {
	return durable.Replace(path, EncodeCerts(certs...), 0o644)
}

// LoadCerts reads the certificates of a file.
func LoadCerts(path string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := ParseCerts(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

// Shown joins a chain with the key of its first certificate, as connections show
// them: the host's, its core's, and the root, for clients that know its fingerprint
// alone. Others do not need the root to be shown.
func Shown(key crypto.Signer, chain ...*x509.Certificate) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c
}
