// Package grants makes who may do what on a cluster's bus: the NATS operator, its
// accounts, and the credentials of everybody who connects.
//
//	operator          trusted by all servers
//	  SYS             the servers' own account
//	  control         cores and workers; everything that is stored
//	  gate            who shows no credential
//	  tenant T        its applications and its people
//	    role keys     in each account, one per role: whom they sign has its permissions
//
// Nothing of JetStream is in a tenant's account, and what crosses from one account to
// another is in accounts.go.
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
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
)

// SecretSize is that of a cluster's secret, in bytes.
const SecretSize = 32

// NewSecret draws the secret of a cluster.
func NewSecret() []byte {
	secret := make([]byte, SecretSize)
	_, _ = rand.Read(secret) // never fails
	return secret
}

// Authority signs for a cluster. Safe for concurrent use.
type Authority struct {
	operator key
	system   key
	gate     key // of the user whom all are who show no credential
	accounts []account
}

// key is one with its public half.
type key struct {
	nkeys.KeyPair
	public string
}

// account is one of those that have users of a role.
type account struct {
	key
	name   string
	tenant kbroker.TenantID // empty: none
	roles  map[Role]key
}

// New derives the keys of a cluster from its secret: the default tenant is there
// without being named. One that was rescued has the secret of the lost one, and so the
// same accounts.
func New(secret []byte, tenants ...kbroker.TenantID) (*Authority, error) {
	if len(secret) != SecretSize {
		return nil, fmt.Errorf("a secret of %d bytes, want %d", len(secret), SecretSize)
	}
	var all error
	derive := func(prefix nkeys.PrefixByte, name string) key {
		k, err := derive(secret, prefix, name)
		all = errors.Join(all, err)
		return k
	}
	a := &Authority{
		operator: derive(nkeys.PrefixByteOperator, "operator"),
		system:   derive(nkeys.PrefixByteAccount, "account "+systemName),
		gate:     derive(nkeys.PrefixByteUser, "gate"),
	}
	add := func(name string, tenant kbroker.TenantID, roles []Role) {
		acc := account{key: derive(nkeys.PrefixByteAccount, "account "+name), name: name, tenant: tenant, roles: map[Role]key{}}
		for _, role := range roles {
			acc.roles[role] = derive(nkeys.PrefixByteAccount, "role "+string(role)+" of "+name)
		}
		a.accounts = append(a.accounts, acc)
	}
	add(controlName, "", []Role{Core, Worker})
	add(gateName, "", []Role{Gate})
	for _, t := range tenants {
		all = errors.Join(all, kbroker.CheckName("tenant", string(t)))
	}
	for _, t := range append([]kbroker.TenantID{kbroker.DefaultTenant}, tenants...) {
		add(tenantName+string(t), t, []Role{Instance, Allocator, Viewer, Deployer, Operator, Admin})
	}
	if all != nil {
		return nil, fmt.Errorf("derive the keys of a cluster: %w", all)
	}
	return a, nil
}

// derive makes a key by HKDF (RFC 5869) with SHA-256: its name is the info.
func derive(secret []byte, prefix nkeys.PrefixByte, name string) (key, error) {
	raw, err := hkdf.Key(sha256.New, secret, nil, "kbroker "+name, 32)
	if err != nil {
		return key{}, err
	}
	seed, err := nkeys.EncodeSeed(prefix, raw)
	if err != nil {
		return key{}, err
	}
	pair, err := nkeys.FromSeed(seed)
	if err != nil {
		return key{}, err
	}
	public, err := pair.PublicKey()
	return key{pair, public}, err
}

// System is the public key of SYS, Control that of the account of cores and workers:
// how servers name them, and their directories.
func (a *Authority) System() string  { return a.system.public }
func (a *Authority) Control() string { return a.accounts[0].public }

// Operator is what servers trust.
func (a *Authority) Operator() (*jwt.OperatorClaims, error) {
	o := jwt.NewOperatorClaims(a.operator.public)
	o.Name, o.SystemAccount = "kbroker", a.System()
	_, err := o.Encode(a.operator) // which completes it
	return o, err
}

