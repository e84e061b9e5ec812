package super

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// publicKey looks like that of a user, another one for each n.
func publicKey(n int) string {
	digits := strings.NewReplacer("0", "A", "1", "B", "8", "C", "9", "D")
	return "U" + digits.Replace(fmt.Sprintf("%055d", n))
}

// registry decides on users, one request upon another.
type registry struct {
	*cluster
	now time.Time
}

func newRegistry(t *testing.T) *registry { return &registry{newCluster(t, 1), began} }

func (r *registry) create(name kbroker.UserName, key int, ttl time.Duration) (kbroker.User, error) {
	return r.ask(kbroker.UserRequest{Tenant: tenant, Name: name, Role: kbroker.UserViewer, Key: publicKey(key), TTL: ttl})
}

func (r *registry) ask(q kbroker.UserRequest) (kbroker.User, error) {
	d, u, err := decideUser(&r.view, q, r.now)
	if err == nil {
		r.apply(d.changes)
	}
	return u, err
}

func (r *registry) revoke(name kbroker.UserName) (kbroker.RevokeUserReply, error) {
	d, err := decideRevokeUser(&r.view, kbroker.RevokeUserRequest{Tenant: tenant, Name: name}, r.now)
	if err != nil {
		return kbroker.RevokeUserReply{}, err
	}
	r.apply(d.changes)
	return d.reply.(kbroker.RevokeUserReply), nil
}

func (r *registry) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *registry) out() map[string]time.Time { return revokedUsers(&r.view) }

func TestAUserIsWhoIsAskedFor(t *testing.T) {
	r := newRegistry(t)
	r.now = began.Add(300 * time.Millisecond)
	ask := kbroker.UserRequest{Tenant: tenant, Name: "ann", Role: kbroker.UserDeployer, Key: publicKey(1), TTL: time.Hour, By: "root@h1"}
	want := kbroker.User{Tenant: tenant, Name: "ann", Role: kbroker.UserDeployer, Key: publicKey(1), By: "root@h1", Created: began, Expires: began.Add(time.Hour)}
	for i := range 2 {
		u, err := r.ask(ask)
		if err != nil || !reflect.DeepEqual(u, want) || !reflect.DeepEqual(r.view.Users[state.UserKey{Tenant: tenant, Name: "ann"}], want) {
			t.Fatalf("%d: %+v, %v; want %+v on record", i, u, err, want)
		}
		r.now = began.Add(time.Minute) // the answer was lost
	}
	if d, _, err := decideUser(&r.view, ask, r.now); err != nil || len(d.changes) > 0 {
		t.Errorf("asked again it changes %v, %v; want nothing", d.changes, err)
	}
	for name, change := range map[string]func(*kbroker.UserRequest){
		"another key":  func(q *kbroker.UserRequest) { q.Key = publicKey(2) },
		"another role": func(q *kbroker.UserRequest) { q.Role = kbroker.UserAdmin },
		"another life": func(q *kbroker.UserRequest) { q.TTL = 2 * time.Hour },
		"no end":       func(q *kbroker.UserRequest) { q.TTL = 0 },
	} {
		q := ask
		change(&q)
		e := kbroker.AsError(second(r.ask(q)))
		if e == nil || e.Code != kbroker.Conflict || !strings.Contains(e.Hint, "kbroker user revoke ann") {
			t.Errorf("%s: %v, want a conflict with the hint to revoke", name, e)
		}
	}
	if rows := userRows(&r.view, kbroker.ListRequest{Tenant: tenant}, r.now); len(rows) != 1 || rows[0].State != kbroker.UserActive || rows[0].By != "root@h1" || !rows[0].Expires.Equal(want.Expires) {
		t.Errorf("rows are %+v", rows)
	}
}

func second[A any](_ A, err error) error { return err }

