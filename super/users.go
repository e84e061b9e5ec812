package super

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

const (
	// userKept is how long a user whose credentials have all ended stays on record: for
	// who asks why.
	userKept = 24 * time.Hour
	// maxUserRecords bounds the users on record. Those that were revoked and never end
	// make no room.
	maxUserRecords = 2 * kbroker.MaxUsers
)

// user takes a user, and answers with what is signed for the key. It is signed before the
// user is on record, and leaves after.
func (t *term) user(v *state.View, r kbroker.UserRequest, now time.Time) (decision, error) {
	d, u, err := decideUser(v, r, now)
	if err != nil {
		return decision{}, err
	}
	if t.cfg.SignUser == nil {
		return decision{}, signsNothing(t.cfg.Host)
	}
	signed, err := t.cfg.SignUser(u, r)
	if err != nil {
		return decision{}, unsigned(err, "user %s: %v", u.Name, err)
	}
	d.reply = kbroker.UserReply{Credential: signed, Expires: u.Expires}
	return d, nil
}

// decideUser takes a user with a key that a client has made. Asked again, it is the user
// that is on record.
func decideUser(v *state.View, r kbroker.UserRequest, now time.Time) (decision, kbroker.User, error) {
	if err := checkUser(r); err != nil {
		return decision{}, kbroker.User{}, err
	}
	k := state.UserKey{Tenant: r.Tenant, Name: r.Name}
	have, known := v.Users[k]
	if known && have.State(now) == kbroker.UserActive {
		if have.Key == r.Key && have.Role == r.Role && have.Expires.Equal(expires(have.Created, r.TTL)) {
			return decision{}, have, nil
		}
		return decision{}, kbroker.User{}, kbroker.Errorf(kbroker.Conflict, "there is a user %s already, a %s since %s", have.Name, have.Role, have.Created.Format(time.RFC3339)).
			WithHint("kbroker user revoke %s takes that credential back; then the name can be given again", have.Name)
	}
	if owner, ok := ownerOf(v, r.Key); ok {
		return decision{}, kbroker.User{}, kbroker.Errorf(kbroker.Refused, "the key is, or was, that of user %s", owner).WithHint("each user has a key of their own: let a new one be made")
	}
	live := 0
	for _, u := range v.Users {
		if u.State(now) == kbroker.UserActive {
			live++
		}
	}
	switch {
	case live >= kbroker.MaxUsers:
		return decision{}, kbroker.User{}, kbroker.Errorf(kbroker.Refused, "there are %d users, which is as many as there may be", live).
			WithHint("kbroker user ls shows them, kbroker user revoke NAME ends one")
	case !known && len(v.Users) >= maxUserRecords:
		return decision{}, kbroker.User{}, kbroker.Errorf(kbroker.Refused, "%d names of users are on record, which is as many as there may be", len(v.Users)).
			WithHint("a user that was revoked and never ends stays on record (kbroker user ls --all): give one of these names again, and users an end with --ttl")
	}
	created := now.Truncate(time.Second)
	u := kbroker.User{
		Tenant: r.Tenant, Name: r.Name, Role: r.Role, Key: r.Key, By: r.By, Created: created, Expires: expires(created, r.TTL),
		Former: slices.DeleteFunc(slices.Clone(have.Out()), func(k kbroker.FormerKey) bool { return k.Ended(now) }),
	}
	if len(u.Former) > kbroker.MaxFormerKeys {
		return decision{}, kbroker.User{}, kbroker.Errorf(kbroker.Refused, "%d keys of user %s were revoked and have not ended, which is as many as there may be", kbroker.MaxFormerKeys, u.Name).
			WithHint("take another name, and give users an end with --ttl")
	}
	return decision{changes: []state.Change{state.PutUser{User: u}}}, u, nil
}

// checkUser refuses a user that cannot be.
func checkUser(r kbroker.UserRequest) error {
	if err := kbroker.CheckUser(r.Name, r.Role, r.TTL); err != nil {
		return err
	}
	if len(r.By) > kbroker.MaxUserBy || strings.ContainsFunc(r.By, unicode.IsControl) {
		return kbroker.Errorf(kbroker.Invalid, "who makes the user is told in more than %d bytes, or not in plain text", kbroker.MaxUserBy)
	}
	return kbroker.CheckUserKey(r.Key)
}

// expires is the end of what was signed at a time; zero: never.
func expires(created time.Time, ttl time.Duration) time.Time {
	if ttl == 0 {
		return time.Time{}
	}
	return created.Add(ttl)
}

// ownerOf finds the user that has, or had, a key: what is taken back of one user must
// not be given to another one, and cuts off nobody else.
func ownerOf(v *state.View, key string) (kbroker.UserName, bool) {
	for k, u := range v.Users {
		if u.Key == key || slices.ContainsFunc(u.Former, func(f kbroker.FormerKey) bool { return f.Key == key }) {
			return k.Name, true
		}
	}
	return "", false
}

// decideRevokeUser takes back what was signed for a user.
func decideRevokeUser(v *state.View, r kbroker.RevokeUserRequest, now time.Time) (decision, error) {
	if err := kbroker.CheckName("user", string(r.Name)); err != nil {
		return decision{}, err
	}
	u, ok := v.Users[state.UserKey{Tenant: r.Tenant, Name: r.Name}]
	switch {
	case !ok:
		return decision{}, kbroker.Errorf(kbroker.NotFound, "there is no user %s", r.Name).
			WithHint("`kbroker user ls` lists them; what `kbroker agent creds` makes on a core host is on no record, and cannot be revoked")
	case u.State(now) != kbroker.UserActive:
		return decision{reply: kbroker.RevokeUserReply{Unchanged: true}}, nil
	}
	u.Revoked = now.Truncate(time.Second)
	return decision{[]state.Change{state.PutUser{User: u}}, kbroker.RevokeUserReply{}}, nil
}

// userRows lists the users of a tenant by name; those that were revoked and never end
// only if all are asked for.
func userRows(v *state.View, r kbroker.ListRequest, now time.Time) []kbroker.UserRow {
	users := slices.SortedFunc(maps.Values(v.Users), func(a, b kbroker.User) int { return cmp.Compare(a.Name, b.Name) })
	rows := []kbroker.UserRow{}
	for _, u := range users {
		if u.Tenant == r.Tenant && (r.All || u.Revoked.IsZero() || !u.Expires.IsZero()) {
			rows = append(rows, u.Row(now))
		}
	}
	return rows
}

// revokedUsers are the keys of users that are out, with a time after all that was signed
// for them.
func revokedUsers(v *state.View) map[string]time.Time {
	out := map[string]time.Time{}
	for _, u := range v.Users {
		for _, k := range u.Out() {
			if out[k.Key] = k.Expires; k.Expires.IsZero() {
				out[k.Key] = forGood
			}
		}
	}
	return out
}

// forgottenUsers are the users of whom nothing has held for long.
func forgottenUsers(v *state.View, now time.Time) []state.Change {
	var out []state.Change
	for k, u := range v.Users {
		holds := func(k kbroker.FormerKey) bool { return !k.Ended(now.Add(-userKept)) }
		if !slices.ContainsFunc(append(slices.Clone(u.Former), u.Current()), holds) {
			out = append(out, state.DropUser{Key: k})
		}
	}
	slices.SortFunc(out, func(a, b state.Change) int { return cmp.Compare(a.String(), b.String()) })
	return out
}
