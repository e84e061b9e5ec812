package node

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/grants"
)

func TestWhatAnInstanceMayCall(t *testing.T) {
	for name, c := range map[string]struct{ calls, want, objects []string }{
		"nothing named":       {nil, []string{"shop.*"}, []string{"shop"}},
		"a service":           {[]string{"bank/ledger"}, []string{"shop.*", "bank.ledger"}, []string{"shop", "bank"}},
		"all of an app":       {[]string{"bank/*"}, []string{"shop.*", "bank.*"}, []string{"shop", "bank"}},
		"all":                 {[]string{"*"}, []string{"shop.*", "*.*"}, []string{"shop", "*"}},
		"several of the kind": {[]string{"a/b", "c/*", "a/d"}, []string{"shop.*", "a.b", "c.*", "a.d"}, []string{"shop", "a", "c"}},
	} {
		p := kbroker.Placement{App: "shop", Spec: kbroker.Service{Calls: c.calls}}
		if got := callsOf(p); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if got := objectsOf(p); !slices.Equal(got, c.objects) {
			t.Errorf("%s: objects of %q, want %q", name, got, c.objects)
		}
	}
}

// TestAKeyIsSignedForWhoHasIt: what a host had signed for another's key it could take back.
func TestAKeyIsSignedForWhoHasIt(t *testing.T) {
	i := newFounder(t, "kb-test")
	i.life = time.Hour
	own, victim := newKey(t), newKey(t)
	ends := time.Now().Add(time.Hour)
	shown, err := i.grants.Sign(grants.User{Role: grants.Deployer, Name: "ann", Key: own.Key(), Until: ends, Tags: map[string][]string{grants.TagTenant: {"default"}}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	placed := kbroker.Placement{Host: "w1", Tenant: "default", App: "shop", Service: "web", Instance: "shop-web-1"}
	user := kbroker.User{Tenant: "default", Name: "bob", Role: kbroker.UserViewer}
	worker := newHost(t, "kb-test", "w1")
	worker.Role = kbroker.RoleWorker
	notRevoked := func(string) bool { return false }
	for what, sign := range map[string]func(key string, by func(kbroker.Claim) []byte) error{
		"a start": func(key string, by func(kbroker.Claim) []byte) error {
			r := kbroker.SignRequest{Tenant: "default", Instance: "shop-web-1", Epoch: 3, Incarnation: "shop-web-1.1", Key: key}
			r.Proof = by(r.Claim("w1"))
			_, err := i.signInstance(placed, r)
			return err
		},
		"a user": func(key string, by func(kbroker.Claim) []byte) error {
			u := user
			u.Key = key
			r := kbroker.UserRequest{Tenant: "default", Name: "bob", Role: kbroker.UserViewer, Key: key}
			r.Proof = by(r.Claim())
			_, err := i.signUser(u, r)
			return err
		},
		"a program": func(key string, by func(kbroker.Claim) []byte) error {
			r := programRequest(t, own, shown)
			r.Key = key
			r.Proof = by(r.Claim())
			_, err := i.signProgram(r, own.Key(), notRevoked)
			return err
		},
		"a worker": func(key string, by func(kbroker.Claim) []byte) error {
			r, _ := request(t, worker)
			r.User = key
			r.UserProof = by(r.Claim())
			if err := prove(mustKey(t, worker), &r); err != nil {
				return err
			}
			return i.admit(r, &kbroker.JoinReply{Admitted: true, Generation: 1})
		},
	} {
		by := func(c credential.Credential) func(kbroker.Claim) []byte {
			return func(claim kbroker.Claim) []byte { return mustProve(t, c, claim) }
		}
		if err := sign(victim.Key(), by(victim)); err != nil {
			t.Errorf("%s, for who has the key: %v", what, err)
		}
		for how, prove := range map[string]func(kbroker.Claim) []byte{
			"without a proof":   func(kbroker.Claim) []byte { return nil },
			"by another key":    by(own),
			"of something else": func(claim kbroker.Claim) []byte { return mustProve(t, victim, append(claim, "")) },
			"of another of its kind": func(claim kbroker.Claim) []byte {
				claim[len(claim)-1] += "x"
				return mustProve(t, victim, claim)
			},
		} {
			err := sign(victim.Key(), prove)
			if !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == "" {
				t.Errorf("%s, with the key of another, %s: %v, want refused with a hint", what, how, err)
			}
		}
	}
	// A proof for one host, or start, is none for the next.
	r := kbroker.SignRequest{Tenant: "default", Instance: "shop-web-1", Epoch: 3, Incarnation: "shop-web-1.1", Key: own.Key()}
	r.Proof = mustProve(t, own, r.Claim("w1"))
	other := placed
	other.Host = "w2"
	if _, err := i.signInstance(other, r); err == nil {
		t.Error("what was proved on one host is signed for another")
	}
}

// TestAProgramHoldsAsLongAsWhoRunsIt: by what they show, whatever is on record, and they
// show what is theirs.
func TestAProgramHoldsAsLongAsWhoRunsIt(t *testing.T) {
	i := newFounder(t, "kb-test")
	i.life = time.Hour
	ann, bob := newKey(t), newKey(t)
	sign := func(by *identity, role grants.Role, key string, life time.Duration, at time.Time) string {
		t.Helper()
		tags := map[string][]string{grants.TagTenant: {"default"}, grants.TagHost: {"w1"}}
		if role == grants.Instance {
			tags = map[string][]string{
				grants.TagTenant: {"default"}, grants.TagHost: {"_"}, grants.TagApp: {"shop"}, grants.TagService: {"web"},
				grants.TagInstance: {"shop-web-1"}, grants.TagIncarnation: {"shop-web-1.1"}, grants.TagCall: {"*.*"}, grants.TagObjects: {"*"}, grants.TagTopic: {"*.*"},
			}
		}
		signed, err := by.grants.Sign(grants.User{Role: role, Name: "ann", Key: key, Life: life, Tags: tags}, at)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	now := time.Now()
	shown := sign(i, grants.Deployer, ann.Key(), 30*time.Minute, now)
	_, end := ann.Signed(shown).Holds()
	program := newKey(t)
	revoked := func(key string) bool { return key == bob.Key() }
	signed, err := i.signProgram(programRequest(t, program, shown), ann.Key(), revoked)
	if err != nil {
		t.Fatal(err)
	}
	for _, isOut := range []bool{false, true} {
		renewed, err := i.grants.Renew(signed, now.Add(time.Minute), time.Hour, func(key string) bool { return isOut && key == ann.Key() })
		if isOut != (err != nil) {
			t.Errorf("renewed, and ann is out: %v: %v", isOut, err)
		}
		if err == nil {
			if _, until := program.Signed(renewed).Holds(); !until.Equal(end) {
				t.Errorf("renewed it holds until %v, want %v", until, end)
			}
		}
	}
	for _, role := range []grants.Role{grants.Operator, grants.Admin, grants.Core} {
		signed, err := i.signProgram(programRequest(t, program, sign(i, role, ann.Key(), 0, now)), ann.Key(), revoked)
		if _, until := program.Signed(signed).Holds(); err != nil || until.IsZero() {
			t.Errorf("for a %s without an end: until %v, %v", role, until, err)
		}
	}
	for name, c := range map[string]struct{ shown, asks string }{
		"nothing":                         {"", ann.Key()},
		"no credential":                   {"ann", ann.Key()},
		"what is another's":               {shown, bob.Key()},
		"what has ended":                  {sign(i, grants.Deployer, ann.Key(), time.Minute, now.Add(-time.Hour)), ann.Key()},
		"what was taken back":             {sign(i, grants.Deployer, bob.Key(), 0, now), bob.Key()},
		"a viewer's":                      {sign(i, grants.Viewer, ann.Key(), 0, now), ann.Key()},
		"a worker's":                      {sign(i, grants.Worker, ann.Key(), 0, now), ann.Key()},
		"a program's":                     {sign(i, grants.Instance, ann.Key(), time.Hour, now), ann.Key()},
		"what another cluster has signed": {sign(newFounder(t, "kb-other"), grants.Admin, ann.Key(), 0, now), ann.Key()},
	} {
		if _, err := i.signProgram(programRequest(t, program, c.shown), c.asks, revoked); !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == "" {
			t.Errorf("with %s: %v, want refused with a hint", name, err)
		}
	}
}

// TestWhoIsAnAllocator: whatever program it runs; and nobody else, whatever it calls itself.
func TestWhoIsAnAllocator(t *testing.T) {
	i := newFounder(t, "kb-test")
	placed := func(host kbroker.HostID, service kbroker.ServiceName, a kbroker.Artifact) kbroker.Placement {
		return kbroker.Placement{Tenant: "default", App: "shop", Service: service, Instance: "shop-allocator-1", Host: host, Spec: kbroker.Service{Artifact: a}}
	}
	for name, c := range map[string]struct {
		p    kbroker.Placement
		want grants.Role
	}{
		"the built-in one":          {placed("h1", kbroker.AllocatorService, kbroker.Artifact{Builtin: kbroker.BuiltinAllocator}), grants.Allocator},
		"that of an own policy":     {placed("h1", kbroker.AllocatorService, kbroker.Artifact{SHA256: "one"}), grants.Allocator},
		"a service":                 {placed("h1", "web", kbroker.Artifact{SHA256: "one"}), grants.Instance},
		"a program beside":          {placed(developmentHost, kbroker.AllocatorService, kbroker.Artifact{}), grants.Instance},
		"a program of another name": {placed("h1", "allocators", kbroker.Artifact{SHA256: "one"}), grants.Instance},
	} {
		if got := i.start(c.p, "shop-allocator-1.1", newKey(t).Key()).Role; got != c.want {
			t.Errorf("%s is signed for as %s, want %s", name, got, c.want)
		}
	}
}
