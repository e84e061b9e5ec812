package super

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// began is when tokens of these tests are made.
var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// joiner asks to join a cluster of one core.
type joiner struct {
	*cluster
	members Members
	now     time.Time
}

func newJoiner(t *testing.T) *joiner {
	return &joiner{newCluster(t, 1), Members{Known: true, Current: map[kbroker.HostID]bool{"h1": true}}, began}
}

// fresh is a token that was made at began.
func (j *joiner) fresh(role kbroker.Role, name kbroker.HostID) *kbroker.ShownToken {
	return j.token(role, func(t *kbroker.Token) { t.Name, t.Created, t.Expires = name, began, began.Add(kbroker.TokenTTL) })
}

func (j *joiner) ask(r kbroker.JoinRequest) (kbroker.JoinReply, error) {
	d, err := decideJoin(&j.view, r, j.facts(j.members), "kb-test", j.now)
	if err != nil {
		return kbroker.JoinReply{}, err
	}
	j.apply(d.changes)
	return d.reply.(kbroker.JoinReply), nil
}

func hostAsks(host kbroker.HostID, role kbroker.Role, token *kbroker.ShownToken) kbroker.JoinRequest {
	return kbroker.JoinRequest{Host: host, Role: role, Fingerprint: "of " + string(host), Client: string(host) + ":1", Route: string(host) + ":2", Token: token}
}

// TestWhoIsNotAdmitted: each refusal has its own reason and a hint, changes nothing,
// and does not show the secret.
func TestWhoIsNotAdmitted(t *testing.T) {
	const core, worker = kbroker.RoleCore, kbroker.RoleWorker
	for name, tc := range map[string]struct {
		ask  func(j *joiner) kbroker.JoinRequest
		want string
		hint string
	}{
		"a host without a token": {
			func(*joiner) kbroker.JoinRequest { return hostAsks("w1", worker, nil) },
			"needs a token to join", "kbroker token create --role worker",
		},
		"one with a token that nobody made": {
			func(j *joiner) kbroker.JoinRequest {
				j.fresh(worker, "")
				return hostAsks("w1", worker, &kbroker.ShownToken{ID: "aaaaaaaaaaaa", Secret: []byte("x")})
			},
			"knows no such token", "kbroker token create --role worker",
		},
		"one with another secret": {
			func(j *joiner) kbroker.JoinRequest {
				shown := j.fresh(worker, "")
				shown.Secret = []byte("guessed")
				return hostAsks("w1", worker, shown)
			},
			"is another one", "copy it once more",
		},
		"one with no secret": {
			func(j *joiner) kbroker.JoinRequest {
				shown := j.fresh(worker, "")
				shown.Secret = nil
				return hostAsks("w1", worker, shown)
			},
			"is another one", "copy it once more",
		},
		"another host with a token that was used": {
			func(j *joiner) kbroker.JoinRequest {
				shown := j.fresh(worker, "")
				j.must(hostAsks("w1", worker, shown))
				return hostAsks("w2", worker, shown)
			},
			"was used by host w1", "kbroker token create",
		},
		"another host of the name with a token that was used": {
			func(j *joiner) kbroker.JoinRequest {
				r := hostAsks("w1", worker, j.fresh(worker, ""))
				j.must(r)
				r.Fingerprint = "another"
				return r
			},
			"was used by host w1", "kbroker token create",
		},
		"another host in the place of one whose admission was taken back": {
			func(j *joiner) kbroker.JoinRequest {
				r := hostAsks("h2", core, j.fresh(core, ""))
				j.must(r)
				delete(j.view.Hosts, "h2")
				r.Fingerprint = "another"
				return r
			},
			"was used by host h2", "kbroker token create --role core",
		},
		"a host that was removed, with the token that it came with": {
			func(j *joiner) kbroker.JoinRequest {
				r := hostAsks("w1", worker, j.fresh(worker, ""))
				j.must(r)
				j.removed("w1")
				return r
			},
			"was used by host w1", "kbroker token create",
		},
		"one with a token that has expired": {
			func(j *joiner) kbroker.JoinRequest {
				j.now = began.Add(kbroker.TokenTTL)
				return hostAsks("w1", worker, j.fresh(worker, ""))
			},
			"has expired, 1s ago", "kbroker token create",
		},
		"one of another name": {
			func(j *joiner) kbroker.JoinRequest { return hostAsks("w1", worker, j.fresh(worker, "w2")) },
			"is for host w2, not for w1", "kbroker token create --role worker --name w1",
		},
		"a core with a token for a worker": {
			func(j *joiner) kbroker.JoinRequest { return hostAsks("h2", core, j.fresh(worker, "")) },
			"is for a worker, host h2 asks to join as core", "join with --role worker",
		},
		"a worker with a token for a core": {
			func(j *joiner) kbroker.JoinRequest { return hostAsks("w1", worker, j.fresh(core, "")) },
			"is for a core", "join with --role core",
		},
		"one of a name that another key holds": {
			func(j *joiner) kbroker.JoinRequest {
				j.must(hostAsks("w1", worker, j.fresh(worker, "")))
				r := hostAsks("w1", worker, j.fresh(worker, "w1"))
				r.Fingerprint = "another"
				return r
			},
			"a host named w1 is a member already", "kbroker remove w1",
		},
		"one with a token that was revoked": {
			func(j *joiner) kbroker.JoinRequest {
				shown := j.fresh(worker, "")
				d, err := decideRevoke(&j.view, kbroker.RevokeRequest{ID: shown.ID}, j.now)
				if err != nil {
					j.t.Fatal(err)
				}
				j.apply(d.changes)
				return hostAsks("w1", worker, shown)
			},
			"was revoked", "kbroker token create",
		},
		"a host that has used another role's token, as that role": {
			func(j *joiner) kbroker.JoinRequest {
				r := hostAsks("h2", worker, j.fresh(worker, ""))
				j.must(r)
				delete(j.view.Hosts, "h2") // its admission was taken back
				r.Role, r.Token = core, nil
				return r
			},
			"needs a token to join", "kbroker token create --role core",
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJoiner(t)
			r := tc.ask(j)
			d, err := decideJoin(&j.view, r, j.facts(j.members), "kb-test", j.now)
			e := kbroker.AsError(err)
			if err == nil || e.Code != kbroker.Refused || !strings.Contains(e.Message, tc.want) || !strings.Contains(e.Hint, tc.hint) || len(d.changes) > 0 {
				t.Errorf("%v with hint %q and %d changes; want refused with %q, the hint %q and none", err, e.Hint, len(d.changes), tc.want, tc.hint)
			}
			if r.Token != nil && len(r.Token.Secret) > 1 && strings.Contains(fmt.Sprintf("%v %v %v %#v", err, e.Hint, *r.Token, *r.Token), string(r.Token.Secret)) {
				t.Errorf("it shows the secret: %v", err)
			}
		})
	}
}

