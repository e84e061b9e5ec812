package super

import (
	"encoding/json"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// Who has no token can ask as often as they like. What they guess is bounded: whose
// token is unknown shares a bucket with all others of the kind, and a known token of
// which the secret is wrong too often is good for nothing while this leader leads. A
// host with a token that is known shares nothing with them.

const (
	// strangers may ask so many times at once, and so many times a second.
	strangersBurst     = 20
	strangersPerSecond = 5
	// maxWrongSecrets is how often the secret of a token may be wrong.
	maxWrongSecrets = 10
	// guessesTold is the pause between two words about those that were turned away.
	guessesTold = 10 * time.Second
)

// guesses are those of one leader's term. Safe for concurrent use.
type guesses struct {
	mu     sync.Mutex
	left   float64        // of the bucket
	at     time.Duration  // when it was filled
	wrong  map[string]int // secrets, by token; tokens that were never on record are not in it
	turned int            // away, since that was last told
	told   time.Duration
}

func newGuesses(now time.Duration) *guesses {
	return &guesses{left: strangersBurst, at: now, told: now, wrong: map[string]int{}}
}

// stranger lets one more in, or not.
func (g *guesses) stranger(now time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = min(strangersBurst, g.left+strangersPerSecond*(now-g.at).Seconds())
	g.at = now
	if g.left < 1 {
		g.turned++
		return false
	}
	g.left--
	return true
}

// tell returns how many strangers were turned away, from time to time, else 0.
func (g *guesses) tell(now time.Duration) (turned int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now-g.told < guessesTold {
		return 0
	}
	turned, g.turned, g.told = g.turned, 0, now
	return turned
}

// locked is why a token is good for nothing any more, or nil.
func (g *guesses) locked(t kbroker.Token) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wrong[t.ID] < maxWrongSecrets {
		return nil
	}
	return kbroker.Errorf(kbroker.Refused, "token %s is locked: its secret was wrong %d times", t.ID, maxWrongSecrets).
		WithHint("kbroker token revoke %s, and make another one: kbroker token create --role %s", t.ID, t.Role)
}

// look counts a wrong secret of a token on record. Refused: it is locked, with
// whatever secret.
func (g *guesses) look(v *state.View, r kbroker.JoinRequest) error {
	t, known := shownToken(v, r)
	if !known || sameHost(v.Hosts[r.Host], r) {
		return nil
	}
	if err := g.locked(t); err != nil || matches(t, r.Token.Secret) {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.wrong, func(id string, _ int) bool { _, ok := v.Tokens[id]; return !ok })
	g.wrong[t.ID]++
	return nil
}

// check turns a request to join away that shows nothing good, or lets it through;
// cheap, by what this core knows now. Refused - its token is locked; Overloaded - too
// many ask with no token that is known.
//
// proved says why a request is not that of the host whose fingerprint it names, which
// anybody can learn; nil: it is always believed. It is asked only of who names one.
func (g *guesses) check(v *state.View, r kbroker.JoinRequest, now time.Duration, proved func(kbroker.JoinRequest) error) error {
	host := v.Hosts[r.Host]
	if (sameHost(host, r) || wasRemoved(host, r) && host.Fingerprint == r.Fingerprint) && (proved == nil || proved(r) == nil) {
		return nil
	}
	if _, used := usedFor(v, r, host.Generation+1); used {
		return nil
	}
	if t, known := shownToken(v, r); known {
		return g.locked(t)
	}
	if !g.stranger(now) {
		return kbroker.Errorf(kbroker.Overloaded, "too many hosts ask to join without a token that the cluster knows").
			WithHint("with a new token there is no wait: kbroker token create")
	}
	return nil
}

// turnAway answers a request to join that is not worth a view of the store, and
// reports whether it did.
func (t *term) turnAway(m *nats.Msg) bool {
	verb, tenant, ok := subjects.ParseAPI(m.Subject)
	if !ok || verb != subjects.VerbJoin || knownTenant(tenant) != nil {
		return false
	}
	var r kbroker.JoinRequest
	if json.Unmarshal(m.Data, &r) != nil {
		return false
	}
	now := t.cfg.Clock()
	err := t.guesses.check(t.store.Peek(), r, now, t.cfg.Proved)
	if turned := t.guesses.tell(now); turned > 0 {
		t.log.Warn("hosts ask to join with tokens that nobody made; they are turned away", "count", turned)
	}
	if err != nil {
		t.auditRefused(m, err)
		respondError(t.log, m, err)
	}
	return err != nil
}

// tellJoinRefused logs who was refused, and why.
func (t *term) tellJoinRefused(m *nats.Msg, err error) {
	verb, _, ok := subjects.ParseAPI(m.Subject)
	if !ok || verb != subjects.VerbJoin {
		return
	}
	var r kbroker.JoinRequest
	if json.Unmarshal(m.Data, &r) != nil || kbroker.CheckName("host", string(r.Host)) != nil {
		r.Host = ""
	}
	t.log.Warn("join refused", "host", r.Host, "err", err)
}