// User is whom a credential is for. What a role's permissions do not need is empty.
type User struct {
	Role Role
	Name string // for people, and in the servers' lists
	Key  string // the public key of who will use it
	By   string // the public key of the person for whose program it is; empty: of nobody
	// Until is an end that no renewal moves; zero: there is none.
	Until time.Time
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
	acc, role, err := a.of(u)
	if err != nil {
		return "", err
	}
	if !nkeys.IsValidPublicUserKey(u.Key) {
		return "", fmt.Errorf("%q is not the public key of a user", u.Key)
	}
	if u.Role != Gate && u.Key == a.gate.public {
		return "", errors.New("it is the key that all are let in with who show no credential")
	}
	c := jwt.NewUserClaims(u.Key)
	c.Name, c.IssuerAccount = u.Name, acc.public
	if u.Life > 0 {
		c.Expires = now.Add(u.Life).Unix()
	}
	if !u.Until.IsZero() {
		if !now.Before(u.Until) {
			return "", fmt.Errorf("it ended at %s", u.Until.UTC().Format(time.RFC3339))
		}
		if end := u.Until.Unix(); c.Expires == 0 || end < c.Expires {
			c.Expires = end
		}
		c.Tags.Add(fmt.Sprintf("%s:%d", TagUntil, u.Until.Unix()))
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
	if u.By != "" {
		if !nkeys.IsValidPublicUserKey(u.By) {
			return "", fmt.Errorf("it is for %q, which is not the public key of a user", u.By)
		}
		c.Tags.Add(TagBy + ":" + u.By)
	}
	if u.Role.ofPeople() {
		c.Tags.Add(TagRole + ":" + string(u.Role))
	}
	c.SetScoped(true)
	return c.Encode(role)
}

// of is the account of a user, and the key of its role there.
func (a *Authority) of(u User) (account, key, error) {
	for _, acc := range a.accounts {
		if role, ok := acc.roles[u.Role]; ok && (acc.tenant == "" || slices.Equal(u.Tags[TagTenant], []string{string(acc.tenant)})) {
			return acc, role, nil
		}
	}
	return account{}, key{}, fmt.Errorf("there is no account for role %s of tenant %q", u.Role, u.Tags[TagTenant])
}

// issuer is the account and the role whose key has signed a credential.
func (a *Authority) issuer(c *jwt.UserClaims) (account, Role, bool) {
	for _, acc := range a.accounts {
		for role, k := range acc.roles {
			if c.Issuer == k.public && c.IssuerAccount == acc.public {
				return acc, role, true
			}
		}
	}
	return account{}, "", false
}

// Renew signs the credential of a start of an instance that still holds again, for another
// life from now on. Whom it is for, and what it allows, stays. All others end when they
// end: those of people are on record with it. revoked reports whether what was signed for
// a key was taken back: neither its own nor that of the person it is for may be.
func (a *Authority) Renew(signed string, now time.Time, life time.Duration, revoked func(key string) bool) (string, error) {
	c, err := jwt.DecodeUserClaims(signed) // which checks the signature
	if err != nil {
		return "", fmt.Errorf("not a credential: %w", err)
	}
	acc, role, ok := a.issuer(c)
	switch {
	case !ok:
		return "", errors.New("it is not of this cluster")
	case role != Instance && role != Allocator || c.Expires == 0:
		return "", fmt.Errorf("a credential of a %s is not renewed", role)
	case !now.Before(time.Unix(c.Expires, 0)):
		return "", fmt.Errorf("it ended at %s", time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
	}
	end := now.Add(life).Unix()
	for _, t := range c.Tags {
		if until, ok := strings.CutPrefix(t, TagUntil+":"); ok {
			last, err := strconv.ParseInt(until, 10, 64)
			if err != nil {
				return "", fmt.Errorf("its end is no time: %w", err)
			}
			end = min(end, last)
		}
		if by, ok := strings.CutPrefix(t, TagBy+":"); ok && revoked(strings.ToUpper(by)) {
			return "", errors.New("the user whose program it is was revoked")
		}
	}
	if revoked(c.Subject) {
		return "", errors.New("it was taken back")
	}
	c.Expires = end
	return c.Encode(acc.roles[role])
}

// Developer is who may run programs beside the cluster by a credential of the tenant: the
// key that it is for, and when it ends; zero: never.
func (a *Authority) Developer(credential string, tenant kbroker.TenantID, now time.Time) (key string, until time.Time, err error) {
	c, err := jwt.DecodeUserClaims(credential) // which checks the signature
	if err != nil {
		return "", until, fmt.Errorf("not a credential: %w", err)
	}
	acc, role, ok := a.issuer(c)
	if c.Expires != 0 {
		until = time.Unix(c.Expires, 0)
	}
	switch {
	case !ok:
		return "", until, errors.New("it is not of this cluster")
	case role != Core && role != Deployer && role != Operator && role != Admin:
		return "", until, fmt.Errorf("a %s may not", role)
	case role != Core && acc.tenant != tenant:
		return "", until, fmt.Errorf("it is of tenant %q", acc.tenant)
	case !until.IsZero() && !now.Before(until):
		return "", until, fmt.Errorf("it ended at %s", until.UTC().Format(time.RFC3339))
	}
	return c.Subject, until, nil
}

// Signed is what was signed for a start of an instance: which one, on which host, for
// which key, and until when.
func (a *Authority) Signed(credential string) (of kbroker.InstanceFile, key string, until time.Time, err error) {
	c, err := jwt.DecodeUserClaims(credential) // which checks the signature
	if err != nil {
		return of, "", until, fmt.Errorf("not a credential: %w", err)
	}
	if _, role, _ := a.issuer(c); role != Instance && role != Allocator {
		return of, "", until, errors.New("it is not that of an instance of this cluster")
	}
	for _, t := range c.Tags {
		switch name, v, _ := strings.Cut(t, ":"); name {
		case TagTenant:
			of.Tenant = kbroker.TenantID(v)
		case TagHost:
			of.Host = kbroker.HostID(v)
		case TagApp:
			of.App = kbroker.AppName(v)
		case TagService:
			of.Service = kbroker.ServiceName(v)
		case TagInstance:
			of.Instance = kbroker.InstanceID(v)
		case TagIncarnation:
			of.Incarnation = kbroker.Incarnation(v)
		}
	}
	return of, c.Subject, time.Unix(c.Expires, 0), nil
}

// Caller is whom a credential is for; false: it is not of this cluster.
func (a *Authority) Caller(credential string) (kbroker.Caller, bool) {
	c, err := jwt.DecodeUserClaims(credential) // which checks the signature
	if err != nil {
		return kbroker.Caller{}, false
	}
	_, role, ok := a.issuer(c)
	if !ok {
		return kbroker.Caller{}, false
	}
	out := kbroker.Caller{Name: c.Name, Role: string(role), Key: c.Subject}
	for _, tag := range c.Tags {
		switch name, value, _ := strings.Cut(tag, ":"); name {
		case TagTenant:
			out.Tenant = kbroker.TenantID(value)
		case TagApp:
			out.App = kbroker.AppName(value)
		case TagInstance:
			out.Instance = kbroker.InstanceID(value)
		case TagHost:
			out.Host = kbroker.HostID(value)
		}
	}
	return out, true
}

// Gate is the credential of everybody who shows none: all cores make the same user.
func (a *Authority) Gate() (string, error) {
	return a.Sign(User{Role: Gate, Name: "nobody", Key: a.gate.public}, time.Now())
}

// SignSystem makes the credential of a user of SYS.
func (a *Authority) SignSystem(key string) (string, error) {
	c := jwt.NewUserClaims(key)
	c.Name = "kbroker"
	return c.Encode(a.system)
}