func TestWhoCanBeNoUser(t *testing.T) {
	good := kbroker.UserRequest{Tenant: tenant, Name: "ann", Role: kbroker.UserViewer, Key: publicKey(1)}
	for name, change := range map[string]func(*kbroker.UserRequest){
		"a name with a dot":        func(q *kbroker.UserRequest) { q.Name = "ann.b" },
		"no name":                  func(q *kbroker.UserRequest) { q.Name = "" },
		"no role":                  func(q *kbroker.UserRequest) { q.Role = "" },
		"a core":                   func(q *kbroker.UserRequest) { q.Role = "core" },
		"a worker":                 func(q *kbroker.UserRequest) { q.Role = "worker" },
		"no key":                   func(q *kbroker.UserRequest) { q.Key = "" },
		"the key of a server":      func(q *kbroker.UserRequest) { q.Key = "N" + q.Key[1:] },
		"the secret half of a key": func(q *kbroker.UserRequest) { q.Key = "S" + q.Key },
		"a life below zero":        func(q *kbroker.UserRequest) { q.TTL = -time.Hour },
		"a short life":             func(q *kbroker.UserRequest) { q.TTL = time.Second },
		"a life of parts":          func(q *kbroker.UserRequest) { q.TTL = time.Hour + time.Millisecond },
		"a long life":              func(q *kbroker.UserRequest) { q.TTL = kbroker.MaxUserTTL + time.Second },
		"a maker in two lines":     func(q *kbroker.UserRequest) { q.By = "a\nb" },
		"a long maker":             func(q *kbroker.UserRequest) { q.By = strings.Repeat("a", kbroker.MaxUserBy+1) },
	} {
		r, q := newRegistry(t), good
		change(&q)
		if _, err := r.ask(q); !errors.Is(err, kbroker.Invalid) || len(r.view.Users) > 0 {
			t.Errorf("%s: %v, users %v; want invalid, and none", name, err, r.view.Users)
		}
	}
}

// TestARevokedKeyStaysOut, whoever has its name by then; and nobody is given it again.
func TestARevokedKeyStaysOut(t *testing.T) {
	r := newRegistry(t)
	r.must(second(r.create("ann", 1, 0)))
	r.must(second(r.create("bob", 2, time.Hour)))
	if reply, err := r.revoke("ann"); err != nil || reply.Unchanged {
		t.Fatalf("%+v, %v", reply, err)
	}
	if reply, err := r.revoke("ann"); err != nil || !reply.Unchanged {
		t.Fatalf("again: %+v, %v; want unchanged", reply, err)
	}
	r.must(second(r.revoke("bob")))
	want := map[string]time.Time{publicKey(1): forGood, publicKey(2): began.Add(time.Hour)}
	if got := r.out(); !reflect.DeepEqual(got, want) {
		t.Fatalf("out are %v, want %v", got, want)
	}
	for _, name := range []kbroker.UserName{"ann", "bob", "eve"} { // a late repetition, or another name for it
		if _, err := r.create(name, 1, 0); !errors.Is(err, kbroker.Refused) {
			t.Errorf("the key of ann for %s: %v, want refused", name, err)
		}
	}
	r.must(second(r.create("ann", 3, 0)))
	r.must(second(r.create("bob", 4, time.Hour)))
	if got := r.out(); !reflect.DeepEqual(got, want) {
		t.Errorf("with new keys out are %v, want %v", got, want)
	}
	if _, err := r.create("eve", 1, 0); !errors.Is(err, kbroker.Refused) {
		t.Errorf("the former key of ann: %v, want refused", err)
	}
	r.must(second(r.revoke("ann")))
	want[publicKey(3)] = forGood
	if got := r.out(); !reflect.DeepEqual(got, want) {
		t.Errorf("after another revocation out are %v, want %v", got, want)
	}
	r.now = began.Add(2 * time.Hour)
	r.must(second(r.create("bob", 5, time.Hour)))
	delete(want, publicKey(2)) // ended by itself
	if got := r.out(); !reflect.DeepEqual(got, want) {
		t.Errorf("after the end of the first key of bob out are %v, want %v", got, want)
	}
	var listed []string
	for _, all := range []bool{false, true} {
		for _, row := range userRows(&r.view, kbroker.ListRequest{Tenant: tenant, All: all}, r.now) {
			listed = append(listed, fmt.Sprintf("%s %s", row.Name, row.State))
		}
	}
	if want := []string{"bob active", "ann revoked", "bob active"}; !slices.Equal(listed, want) {
		t.Errorf("listed are %q, want %q", listed, want)
	}
	if err := second(r.revoke("nobody")); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("nobody: %v, want not found", err)
	}
}