// must has a host admitted.
func (j *joiner) must(r kbroker.JoinRequest) kbroker.JoinReply {
	j.t.Helper()
	reply, err := j.ask(r)
	if err != nil || !reply.Admitted {
		j.t.Fatalf("%s: %+v, %v; want it admitted", r.Host, reply, err)
	}
	return reply
}

// TestATokenAdmitsItsHost once, in one batch with its use; and again, without it, by
// its key: after a lost answer, after a batch that a crash cut off behind the token, and
// after its admission was taken back.
func TestATokenAdmitsItsHost(t *testing.T) {
	for _, role := range []kbroker.Role{kbroker.RoleCore, kbroker.RoleWorker} {
		j := newJoiner(t)
		shown := j.fresh(role, "h2")
		r := hostAsks("h2", role, shown)
		d, err := decideJoin(&j.view, r, j.facts(j.members), "kb-test", j.now)
		if err != nil || len(d.changes) != 2 {
			t.Fatalf("%s: %v, %v; want the host and the use of its token", role, d.changes, err)
		}
		want := &kbroker.TokenUse{Host: "h2", Fingerprint: "of h2", Generation: 1, At: began}
		state.SortChanges(d.changes)
		put, ok := d.changes[0].(state.PutToken)
		if !ok || !reflect.DeepEqual(put.Token.Used, want) {
			t.Fatalf("%s: the first change is %v, want the token used by %+v", role, d.changes[0], want)
		}
		j.apply(d.changes[:1]) // the leader died here, on a cluster of one core
		j.now = began.Add(time.Hour)
		r.Token = nil // its file is gone
		if reply := j.must(r); reply.Generation != 1 {
			t.Errorf("%s: admitted as %+v, want generation 1", role, reply)
		}
		j.must(r) // the answer was lost
		j.apply([]state.Change{state.DropHost{Host: "h2"}})
		if reply := j.must(r); reply.Generation != 1 {
			t.Errorf("%s: after its admission was taken back: %+v", role, reply)
		}
		j.removed("h2")
		if _, err := j.ask(r); !errors.Is(err, kbroker.Refused) {
			t.Errorf("%s: after it was removed: %v, want refused", role, err)
		}
	}
}

