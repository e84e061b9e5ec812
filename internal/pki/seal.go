package pki

import (
	"crypto"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/x509"
	"fmt"
)

// Secrets travel to a host that joins sealed by HPKE (RFC 9180), for a key that
// the host makes for this one answer.

// sealInfo binds what is sealed to its purpose.
var sealInfo = []byte("kbroker join")

// Box takes the secrets of one answer.
type Box struct{ key hpke.PrivateKey }

// NewBox makes a key that never leaves this process.
func NewBox() (*Box, error) {
	key, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("make the key of a box: %w", err)
	}
	return &Box{key}, nil
}

// Public is what Seal needs.
func (b *Box) Public() []byte { return b.key.PublicKey().Bytes() }

// Seal encrypts a secret for a box.
func Seal(box, secret []byte) ([]byte, error) {
	public, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(box)
	if err != nil {
		return nil, fmt.Errorf("the key of a box: %w", err)
	}
	return hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), sealInfo, secret)
}

// Open returns what was sealed for this box.
func (b *Box) Open(sealed []byte) ([]byte, error) {
	secret, err := hpke.Open(b.key, hpke.HKDFSHA256(), hpke.AES256GCM(), sealInfo, sealed)
	if err != nil {
		return nil, fmt.Errorf("open what was sealed: %w", err)
	}
	return secret, nil
}

// SealKey encrypts a private key for a box.
func SealKey(box []byte, key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return Seal(box, der)
}

// OpenKey returns the key that was sealed for this box.
func (b *Box) OpenKey(sealed []byte) (crypto.Signer, error) {
	der, err := b.Open(sealed)
	if err != nil {
		return nil, err
	}
	return parseKey(der)
}
