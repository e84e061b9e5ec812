package kbroker

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Join tokens: what a host must show to become a member. The text that people
// hand on is made and read by package pki; the cluster has the hash of its secret.

const (
	// TokenIDLen and TokenSecretLen are the length of a token's name, in
	// characters, and of its secret, in bytes.
	TokenIDLen     = 12
	TokenSecretLen = 24
	// TokenTTL is how long a token holds unless somebody says otherwise,
	// MaxTokenTTL the longest.
	TokenTTL    = 15 * time.Minute
	MaxTokenTTL = 24 * time.Hour
	// MaxTokens bounds those that are not used, revoked or expired.
	MaxTokens = 1000
	// MaxTokenBy bounds Token.By, in bytes.
	MaxTokenBy = 128
)

var tokenIDForm = regexp.MustCompile(`^[a-z2-7]{` + strconv.Itoa(TokenIDLen) + `}$`)

// CheckTokenID reports why id is not the name of a token, or nil. The error has code
// Invalid and a hint, and shows nothing of what may be a whole token.
func CheckTokenID(id string) error {
	if tokenIDForm.MatchString(id) {
		return nil
	}
	return Errorf(Invalid, "this is not the name of a token").WithHint("it has %d letters and digits; `kbroker token ls` lists them", TokenIDLen)
}

// Token admits one host. Key token.<id>; written by super, which drops it a day
// after its end.
type Token struct {
	ID string `json:"id"`
	// Hash is the SHA-256 of the secret.
	Hash []byte `json:"hash"`
	Role Role   `json:"role"`
	Name HostID `json:"name,omitempty"` // of the host; empty: any
	// Both by the wall clock of the leader of that time.
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	By      string    `json:"by,omitempty"` // who made it, by their own word
	// Waits is the first host that showed the token in time and was told to wait: it
	// may be admitted with it later, too.
	Waits *TokenUse `json:"waits,omitempty"`
	// Used is the host that was admitted with it.
	Used    *TokenUse `json:"used,omitempty"`
	Revoked time.Time `json:"revoked,omitzero"`
}

// TokenUse is a host that has shown a token.
type TokenUse struct {
	Host        HostID    `json:"host"`
	Fingerprint string    `json:"fingerprint"` // of its key
	Generation  int       `json:"generation"`  // of the admission
	At          time.Time `json:"at"`          // wall clock of the leader
}

// By reports whether it is the use by a host, for an admission.
func (u *TokenUse) By(host HostID, fingerprint string, generation int) bool {
	return u != nil && u.Host == host && u.Fingerprint == fingerprint && u.Generation == generation
}

// TokenState is what a token is good for.
type TokenState string

const (
	TokenUnused  TokenState = "unused"
	TokenWaiting TokenState = "waiting" // a host has shown it in time and waits to be admitted
	TokenUsed    TokenState = "used"
	TokenExpired TokenState = "expired"
	TokenRevoked TokenState = "revoked"
)

// State is what the token is good for at a time.
func (t Token) State(now time.Time) TokenState {
	switch {
	case !t.Revoked.IsZero():
		return TokenRevoked
	case t.Used != nil:
		return TokenUsed
	case t.Waits != nil:
		return TokenWaiting
	case !now.Before(t.Expires):
		return TokenExpired
	}
	return TokenUnused
}

// Live reports whether a host may still be admitted with the token at a time.
func (t Token) Live(now time.Time) bool {
	s := t.State(now)
	return s == TokenUnused || s == TokenWaiting
}

// End is when the token ended, or will by itself.
func (t Token) End() time.Time {
	switch {
	case !t.Revoked.IsZero():
		return t.Revoked
	case t.Used != nil:
		return t.Used.At
	}
	return t.Expires
}

// ShownToken is a token as a host shows it, asking to join.
type ShownToken struct {
	ID     string `json:"id"`
	Secret []byte `json:"secret"`
}

// String is for logs: without the secret.
func (s ShownToken) String() string { return s.ID }

// GoString is String.
func (s ShownToken) GoString() string { return s.ID }

// TokenRequest asks super to take a token that the client has made: the secret
// stays with it. The same asked again is the same token.
type TokenRequest struct {
	ID   string        `json:"id"`
	Hash []byte        `json:"hash"`
	Role Role          `json:"role"`
	Name HostID        `json:"name,omitempty"`
	TTL  time.Duration `json:"ttl_ns"`
	By   string        `json:"by,omitempty"`
}

// TokenReply has what the client needs to write the token: the fingerprint of the
// root that cores prove themselves with.
type TokenReply struct {
	Root    string    `json:"root"`
	Expires time.Time `json:"expires"`
}

// RevokeRequest asks super to end a token.
type RevokeRequest struct {
	ID string `json:"id"`
}

// RevokeReply: it is ended; Unchanged when it was revoked, or had expired, before.
type RevokeReply struct {
	Unchanged bool `json:"unchanged,omitempty"`
}

// TokenRow is one row of `token ls`.
type TokenRow struct {
	ID      string     `json:"id"`
	State   TokenState `json:"state"`
	Role    Role       `json:"role"`
	Name    HostID     `json:"name,omitempty"` // it is bound to
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires"`
	By      string     `json:"by,omitempty"`
	// Host is the one that was admitted with it, or waits, since At.
	Host        *HostID    `json:"host"`
	Fingerprint string     `json:"fingerprint,omitempty"`
	Generation  int        `json:"generation,omitempty"`
	At          *time.Time `json:"at"`
}

// Row is the token in a list.
func (t Token) Row(now time.Time) TokenRow {
	r := TokenRow{ID: t.ID, State: t.State(now), Role: t.Role, Name: t.Name, Created: t.Created, Expires: t.Expires, By: t.By}
	use := t.Waits
	if t.Used != nil {
		use = t.Used
	}
	if use != nil {
		r.Host, r.Fingerprint, r.Generation, r.At = &use.Host, use.Fingerprint, use.Generation, &use.At
	}
	return r
}

// CheckTokenTTL reports why a token cannot hold for so long, or nil.
func CheckTokenTTL(ttl time.Duration) error {
	hint := "a token is for a host that joins now: " + short(TokenTTL) + " by default, " + short(MaxTokenTTL) + " at most"
	switch {
	case ttl <= 0:
		return Errorf(Invalid, "the token would hold for %v, want more than 0", ttl).WithHint("%s", hint)
	case ttl > MaxTokenTTL:
		return Errorf(Invalid, "the token would hold for %v, want %s or less", ttl, short(MaxTokenTTL)).WithHint("%s", hint)
	}
	return nil
}

// short is a duration without parts that are 0.
func short(d time.Duration) string {
	s := strings.TrimSuffix(d.String(), "0s")
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
