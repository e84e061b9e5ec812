// Package grants makes who may do what on a cluster's bus: the NATS operator, its
// accounts, and the credentials of everybody who connects.
//
//	operator          trusted by all servers
//	  SYS             the servers' own account
//	  kbroker         control and applications
//	    role keys     one per role: whom they sign has the permissions of the role
//
// All keys but those of users are made of one secret, which every core has: so each
// of them alone makes the same accounts and signs credentials, whatever is down, and
// none needs a store to start. A user's key is made by who uses it and goes nowhere.
package grants

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// SecretSize is that of a cluster's secret, in bytes.
const SecretSize = 32

// NewSecret draws the secret of a cluster.
func NewSecret() []byte {
	secret := make([]byte, SecretSize)
	_, _ = rand.Read(secret) // never fails
	return secret
}

// Names of the accounts, for people.
const (
	systemName = "SYS"
	mainName   = "kbroker"
)

// Authority signs for a cluster. Safe for concurrent use.
type Authority struct {
	operator nkeys.KeyPair
	system   nkeys.KeyPair
	main     nkeys.KeyPair
	gate     nkeys.KeyPair
	roles    map[Role]nkeys.KeyPair
	public   map[nkeys.KeyPair]string
}

// New derives the keys of a cluster from its secret. One that was rescued has that of
// the lost one, and so the same accounts.
func New(secret []byte) (*Authority, error) {
	if len(secret) != SecretSize {
		return nil, fmt.Errorf("a secret of %d bytes, want %d", len(secret), SecretSize)
	}
	a := &Authority{roles: map[Role]nkeys.KeyPair{}, public: map[nkeys.KeyPair]string{}}
	var all error
	derive := func(prefix nkeys.PrefixByte, name string) nkeys.KeyPair {
		k, public, err := derive(secret, prefix, name)
		all = errors.Join(all, err)
		a.public[k] = public
		return k
	}
	a.operator = derive(nkeys.PrefixByteOperator, "operator")
	a.system = derive(nkeys.PrefixByteAccount, "account "+systemName)
	a.main = derive(nkeys.PrefixByteAccount, "account "+mainName)
	a.gate = derive(nkeys.PrefixByteUser, "gate")
	for role := range roles {
		a.roles[role] = derive(nkeys.PrefixByteAccount, "role "+string(role))
	}
	if all != nil {
		return nil, fmt.Errorf("derive the keys of a cluster: %w", all)
	}
	return a, nil
}

// derive makes a key by HKDF (RFC 5869) with SHA-256: its name is the info.
func derive(secret []byte, prefix nkeys.PrefixByte, name string) (key nkeys.KeyPair, public string, err error) {
	raw, err := hkdf.Key(sha256.New, secret, nil, "kbroker "+name, 32)
	if err != nil {
		return nil, "", err
	}
	seed, err := nkeys.EncodeSeed(prefix, raw)
	if err != nil {
		return nil, "", err
	}
	if key, err = nkeys.FromSeed(seed); err != nil {
		return nil, "", err
	}
	public, err = key.PublicKey()
	return key, public, err
}

// System is the public key of SYS, Main that of the account of control and
// applications: how servers name them, and their directories.
func (a *Authority) System() string { return a.public[a.system] }
func (a *Authority) Main() string   { return a.public[a.main] }

// Operator is what servers trust.
func (a *Authority) Operator() (*jwt.OperatorClaims, error) {
	o := jwt.NewOperatorClaims(a.public[a.operator])
	o.Name, o.SystemAccount = "kbroker", a.System()
	_, err := o.Encode(a.operator) // which completes it
	return o, err
}

// Accounts are the claims of all accounts, by public key. revoked are users of Main
// that are out, by public key, with the time up to which what was signed for them is.
func (a *Authority) Accounts(revoked map[string]time.Time) map[string]*jwt.AccountClaims {
	system := jwt.NewAccountClaims(a.System())
	system.Name = systemName
	main := jwt.NewAccountClaims(a.Main())
	main.Name = mainName
	main.Limits.JetStreamLimits = jwt.JetStreamLimits{
		MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit, MaxAckPending: jwt.NoLimit,
		MemoryMaxStreamBytes: jwt.NoLimit, DiskMaxStreamBytes: jwt.NoLimit,
	}
	for role, permissions := range roles {
		scope := jwt.NewUserScope()
		scope.Key, scope.Role = a.public[a.roles[role]], string(role)
		scope.Template = permissions.template()
		main.SigningKeys.AddScopedSigner(scope)
	}
	for user, at := range revoked {
		main.RevokeAt(user, at)
	}
	return map[string]*jwt.AccountClaims{a.System(): system, a.Main(): main}
}