// TestAUserIsForgottenADayAfterTheEnd of all that was signed, and one that never ends is not.
func TestAUserIsForgottenADayAfterTheEnd(t *testing.T) {
	r := newRegistry(t)
	for i, name := range []kbroker.UserName{"ends", "out", "ever", "outever", "again"} {
		ttl := time.Duration(0)
		if name == "ends" || name == "out" {
			ttl = time.Hour
		}
		r.must(second(r.create(name, i, ttl)))
	}
	for _, name := range []kbroker.UserName{"out", "outever", "again"} {
		r.must(second(r.revoke(name)))
	}
	r.must(second(r.create("again", 9, time.Hour)))
	for after, want := range map[time.Duration][]string{
		time.Hour:                {},
		time.Hour + userKept - 1: {},
		time.Hour + userKept:     {"drop user default/ends", "drop user default/out"},
		100000 * time.Hour:       {"drop user default/ends", "drop user default/out"},
	} {
		got := []string{}
		for _, c := range forgottenUsers(&r.view, began.Add(after)) {
			got = append(got, c.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("after %v: %q, want %q", after, got, want)
		}
	}
	w := r.world()
	w.Now = began.Add(time.Hour + userKept)
	if changes := Plan(w); !slices.ContainsFunc(changes, func(c state.Change) bool {
		return c == state.DropUser{Key: state.UserKey{Tenant: tenant, Name: "ends"}}
	}) {
		t.Errorf("the plan is %v, want that it drops who has ended", changes)
	}
}

func TestUsersAreBounded(t *testing.T) {
	r := newRegistry(t)
	for i := range kbroker.MaxUsers {
		r.must(second(r.create(kbroker.UserName(fmt.Sprintf("u%d", i)), i, 0)))
	}
	wants := func(err error, hint string) {
		t.Helper()
		if e := kbroker.AsError(err); e == nil || e.Code != kbroker.Refused || !strings.Contains(e.Hint, hint) {
			t.Errorf("%v, want refused with a hint of %q", e, hint)
		}
	}
	wants(second(r.create("more", 5_000_000, 0)), "kbroker user revoke")
	r.must(second(r.create("u7", 7, 0))) // which is there
	for i := range kbroker.MaxUsers {
		r.must(second(r.revoke(kbroker.UserName(fmt.Sprintf("u%d", i)))))
	}
	for i := range kbroker.MaxUsers {
		r.must(second(r.create(kbroker.UserName(fmt.Sprintf("v%d", i)), kbroker.MaxUsers+i, 0)))
		r.must(second(r.revoke(kbroker.UserName(fmt.Sprintf("v%d", i)))))
	}
	wants(second(r.create("more", 5_000_000, 0)), "give one of these names again")
	for i := range kbroker.MaxFormerKeys {
		r.must(second(r.create("u1", 1_000_000+i, 0)))
		r.must(second(r.revoke("u1")))
	}
	wants(second(r.create("u1", 2_000_000, 0)), "another name")
	if got := len(r.out()); got != 2*kbroker.MaxUsers+kbroker.MaxFormerKeys {
		t.Errorf("%d keys are out, want %d", got, 2*kbroker.MaxUsers+kbroker.MaxFormerKeys)
	}
}

// TestWhoWasRevokedIsOutUntilTheEnd, whatever else is asked for, in whatever order; and who
// was not, is in.
func TestWhoWasRevokedIsOutUntilTheEnd(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRegistry(t)
		out := map[string]time.Time{} // until when, as promised
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			name := rapid.SampledFrom([]kbroker.UserName{"ann", "bob"}).Draw(rt, "name")
			k := state.UserKey{Tenant: tenant, Name: name}
			switch rapid.SampledFrom([]string{"create", "create", "revoke", "wait", "forget"}).Draw(rt, "what") {
			case "create":
				key := rapid.IntRange(0, 12).Draw(rt, "key")
				ttl := rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour}).Draw(rt, "ttl")
				u, err := r.create(name, key, ttl)
				if until, known := out[publicKey(key)]; err == nil && known && r.now.Before(until) {
					rt.Fatalf("key %d was revoked until %v, and is that of %s now: %+v", key, until, name, u)
				}
			case "revoke":
				u, known := r.view.Users[k]
				if _, err := r.revoke(name); (err == nil) != known {
					rt.Fatalf("revoke %s: %v", name, err)
				}
				if known && u.State(r.now) == kbroker.UserActive {
					if out[u.Key] = u.Expires; u.Expires.IsZero() {
						out[u.Key] = forGood
					}
				}
			case "wait":
				r.now = r.now.Add(rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 25 * time.Hour}).Draw(rt, "time"))
			case "forget":
				r.apply(forgottenUsers(&r.view, r.now))
			}
			got := r.out()
			for key, until := range out {
				if at, ok := got[key]; r.now.Before(until) && (!ok || at.Before(until)) {
					rt.Fatalf("key %s must be out until %v, and is until %v", key, until, at)
				}
			}
			for k, u := range r.view.Users {
				if _, isOut := got[u.Key]; isOut && u.State(r.now) == kbroker.UserActive {
					rt.Fatalf("user %s is active, and out", k.Name)
				}
			}
		}
	})
}

