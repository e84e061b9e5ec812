// Package credential is who a process is to the cluster: its own key, and what a core
// has signed for it, both in the one file that NATS clients know as .creds.
package credential

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/subjects"
)

// Credential is one. It is a value: what is signed makes another one.
type Credential struct {
	key    nkeys.KeyPair
	public string
	jwt    string
}

// New makes a key that nothing was signed for yet.
func New() (Credential, error) {
	key, err := nkeys.CreateUser()
	if err != nil {
		return Credential{}, fmt.Errorf("make the key of a credential: %w", err)
	}
	return of(key, "")
}

func of(key nkeys.KeyPair, signed string) (Credential, error) {
	public, err := key.PublicKey()
	if err != nil {
		return Credential{}, fmt.Errorf("the key of a credential: %w", err)
	}
	return Credential{key, public, signed}, nil
}

// Parse reads what Encode wrote, or another program that makes .creds. Its
// errors show nothing of what it reads.
func Parse(b []byte) (Credential, error) {
	key, err := nkeys.ParseDecoratedUserNKey(b)
	if err != nil {
		return Credential{}, errors.New("not a credential: there is no key of a user in it")
	}
	signed, _ := nkeys.ParseDecoratedJWT(b)
	if !strings.Contains(string(b), "BEGIN NATS USER JWT") {
		signed = "" // the parser takes a file without one for the JWT itself
	}
	return of(key, signed)
}

// Encode is the content of a .creds file.
func (c Credential) Encode() ([]byte, error) {
	seed, err := c.key.Seed()
	if err != nil {
		return nil, fmt.Errorf("the key of a credential: %w", err)
	}
	if c.jwt == "" {
		return jwt.DecorateSeed(seed)
	}
	return jwt.FormatUserConfig(c.jwt, seed)
}

// Key is the public half of its key.
func (c Credential) Key() string { return c.public }

// Inbox is the prefix of the inboxes that it may use, and no other.
func (c Credential) Inbox() string { return subjects.Inbox(c.public) }

// IsSigned reports whether a core has signed it.
func (c Credential) IsSigned() bool { return c.jwt != "" }

// Signed is c with what a core signed for its key.
func (c Credential) Signed(signed string) Credential {
	c.jwt = signed
	return c
}

// JWT is what a core signed; empty: nothing yet.
func (c Credential) JWT() string { return c.jwt }

// KeyOf is the public key that something was signed for; empty: it cannot be read.
func KeyOf(signed string) string {
	claims, err := jwt.DecodeUserClaims(signed)
	if err != nil {
		return ""
	}
	return claims.Subject
}

// Name is what who signed it calls its holder, for people; empty: nothing was signed.
func (c Credential) Name() string {
	claims, err := jwt.DecodeUserClaims(c.jwt)
	if err != nil {
		return ""
	}
	return claims.Name
}

// Role is that of the person it was signed for, as they are told; empty: it is of nobody,
// or of a build that did not say. What it allows is up to the cluster.
func (c Credential) Role() string {
	claims, err := jwt.DecodeUserClaims(c.jwt)
	if err != nil {
		return ""
	}
	for _, t := range claims.Tags {
		if role, ok := strings.CutPrefix(t, tagRole); ok {
			return role
		}
	}
	return ""
}

// Tags of what a core signs, for a person and for a start of an instance: as package grants
// has them.
const (
	tagRole        = "role:"
	tagTenant      = "tenant:"
	tagApp         = "app:"
	tagService     = "service:"
	tagInstance    = "instance:"
	tagIncarnation = "incarnation:"
)

// Start is the start of an instance that it was signed for: it may answer as no other.
// false: it is that of somebody else.
func (c Credential) Start() (kbroker.InstanceFile, bool) {
	var i kbroker.InstanceFile
	claims, err := jwt.DecodeUserClaims(c.jwt)
	if err != nil {
		return i, false
	}
	for _, tag := range claims.Tags {
		for name, take := range map[string]func(string){
			tagTenant:      func(v string) { i.Tenant = kbroker.TenantID(v) },
			tagApp:         func(v string) { i.App = kbroker.AppName(v) },
			tagService:     func(v string) { i.Service = kbroker.ServiceName(v) },
			tagInstance:    func(v string) { i.Instance = kbroker.InstanceID(v) },
			tagIncarnation: func(v string) { i.Incarnation = kbroker.Incarnation(v) },
		} {
			if v, ok := strings.CutPrefix(tag, name); ok {
				take(v)
			}
		}
	}
	return i, i.Tenant != "" && i.App != "" && i.Service != "" && i.Instance != "" && i.Incarnation != ""
}

// Check says why no cluster would take it at the time.
func (c Credential) Check(now time.Time) error {
	if !c.IsSigned() {
		return errors.New("no core has signed it")
	}
	claims, err := jwt.DecodeUserClaims(c.jwt)
	switch {
	case err != nil:
		return fmt.Errorf("what was signed of it cannot be read: %w", err)
	case claims.Subject != c.public:
		return errors.New("it was signed for another key")
	}
	if _, until := c.Holds(); !until.IsZero() && !now.Before(until) {
		return fmt.Errorf("it expired at %s", until.UTC().Format(time.RFC3339))
	}
	return nil
}

// Holds is from when, by the wall clock of the core that signed it, until when it does;
// zero: for ever, or nothing was signed.
func (c Credential) Holds() (from, until time.Time) {
	claims, err := jwt.DecodeUserClaims(c.jwt)
	if err != nil || claims.Expires == 0 {
		return time.Time{}, time.Time{}
	}
	return time.Unix(claims.IssuedAt, 0), time.Unix(claims.Expires, 0)
}

// Options are those of a connection that shows it.
func (c Credential) Options() []nats.Option {
	return []nats.Option{
		nats.UserJWT(func() (string, error) { return c.jwt, nil }, c.key.Sign),
		nats.CustomInboxPrefix(c.Inbox()),
	}
}

// FileOptions are those of a connection that shows what is in a file at the time.
func FileOptions(path string) ([]nats.Option, error) {
	k, err := Keep(path)
	if err != nil {
		return nil, err
	}
	return k.Options(nil), nil
}

// Load reads a .creds file.
func Load(path string) (Credential, error) {
	c, _, err := load(path)
	return c, err
}

func read(r io.Reader, path string) (Credential, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return Credential{}, fmt.Errorf("read a credential: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return Credential{}, kbroker.Errorf(kbroker.Invalid, "%s: %v", path, err)
	}
	return c, nil
}

// Save replaces a .creds file, 0600, which survives a power-off.
func (c Credential) Save(path string) error { return c.save(path, durable.Replace) }

// Write is Save for one that nobody knows of yet, and that a power-off makes worthless.
func (c Credential) Write(path string) error { return c.save(path, durable.Create) }

func (c Credential) save(path string, replace func(string, []byte, os.FileMode) error) error {
	b, err := c.Encode()
	if err != nil {
		return err
	}
	return replace(path, b, 0o600)
}
