package credential

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
)

// Prove signs a claim: who has the proof knows that it was made with this key.
func (c Credential) Prove(claim kbroker.Claim) ([]byte, error) {
	proof, err := c.key.Sign(digest(claim))
	if err != nil {
		return nil, fmt.Errorf("prove to have a key: %w", err)
	}
	return proof, nil
}

// CheckProof is nil if a proof is Prove's of the same claim, by the private half of a
// user's key.
func CheckProof(key string, proof []byte, claim kbroker.Claim) error {
	if !nkeys.IsValidPublicUserKey(key) {
		return fmt.Errorf("%q is not the public key of a user", key)
	}
	public, err := nkeys.FromPublicKey(key)
	if err != nil {
		return fmt.Errorf("the key %q: %w", key, err)
	}
	if public.Verify(digest(claim), proof) != nil {
		return errors.New("the proof is missing, or of another key, or of something else")
	}
	return nil
}

// digest is what is signed of a claim, with the length of each part. It begins with a byte
// that is in no text: what a server has its clients sign is one.
func digest(claim kbroker.Claim) []byte {
	h := sha256.New()
	for _, part := range claim {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write([]byte(part))
	}
	return h.Sum([]byte{0xff})
}
