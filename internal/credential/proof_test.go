package credential

import (
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
)

// TestAProofIsOfOneKeyAndOneClaim.
func TestAProofIsOfOneKeyAndOneClaim(t *testing.T) {
	own, err := New()
	if err != nil {
		t.Fatal(err)
	}
	other, err := New()
	if err != nil {
		t.Fatal(err)
	}
	claim := kbroker.Claim{"kind", "ab", "c"}
	proof, err := own.Prove(claim)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckProof(own.Key(), proof, claim); err != nil {
		t.Errorf("what was proved: %v", err)
	}
	if CheckProof(other.Key(), proof, claim) == nil {
		t.Error("another key was proved")
	}
	for _, other := range []kbroker.Claim{{"kind", "a", "bc"}, {"kind", "abc"}, {"kind", "ab"}, {"kind", "ab", "c", ""}, {"kind", "ab" + strings.Repeat("\x00", 8) + "c"}, {"other", "ab", "c"}, nil} {
		if CheckProof(own.Key(), proof, other) == nil {
			t.Errorf("%q was proved with %q", other, claim)
		}
	}
	changed := slices.Clone(proof)
	changed[0] ^= 1
	for _, proof := range [][]byte{nil, {}, changed, proof[:len(proof)-1]} {
		if CheckProof(own.Key(), proof, claim) == nil {
			t.Errorf("%x proves", proof)
		}
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	public, err := account.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", "*", public} {
		if CheckProof(key, proof, claim) == nil {
			t.Errorf("%q is the key of a user", key)
		}
	}
}

// TestAServerGetsNoProof: it has its clients sign what it likes, if it is a text.
func TestAServerGetsNoProof(t *testing.T) {
	if first := digest(kbroker.Claim{"kind"})[0]; first != 0xff { // which is in no UTF-8
		t.Errorf("what is signed begins with %x, as a server's nonce could", first)
	}
}
