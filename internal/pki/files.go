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
func SaveKey(path string, key crypto.Signer) error { return saveKey(path, key, durable.Replace) }

// SaveKeyTwice is SaveKey of a key that nobody moves elsewhere; its file may be damaged.
func SaveKeyTwice(path string, key crypto.Signer) error {
	return saveKey(path, key, durable.ReplaceTwice)
}

func saveKey(path string, key crypto.Signer, write func(string, []byte, os.FileMode) error) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	return write(path, durable.WithSum(pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})), 0o600)
}

// LoadKey reads a key. Errors: that of the file, or that it holds something else;
// none shows what is in it.
func LoadKey(path string) (crypto.Signer, error) {
	var key crypto.Signer
	_, err := durable.ReadEither(path, func(b []byte) (err error) {
		if err := durable.CheckSum(b); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		block, rest := pem.Decode(b)
		if block == nil || block.Type != pemKey || len(rest) > 0 {
			return fmt.Errorf("%s is not one key in PEM", path)
		}
		if key, err = parseKey(block.Bytes); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return key, nil
}

// SaveSecret keeps a secret in a file of its own, 0600, which survives a power-off, and
// may be damaged.
func SaveSecret(path string, secret []byte) error {
	return durable.ReplaceTwice(path, durable.WithSum(pem.EncodeToMemory(&pem.Block{Type: pemSecret, Bytes: secret})), 0o600)
}

// LoadSecret reads what SaveSecret wrote. Errors as those of LoadKey.
func LoadSecret(path string) ([]byte, error) {
	var secret []byte
	_, err := durable.ReadEither(path, func(b []byte) error {
		if err := durable.CheckSum(b); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		block, rest := pem.Decode(b)
		if block == nil || block.Type != pemSecret || len(rest) > 0 {
			return fmt.Errorf("%s is not one secret in PEM", path)
		}
		secret = block.Bytes
		return nil
	})
	if err != nil {
		return nil, err
	}
	return secret, nil
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

// SaveCerts keeps certificates in a file, which survives a power-off, and may be damaged.
func SaveCerts(path string, certs ...*x509.Certificate) error {
	return durable.ReplaceTwice(path, durable.WithSum(EncodeCerts(certs...)), 0o644)
}

// LoadCerts reads the certificates of a file.
func LoadCerts(path string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	_, err := durable.ReadEither(path, func(b []byte) (err error) {
		if err = durable.CheckSum(b); err == nil {
			certs, err = ParseCerts(b)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
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