// TestAHostThatWaitsKeepsItsToken: it was shown in time. Another one that shows it
// then has to be in time, too, and only one of them gets in.
func TestAHostThatWaitsKeepsItsToken(t *testing.T) {
	j := newJoiner(t)
	shown := j.fresh(kbroker.RoleCore, "")
	r := hostAsks("h3", kbroker.RoleCore, shown)
	j.must(hostAsks("h2", kbroker.RoleCore, j.fresh(kbroker.RoleCore, ""))) // and is not seen yet
	j.now = began.Add(kbroker.TokenTTL - time.Second)
	if reply, err := j.ask(r); err != nil || reply.Wait == "" {
		t.Fatalf("while another one joins: %+v, %v; want to wait", reply, err)
	}
	if row := tokenRows(&j.view, j.now); row[0].State != kbroker.TokenUsed && row[0].State != kbroker.TokenWaiting || row[1].At == nil {
		t.Errorf("tokens are %+v, want one used and one waiting", row)
	}
	j.now = began.Add(time.Hour)
	for range 3 {
		d, err := decideJoin(&j.view, r, j.facts(j.members), "kb-test", j.now)
		if err != nil || len(d.changes) > 0 {
			t.Fatalf("it asks again: %v, %v; want to wait without a write", d.changes, err)
		}
	}
	if _, err := j.ask(hostAsks("h4", kbroker.RoleCore, shown)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("another host with the same token: %v, want that it has expired", err)
	}
	h2 := j.view.Hosts["h2"]
	h2.State = kbroker.HostReady
	j.apply([]state.Change{state.PutHost{Host: h2}})
	j.members.Current["h2"] = true
	j.must(r)
	if use := j.view.Tokens[shown.ID]; use.Used == nil || use.Used.Host != "h3" || use.Waits != nil {
		t.Errorf("the token is %+v, want it used by h3", use)
	}
}

// TestAWaitingHostHoldsNobodyOff: until it is used, a token is good for who gets in first.
func TestAWaitingHostHoldsNobodyOff(t *testing.T) {
	j := newJoiner(t)
	shown := j.fresh(kbroker.RoleCore, "")
	j.members.Stale = "the broker does not tell"
	if reply, err := j.ask(hostAsks("h2", kbroker.RoleCore, shown)); err != nil || reply.Wait == "" {
		t.Fatalf("%+v, %v; want to wait", reply, err)
	}
	j.members.Stale = ""
	j.must(hostAsks("h3", kbroker.RoleCore, shown))
	if _, err := j.ask(hostAsks("h2", kbroker.RoleCore, shown)); err == nil || !strings.Contains(err.Error(), "used by host h3") {
		t.Errorf("the one that waited: %v, want that h3 has used it", err)
	}
}

func tokenRequest(n int) kbroker.TokenRequest {
	hash := sha256.Sum256(fmt.Append(nil, n))
	return kbroker.TokenRequest{ID: fmt.Sprintf("a%s", strings.NewReplacer("0", "a", "1", "b", "8", "c", "9", "d").Replace(fmt.Sprintf("%011d", n))), Hash: hash[:], Role: kbroker.RoleWorker, TTL: kbroker.TokenTTL}
}

func TestDecideToken(t *testing.T) {
	j := newJoiner(t)
	r := tokenRequest(1)
	r.Name, r.By = "w1", "ann@laptop"
	for range 2 { // sent again after a lost answer
		d, err := decideToken(&j.view, r, "root", began)
		if err != nil || d.reply != (kbroker.TokenReply{Root: "root", Expires: began.Add(kbroker.TokenTTL)}) {
			t.Fatalf("%+v, %v", d.reply, err)
		}
		j.apply(d.changes)
	}
	if got := j.view.Tokens[r.ID]; len(j.view.Tokens) != 1 || got.Name != "w1" || got.By != "ann@laptop" || got.Role != kbroker.RoleWorker || !got.Created.Equal(began) {
		t.Errorf("tokens are %+v", j.view.Tokens)
	}
	for name, change := range map[string]func(*kbroker.TokenRequest){
		"a token that ends at once":     func(r *kbroker.TokenRequest) { r.TTL = 0 },
		"one that ended before":         func(r *kbroker.TokenRequest) { r.TTL = -time.Minute },
		"one for longer than a day":     func(r *kbroker.TokenRequest) { r.TTL = kbroker.MaxTokenTTL + 1 },
		"one for no role":               func(r *kbroker.TokenRequest) { r.Role = "" },
		"one for a name that is none":   func(r *kbroker.TokenRequest) { r.Name = "W.1" },
		"one of a name that is none":    func(r *kbroker.TokenRequest) { r.ID = "a.b" },
		"one without a hash":            func(r *kbroker.TokenRequest) { r.Hash = nil },
		"one made by too many words":    func(r *kbroker.TokenRequest) { r.By = strings.Repeat("x", kbroker.MaxTokenBy+1) },
		"one made by a terminal's code": func(r *kbroker.TokenRequest) { r.By = "\x1b[2J" },
	} {
		r := tokenRequest(2)
		change(&r)
		if d, err := decideToken(&j.view, r, "root", began); !errors.Is(err, kbroker.Invalid) || len(d.changes) > 0 {
			t.Errorf("%s: %v, %v; want invalid", name, d.changes, err)
		}
	}
	other := r
	other.Hash = tokenRequest(2).Hash
	if _, err := decideToken(&j.view, other, "root", began); !errors.Is(err, kbroker.Refused) {
		t.Errorf("another token of the same name: %v, want refused", err)
	}
}