func TestUsersAreInTheEvents(t *testing.T) {
	r := newRegistry(t)
	ask := kbroker.UserRequest{Tenant: tenant, Name: "ann", Role: kbroker.UserOperator, Key: publicKey(1), TTL: time.Hour, By: "root@h1"}
	created, _, err := decideUser(&r.view, ask, began)
	r.must(err)
	r.apply(created.changes)
	revoked, err := decideRevokeUser(&r.view, kbroker.RevokeUserRequest{Tenant: tenant, Name: "ann"}, began)
	r.must(err)
	for _, tc := range []struct {
		changes []state.Change
		kind    kbroker.EventKind
		message string
	}{
		{created.changes, kbroker.EventUserCreated, "user ann was let in as operator, until 2026-01-02T04:04:05Z; by root@h1"},
		{revoked.changes, kbroker.EventUserRevoked, "user ann is out: the credential was taken back"},
	} {
		events := eventsOf(&r.view, tc.changes)
		if len(events) != 1 || events[0].Kind != tc.kind || events[0].Message != tc.message || events[0].Tenant != tenant {
			t.Errorf("events are %+v, want one %s: %s", events, tc.kind, tc.message)
		}
	}
}

// TestUsersAreAskedForOverTheWire: the leader signs for what is on record, and what it
// cannot sign for is on none.
func TestUsersAreAskedForOverTheWire(t *testing.T) {
	d := startSuper(t)
	subject := subjects.Super(subjects.VerbUser, tenant, subjects.NoKey)
	ask := kbroker.UserRequest{Name: "ann", Role: kbroker.UserViewer, Key: publicKey(1), Tenant: "other"}
	var reply kbroker.UserReply
	wait.Until(t, 10*time.Second, func() error { return d.ask(subject, ask, &reply) })
	for range 2 {
		if err := d.ask(subject, ask, &reply); err != nil || reply.Credential != "signed for ann of default" {
			t.Fatalf("%+v, %v", reply, err)
		}
	}
	if err := d.ask(subject, kbroker.UserRequest{Name: "forged", Role: kbroker.UserViewer, Key: publicKey(2)}, &reply); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("what cannot be signed for: %v, want invalid", err)
	}
	var rows []kbroker.UserRow
	if err := d.ask(subjects.Core(subjects.VerbUsers, tenant), kbroker.ListRequest{}, &rows); err != nil || len(rows) != 1 || rows[0].Name != "ann" {
		t.Errorf("users are %+v, %v; want ann alone", rows, err)
	}
	if err := d.ask(subjects.Super(subjects.VerbUserRevoke, tenant, subjects.NoKey), kbroker.RevokeUserRequest{Name: "ann"}, new(kbroker.RevokeUserReply)); err != nil {
		t.Fatal(err)
	}
	if out := d.Revoked(); !out[publicKey(1)].Equal(forGood) {
		t.Errorf("out are %v, want the key of ann for good", out)
	}
}
