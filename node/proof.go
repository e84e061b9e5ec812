package node

import (
	"crypto"
	"crypto/x509"
	"fmt"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/pki"
)

// prove signs a request to join with the host's key. What is sealed for its box is
// of no use to who repeats it.
func prove(key crypto.Signer, r *kbroker.JoinRequest) (err error) {
	if r.Key, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return fmt.Errorf("encode the host's key: %w", err)
	}
	r.Proof, err = pki.Sign(key, joinPurpose, claims(*r)...)
	return err
}

// proved returns the key that a request to join is of, which is the one of its
// fingerprint. A worker has proved to have the key of its credential, too.
func proved(r kbroker.JoinRequest) (crypto.PublicKey, error) {
	public, err := x509.ParsePKIXPublicKey(r.Key)
	if err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "host %s asks to join with a key that cannot be read: %v", r.Host, err)
	}
	if f, err := pki.Fingerprint(public); err != nil || f != r.Fingerprint {
		return nil, kbroker.Errorf(kbroker.Invalid, "host %s asks to join with another key than its fingerprint says", r.Host)
	}
	if err := pki.CheckSignature(public, r.Proof, joinPurpose, claims(r)...); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "host %s asks to join with a key that is not its own: %v", r.Host, err)
	}
	if r.Role == kbroker.RoleWorker {
		if err := owns(r.User, r.UserProof, r.Claim()); err != nil {
			e := kbroker.AsError(err)
			return nil, kbroker.Errorf(e.Code, "host %s asks to join: %s", r.Host, e.Message).WithHint("%s", e.Hint)
		}
	}
	return public, nil
}

const joinPurpose = "kbroker join"

// claims are what a host proves that it asked for.
func claims(r kbroker.JoinRequest) [][]byte {
	return [][]byte{[]byte(r.Host), []byte(r.Role), []byte(r.Client), []byte(r.Route), r.Box, []byte(r.User)}
}
