package kbroker

import (
	"regexp"
	"time"
)

// Users: people and their tools, by name, each with a key of their own and a role. A key
// is made by who uses it; the cluster has its public half.

const (
	// MaxUsers bounds the users of a tenant whose credentials hold.
	MaxUsers = 1000
	// MaxFormerKeys bounds those of User.Former.
	MaxFormerKeys = 16
	// MinUserTTL and MaxUserTTL bound the life of a user's credential that ends.
	MinUserTTL = time.Minute
	MaxUserTTL = 10 * 365 * 24 * time.Hour
	// MaxUserBy bounds User.By, in bytes.
	MaxUserBy = 128
)

// UserName is unique in a tenant.
type UserName string

// UserRole is what a user may do: what the one before may, and more.
type UserRole string

// The roles. docs/security.md says what each may.
const (
	UserViewer   UserRole = "viewer"
	UserDeployer UserRole = "deployer"
	UserOperator UserRole = "operator"
	UserAdmin    UserRole = "admin"
)

// UserRoles are all of them, the least first.
var UserRoles = []UserRole{UserViewer, UserDeployer, UserOperator, UserAdmin}

// userKeyForm is that of the public key of a NATS user.
var userKeyForm = regexp.MustCompile(`^U[A-Z2-7]{55}$`)

// CheckUserKey reports why key is not the public key of a user, or nil. Whether its
// checksum is right is looked at by who signs for it.
func CheckUserKey(key string) error {
	if userKeyForm.MatchString(key) {
		return nil
	}
	return Errorf(Invalid, "%q is not the public key of a user", key)
}

// User is one. Key user.<tenant>.<name>; written by super, which drops it a day after
// the last of its keys has ended by itself. One that never ends stays on record, also when
// it was revoked: this is what keeps it out.
type User struct {
	Tenant TenantID `json:"tenant"`
	Name   UserName `json:"name"`
	Role   UserRole `json:"role"`
	Key    string   `json:"key"` // public
	// By the wall clock of the leader of that time, in whole seconds as what is signed;
	// Expires is zero if the credential holds for ever.
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	By      string    `json:"by,omitempty"` // who made it, by their own word
	Revoked time.Time `json:"revoked,omitzero"`
	// Former are keys that had the name before, were revoked, and have not ended.
	Former []FormerKey `json:"former,omitempty"`
}

// FormerKey is a key that was revoked, and when what was signed for it ends by itself;
// zero: never.
type FormerKey struct {
	Key     string    `json:"key"`
	Expires time.Time `json:"expires,omitzero"`
}

// Ended reports whether nothing that was signed for the key holds at a time, revoked or
// not.
func (k FormerKey) Ended(now time.Time) bool { return !k.Expires.IsZero() && !now.Before(k.Expires) }

// Current is the key of the user, as one that may be revoked.
func (u User) Current() FormerKey { return FormerKey{u.Key, u.Expires} }

// Out are the keys of the user that were revoked.
func (u User) Out() []FormerKey {
	if u.Revoked.IsZero() {
		return u.Former
	}
	return append(u.Former[:len(u.Former):len(u.Former)], u.Current())
}

// UserState is what a user's credential is good for.
type UserState string

const (
	UserActive  UserState = "active"  // it holds
	UserExpired UserState = "expired" // it has ended by itself
	UserRevoked UserState = "revoked" // an admin took it back
)

// State is what the credential is good for at a time.
func (u User) State(now time.Time) UserState {
	switch {
	case !u.Revoked.IsZero():
		return UserRevoked
	case u.Current().Ended(now):
		return UserExpired
	}
	return UserActive
}

// UserRequest asks super for a user with a key that the client has made: its other half
// stays with it. The same asked again is the same user.
type UserRequest struct {
	Tenant TenantID      `json:"tenant"`
	Name   UserName      `json:"name"`
	Role   UserRole      `json:"role"`
	Key    string        `json:"key"`
	TTL    time.Duration `json:"ttl_ns,omitempty"` // in whole seconds; 0: for ever
	By     string        `json:"by,omitempty"`
	Proof  []byte        `json:"proof"` // of Claim, by Key
}

// UserReply has what was signed for the key.
type UserReply struct {
	Credential string    `json:"credential"` // a JWT
	Expires    time.Time `json:"expires,omitzero"`
}

// RevokeUserRequest asks super to take back what was signed for a user.
type RevokeUserRequest struct {
	Tenant TenantID `json:"tenant"`
	Name   UserName `json:"name"`
}

// RevokeUserReply: nothing of it holds; Unchanged when it was revoked, or had expired,
// before.
type RevokeUserReply struct {
	Unchanged bool `json:"unchanged,omitempty"`
}

// UserRow is one row of `user ls`.
type UserRow struct {
	Name    UserName   `json:"name"`
	Role    UserRole   `json:"role"`
	State   UserState  `json:"state"`
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires"` // null: never
	Revoked *time.Time `json:"revoked"`
	By      string     `json:"by,omitempty"`
	Key     string     `json:"key"` // public
}

// Row is the user in a list.
func (u User) Row(now time.Time) UserRow {
	r := UserRow{Name: u.Name, Role: u.Role, State: u.State(now), Created: u.Created, By: u.By, Key: u.Key}
	if !u.Expires.IsZero() {
		r.Expires = &u.Expires
	}
	if !u.Revoked.IsZero() {
		r.Revoked = &u.Revoked
	}
	return r
}

// CheckUser reports why there can be no user of this name, role and life, or nil. The
// error has code Invalid.
func CheckUser(name UserName, role UserRole, ttl time.Duration) error {
	if err := CheckName("user", string(name)); err != nil {
		return err
	}
	switch role {
	case UserViewer, UserDeployer, UserOperator, UserAdmin:
	default:
		return Errorf(Invalid, "role is %q, want viewer, deployer, operator or admin", role).
			WithHint("each may do what the one before may: look; deploy and call; drain and remove hosts; let hosts and users in")
	}
	hint := "without an end it holds until it is revoked"
	switch {
	case ttl == 0:
	case ttl < MinUserTTL:
		return Errorf(Invalid, "the credential would hold for %v, want %s or more", ttl, short(MinUserTTL)).WithHint("%s", hint)
	case ttl > MaxUserTTL:
		return Errorf(Invalid, "the credential would hold for %v, want %d days or less", ttl, MaxUserTTL/(24*time.Hour)).WithHint("%s", hint)
	case ttl%time.Second != 0:
		return Errorf(Invalid, "the credential would hold for %v, want whole seconds", ttl).WithHint("%s", hint)
	}
	return nil
}
