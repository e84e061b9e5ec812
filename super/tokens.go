package super

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

const (
	// tokenKept is how long a token that has ended stays on record: for who asks
	// why, and for the host that was admitted with it and comes to ask again.
	tokenKept = 24 * time.Hour
	// maxTokenRecords bounds the tokens on record; of those that have ended, the
	// oldest make room.
	maxTokenRecords = 2 * kbroker.MaxTokens
)

// decideToken takes a token that a client has made; root is the fingerprint that
// its text needs.
func decideToken(v *state.View, r kbroker.TokenRequest, root string, now time.Time) (decision, error) {
	if err := checkToken(r); err != nil {
		return decision{}, err
	}
	if have, ok := v.Tokens[r.ID]; ok {
		if subtle.ConstantTimeCompare(have.Hash, r.Hash) != 1 {
			return decision{}, kbroker.Errorf(kbroker.Refused, "there is another token %s", r.ID)
		}
		return decision{reply: kbroker.TokenReply{Root: root, Expires: have.Expires}}, nil // asked again
	}
	live := 0
	for _, t := range v.Tokens {
		if t.Live(now) {
			live++
		}
	}
	if live >= kbroker.MaxTokens {
		return decision{}, kbroker.Errorf(kbroker.Refused, "%d tokens wait for a host to join, which is as many as there may be", live).
			WithHint("kbroker token ls shows them, kbroker token revoke ID ends one; others expire")
	}
	t := kbroker.Token{
		ID: r.ID, Hash: r.Hash, Role: r.Role, Name: r.Name, By: r.By,
		Created: now, Expires: now.Add(r.TTL),
	}
	changes := []state.Change{state.PutToken{Token: t}}
	if len(v.Tokens) >= maxTokenRecords {
		changes = append(changes, state.DropToken{ID: oldestEnded(v, now).ID})
	}
	return decision{changes, kbroker.TokenReply{Root: root, Expires: t.Expires}}, nil
}

// checkToken refuses a token that cannot be.
func checkToken(r kbroker.TokenRequest) error {
	if err := kbroker.CheckTokenID(r.ID); err != nil {
		return err
	}
	if r.Name != "" {
		if err := kbroker.CheckName("host", string(r.Name)); err != nil {
			return err
		}
	}
	switch {
	case len(r.Hash) != sha256.Size:
		return kbroker.Errorf(kbroker.Invalid, "the hash of the token has %d bytes, want %d", len(r.Hash), sha256.Size)
	case r.Role != kbroker.RoleCore && r.Role != kbroker.RoleWorker:
		return kbroker.Errorf(kbroker.Invalid, "role is %q, want core or worker", r.Role).WithHint("a token is for a host of one role: --role core or --role worker")
	case len(r.By) > kbroker.MaxTokenBy || strings.ContainsFunc(r.By, unicode.IsControl):
		return kbroker.Errorf(kbroker.Invalid, "who makes the token is told in more than %d bytes, or not in plain text", kbroker.MaxTokenBy)
	}
	return kbroker.CheckTokenTTL(r.TTL)
}

// oldestEnded is the token that ended first.
func oldestEnded(v *state.View, now time.Time) kbroker.Token {
	ended := slices.DeleteFunc(slices.Collect(maps.Values(v.Tokens)), func(t kbroker.Token) bool { return t.Live(now) })
	return slices.MinFunc(ended, func(a, b kbroker.Token) int {
		return cmp.Or(a.End().Compare(b.End()), cmp.Compare(a.ID, b.ID))
	})
}

// decideRevoke ends a token that nobody has used.
func decideRevoke(v *state.View, r kbroker.RevokeRequest, now time.Time) (decision, error) {
	t, ok := v.Tokens[r.ID]
	switch {
	case kbroker.CheckTokenID(r.ID) != nil:
		return decision{}, kbroker.CheckTokenID(r.ID)
	case !ok:
		return decision{}, kbroker.Errorf(kbroker.NotFound, "there is no token %s", r.ID).
			WithHint("`kbroker token ls` lists them; one that has ended is forgotten after %.0f hours", tokenKept.Hours())
	case t.Used != nil:
		return decision{}, kbroker.Errorf(kbroker.Refused, "host %s has joined with token %s", t.Used.Host, t.ID).
			WithHint("kbroker remove %s takes the host out of the cluster", t.Used.Host)
	case !t.Live(now):
		return decision{reply: kbroker.RevokeReply{Unchanged: true}}, nil
	}
	t.Revoked = now
	return decision{[]state.Change{state.PutToken{Token: t}}, kbroker.RevokeReply{}}, nil
}

