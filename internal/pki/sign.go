package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sign proves that who holds a key says parts, for one purpose: ECDSA of a SHA-256.
func Sign(key crypto.Signer, purpose string, parts ...[]byte) ([]byte, error) {
	sum := digest(purpose, parts)
	signature, err := key.Sign(rand.Reader, sum, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return signature, nil
}

// CheckSignature is nil if signature is Sign's, by the private half of public, of
// the same.
func CheckSignature(public crypto.PublicKey, signature []byte, purpose string, parts ...[]byte) error {
	key, ok := public.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("a key of another kind: %T", public)
	}
	if !ecdsa.VerifyASN1(key, digest(purpose, parts), signature) {
		return errors.New("the signature is of another key, or of something else")
	}
	return nil
}

// digest is that of the parts with their lengths: what is moved from one part to
// the next is something else.
func digest(purpose string, parts [][]byte) []byte {
	h := sha256.New()
	for _, part := range append([][]byte{[]byte(purpose)}, parts...) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	return h.Sum(nil)
}