// Encode signs the claims of an account.
func (a *Authority) Encode(c *jwt.AccountClaims) (string, error) { return c.Encode(a.operator) }

// User is whom a credential is for. What a role's permissions do not need is empty.
type User struct {
	Role Role
	Name string // for people, and in the servers' lists
	Key  string // the public key of who will use it
	// Life is how long it holds; 0: for ever.
	Life time.Duration
	Tags map[string][]string
}

// Sign makes the credential (a JWT) of a user. Invalid names and keys are errors.
func (a *Authority) Sign(u User, now time.Time) (string, error) {
	permissions, ok := roles[u.Role]
	if !ok {
		return "", fmt.Errorf("there is no role %q", u.Role)
	}
	if !nkeys.IsValidPublicUserKey(u.Key) {
		return "", fmt.Errorf("%q is not the public key of a user", u.Key)
	}
	c := jwt.NewUserClaims(u.Key)
	c.Name, c.IssuerAccount = u.Name, a.Main()
	if u.Life > 0 {
		c.Expires = now.Add(u.Life).Unix()
	}
	for _, tag := range permissions.tags {
		values := u.Tags[tag]
		if len(values) == 0 {
			return "", fmt.Errorf("a user of role %s needs a %s", u.Role, tag)
		}
		for _, v := range values {
			if err := checkTag(tag, v); err != nil {
				return "", fmt.Errorf("%s of a user of role %s: %w", tag, u.Role, err)
			}
			c.Tags.Add(tag + ":" + v)
		}
	}
	c.SetScoped(true)
	return c.Encode(a.roles[u.Role])
}

// Renew signs a credential that still holds again, for another life from now on; only
// those that end have one. Whom it is for, and what it allows, stays.
func (a *Authority) Renew(signed string, now time.Time, life time.Duration) (string, error) {
	c, err := jwt.DecodeUserClaims(signed) // which checks the signature
	if err != nil {
		return "", fmt.Errorf("not a credential: %w", err)
	}
	for role, key := range a.roles {
		switch {
		case c.Issuer != a.public[key]:
			continue
		case c.IssuerAccount != a.Main() || c.Expires == 0:
			return "", fmt.Errorf("a credential of a %s is not renewed", role)
		case !now.Before(time.Unix(c.Expires, 0)):
			return "", fmt.Errorf("it ended at %s", time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
		}
		c.Expires = now.Add(life).Unix()
		return c.Encode(key)
	}
	return "", errors.New("it is not of this cluster")
}

// Signed is what was signed for a start of an instance: on which host, for which key,
// and until when.
func (a *Authority) Signed(credential string) (host, key string, until time.Time, err error) {
	c, err := jwt.DecodeUserClaims(credential) // which checks the signature
	if err != nil {
		return "", "", until, fmt.Errorf("not a credential: %w", err)
	}
	if c.Issuer != a.public[a.roles[Instance]] && c.Issuer != a.public[a.roles[Allocator]] {
		return "", "", until, errors.New("it is not that of an instance of this cluster")
	}
	for _, t := range c.Tags {
		if v, ok := strings.CutPrefix(t, TagHost+":"); ok {
			host = v
		}
	}
	return host, c.Subject, time.Unix(c.Expires, 0), nil
}

// Gate is the credential of everybody who shows none: all cores make the same user.
func (a *Authority) Gate() (string, error) {
	return a.Sign(User{Role: Gate, Name: "nobody", Key: a.public[a.gate]}, time.Now())
}

// SignSystem makes the credential of a user of SYS.
func (a *Authority) SignSystem(key string) (string, error) {
	c := jwt.NewUserClaims(key)
	c.Name = "kbroker"
	return c.Encode(a.system)
}