// tokenRows lists the tokens, the newest last.
func tokenRows(v *state.View, now time.Time) []kbroker.TokenRow {
	tokens := slices.SortedFunc(maps.Values(v.Tokens), func(a, b kbroker.Token) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	rows := []kbroker.TokenRow{}
	for _, t := range tokens {
		rows = append(rows, t.Row(now))
	}
	return rows
}

// forgotten are the tokens that ended long ago.
func forgotten(v *state.View, now time.Time) []state.Change {
	var out []state.Change
	for _, id := range slices.Sorted(maps.Keys(v.Tokens)) {
		if now.Sub(v.Tokens[id].End()) > tokenKept {
			out = append(out, state.DropToken{ID: id})
		}
	}
	return out
}

// tokenFor finds the token with which a host may be admitted, as a generation of its
// name: the one that it shows, or the one that it has used up for this very admission,
// which was then taken back, or of which a crash left no more than that. Refused, with
// what is wrong: nobody without a token of this cluster learns more than that.
//
// A token must be shown in time. A host that did, and was told to wait, waits for as
// long as the token is on record.
func tokenFor(v *state.View, r kbroker.JoinRequest, generation int, now time.Time) (kbroker.Token, error) {
	if t, ok := usedFor(v, r, generation); ok {
		return t, nil
	}
	another := "on a host of the cluster: kbroker token create --role " + string(r.Role)
	refused := func(format string, args ...any) (kbroker.Token, error) {
		return kbroker.Token{}, kbroker.Errorf(kbroker.Refused, format, args...).WithHint("%s", another)
	}
	if r.Token == nil {
		another += "; give it to the host with --token-file"
		return refused("a host needs a token to join")
	}
	t, known := v.Tokens[r.Token.ID]
	switch {
	case !known:
		another = "it may have ended more than a day ago; make another one " + another
		return refused("the cluster knows no such token")
	case !matches(t, r.Token.Secret):
		another = "copy it once more, or make another one " + another
		return refused("the secret of token %s is another one", t.ID)
	case !t.Revoked.IsZero():
		return refused("token %s was revoked", t.ID)
	case t.Used != nil:
		return refused("token %s was used by host %s: a token admits one host, once", t.ID, t.Used.Host)
	case !now.Before(t.Expires) && !t.Waits.By(r.Host, r.Fingerprint, generation):
		return refused("token %s has expired, %v ago", t.ID, max(now.Sub(t.Expires).Round(time.Second), time.Second))
	case t.Role != r.Role:
		another = "join with --role " + string(t.Role) + ", or make another token " + another
		return refused("token %s is for a %s, host %s asks to join as %s", t.ID, t.Role, r.Host, r.Role)
	case t.Name != "" && t.Name != r.Host:
		another += " --name " + string(r.Host)
		return refused("token %s is for host %s, not for %s", t.ID, t.Name, r.Host)
	}
	return t, nil
}

// usedFor finds the token that a host has used up for an admission.
func usedFor(v *state.View, r kbroker.JoinRequest, generation int) (kbroker.Token, bool) {
	for _, t := range v.Tokens {
		if t.Used.By(r.Host, r.Fingerprint, generation) && t.Role == r.Role {
			return t, true
		}
	}
	return kbroker.Token{}, false
}

// matches compares a secret with a token's, in a time that does not tell how much of
// it is right.
func matches(t kbroker.Token, secret []byte) bool {
	sum := sha256.Sum256(secret)
	return subtle.ConstantTimeCompare(sum[:], t.Hash) == 1
}

// shownToken is the token on record that a request shows, with whatever secret.
func shownToken(v *state.View, r kbroker.JoinRequest) (t kbroker.Token, known bool) {
	if r.Token != nil {
		t, known = v.Tokens[r.Token.ID]
	}
	return t, known
}