// TestTokensAreBounded: those that are live, and with those that have ended.
func TestTokensAreBounded(t *testing.T) {
	j := newJoiner(t)
	put := func(n int) error {
		d, err := decideToken(&j.view, tokenRequest(n), "root", j.now)
		j.apply(d.changes)
		return err
	}
	for n := range kbroker.MaxTokens {
		if err := put(n); err != nil {
			t.Fatalf("token %d: %v", n, err)
		}
	}
	if err := put(kbroker.MaxTokens); !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == "" {
		t.Errorf("one more: %v, want refused with a hint", err)
	}
	for n := kbroker.MaxTokens; n < 4*kbroker.MaxTokens; n++ {
		if n%kbroker.MaxTokens == 0 {
			j.now = j.now.Add(kbroker.TokenTTL)
		}
		if err := put(n); err != nil {
			t.Fatalf("token %d, after others have expired: %v", n, err)
		}
		if len(j.view.Tokens) > maxTokenRecords {
			t.Fatalf("%d tokens are on record, at most %d may be", len(j.view.Tokens), maxTokenRecords)
		}
	}
	if _, ok := j.view.Tokens[tokenRequest(0).ID]; ok {
		t.Error("the oldest token is still on record")
	}
}

func TestDecideRevoke(t *testing.T) {
	j := newJoiner(t)
	unused, used, expired := j.fresh(kbroker.RoleWorker, ""), j.fresh(kbroker.RoleWorker, ""), j.token(kbroker.RoleWorker, nil)
	j.must(hostAsks("w1", kbroker.RoleWorker, used))
	for _, step := range []struct {
		name, id  string
		want      kbroker.Code
		unchanged bool
	}{
		{"one that nobody used", unused.ID, "", false},
		{"the same again", unused.ID, "", true},
		{"one that has expired", expired.ID, "", true},
		{"one that was used", used.ID, kbroker.Refused, false},
		{"one that nobody made", "aaaaaaaaaaaa", kbroker.NotFound, false},
		{"what is no name", "kbt1.aaaaaaaaaaaa.secret", kbroker.Invalid, false},
	} {
		d, err := decideRevoke(&j.view, kbroker.RevokeRequest{ID: step.id}, began)
		j.apply(d.changes)
		switch e := kbroker.AsError(err); {
		case step.want != "" && (!errors.Is(err, step.want) || e.Hint == "" || strings.Contains(err.Error(), "secret")):
			t.Errorf("%s: %v, want %s with a hint", step.name, err, step.want)
		case step.want == "" && (err != nil || d.reply.(kbroker.RevokeReply).Unchanged != step.unchanged):
			t.Errorf("%s: %+v, %v; want unchanged %t", step.name, d.reply, err, step.unchanged)
		}
	}
}

// TestTokensAreForgotten a day after they ended, in the ordinary rounds.
func TestTokensAreForgotten(t *testing.T) {
	j := newJoiner(t)
	unused, used, revoked := j.fresh(kbroker.RoleWorker, ""), j.fresh(kbroker.RoleWorker, ""), j.fresh(kbroker.RoleWorker, "")
	j.now = began.Add(time.Minute)
	j.must(hostAsks("w1", kbroker.RoleWorker, used))
	d, err := decideRevoke(&j.view, kbroker.RevokeRequest{ID: revoked.ID}, began.Add(2*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	j.apply(d.changes)
	for _, step := range []struct {
		after time.Duration
		left  int
		state kbroker.TokenState // of the first
	}{
		{0, 3, kbroker.TokenUnused},
		{kbroker.TokenTTL, 3, kbroker.TokenExpired},
		{tokenKept + time.Minute, 3, kbroker.TokenExpired},
		{tokenKept + time.Minute + 1, 2, kbroker.TokenExpired},
		{tokenKept + 2*time.Minute + 1, 1, kbroker.TokenExpired},
		{tokenKept + kbroker.TokenTTL, 1, kbroker.TokenExpired},
		{tokenKept + kbroker.TokenTTL + 1, 0, ""},
	} {
		w := j.world()
		w.Now = began.Add(step.after)
		j.apply(Plan(w))
		if w = j.world(); len(w.View.Tokens) != step.left {
			t.Errorf("after %v: %d tokens are left, want %d", step.after, len(w.View.Tokens), step.left)
		}
		if first, ok := j.view.Tokens[unused.ID]; ok && first.State(began.Add(step.after)) != step.state {
			t.Errorf("after %v: the first is %s, want %s", step.after, first.State(began.Add(step.after)), step.state)
		}
	}
}
