package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/kbroker/kbroker"
)

// Token lets one host join the cluster of a root. Its secret is known to who holds
// the token, and to nobody else: the cluster keeps a hash of it.
type Token struct {
	ID     string                       // names it in lists, see kbroker.CheckTokenID
	Secret [kbroker.TokenSecretLen]byte // random
	Root   string                       // Fingerprint of the root's key
}

// A token is written
//
//	kbt1.<id>.<80 characters>
//
// in which the characters are, in base64 for URLs, the secret, the root's
// fingerprint and the first bytes of a SHA-256 over all that is before them. It is
// a checksum: it finds what was cut or mistyped, and proves nothing.
const (
	tokenPrefix  = "kbt1."
	tokenSumLen  = 4
	tokenBodyLen = kbroker.TokenSecretLen + sha256.Size + tokenSumLen
)

// tokenLen is that of every token.
var tokenLen = len(tokenPrefix) + kbroker.TokenIDLen + 1 + base64.RawURLEncoding.EncodedLen(tokenBodyLen)

// NewToken makes a token for the cluster of a root.
func NewToken(root string) Token {
	t := Token{ID: strings.ToLower(rand.Text()[:kbroker.TokenIDLen]), Root: root}
	_, _ = rand.Read(t.Secret[:]) // never fails
	return t
}

// Written is the token as people hand it on: the only form that has the secret.
// Invalid: its root is no Fingerprint.
func (t Token) Written() (string, error) {
	root, err := base64.RawURLEncoding.Strict().DecodeString(t.Root)
	if err != nil || len(root) != sha256.Size {
		return "", kbroker.Errorf(kbroker.Invalid, "%q is not the fingerprint of a root", t.Root)
	}
	body := append(t.Secret[:len(t.Secret):len(t.Secret)], root...)
	sum := tokenSum(t.ID, body)
	return tokenPrefix + t.ID + "." + base64.RawURLEncoding.EncodeToString(append(body, sum...)), nil
}

func tokenSum(id string, body []byte) []byte {
	sum := sha256.Sum256(append([]byte(tokenPrefix+id+"."), body...))
	return sum[:tokenSumLen]
}

// String is for logs: without the secret.
func (t Token) String() string { return tokenPrefix + t.ID }

// GoString is String: no way of printing a token shows its secret.
func (t Token) GoString() string { return t.String() }

// ParseToken reads what Written wrote; blanks and line ends around it do not
// matter. Invalid, with a hint, and with nothing of what it read.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	wrong := func(hint, format string, args ...any) (Token, error) {
		return Token{}, kbroker.Errorf(kbroker.Invalid, format, args...).WithHint("%s", hint)
	}
	const again = "copy all of it once more; it is one line without blanks, as kbroker token create has printed it"
	switch version, _, _ := strings.Cut(text, "."); {
	case text == "":
		return wrong("kbroker token create prints one", "there is no token, only blanks")
	case version+"." == tokenPrefix:
	case strings.HasPrefix(version, "kbt") && len(version) <= len(tokenPrefix):
		return wrong("this host's kbroker is older than the one that made it: install the same version", "the token is of a kind that this program does not know")
	default:
		return wrong("a token begins with "+tokenPrefix+"; kbroker token create prints one", "this is not a join token")
	}
	if len(text) != tokenLen {
		return wrong(again, "the token has %d characters, want %d: it was cut, or has something added", len(text), tokenLen)
	}
	id, written, _ := strings.Cut(strings.TrimPrefix(text, tokenPrefix), ".")
	body, err := base64.RawURLEncoding.Strict().DecodeString(written)
	if kbroker.CheckTokenID(id) != nil || err != nil || len(body) != tokenBodyLen {
		return wrong(again, "the token has characters that no token has")
	}
	t := Token{ID: id, Root: base64.RawURLEncoding.EncodeToString(body[kbroker.TokenSecretLen : tokenBodyLen-tokenSumLen])}
	copy(t.Secret[:], body)
	if string(tokenSum(id, body[:tokenBodyLen-tokenSumLen])) != string(body[tokenBodyLen-tokenSumLen:]) {
		return wrong(again, "the token was mistyped: its checksum is another one")
	}
	return t, nil
}
