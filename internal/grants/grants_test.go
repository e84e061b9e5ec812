package grants_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
)

// tagsOf says which tags each role needs, and how many tokens of a subject each is.
var tagsOf = map[grants.Role][]string{
	grants.Core:      nil,
	grants.Gate:      nil,
	grants.Worker:    {grants.TagHost},
	grants.Instance:  {grants.TagTenant, grants.TagHost, grants.TagApp, grants.TagService, grants.TagInstance, grants.TagIncarnation, grants.TagCall, grants.TagObjects, grants.TagTopic},
	grants.Allocator: {grants.TagTenant, grants.TagHost, grants.TagApp, grants.TagService, grants.TagInstance, grants.TagIncarnation},
	grants.Viewer:    {grants.TagTenant},
	grants.Deployer:  {grants.TagTenant},
	grants.Operator:  {grants.TagTenant},
	grants.Admin:     {grants.TagTenant},
}

func tokensOf(tag string) int {
	if tag == grants.TagIncarnation || tag == grants.TagCall || tag == grants.TagTopic {
		return 2
	}
	return 1
}

// plain are tags that no role refuses.
func plain(role grants.Role) map[string][]string {
	all := map[string]string{
		grants.TagTenant: "default", grants.TagHost: "w1", grants.TagApp: "shop", grants.TagService: "web",
		grants.TagInstance: "shop-web-1", grants.TagIncarnation: "shop-web-1.00112233aabbccdd", grants.TagCall: "shop.web", grants.TagObjects: "shop", grants.TagTopic: "shop.orders",
	}
	tags := map[string][]string{}
	for _, tag := range tagsOf[role] {
		tags[tag] = []string{all[tag]}
	}
	return tags
}

func authority(t testing.TB) *grants.Authority {
	t.Helper()
	g, err := grants.New(make([]byte, grants.SecretSize), "other", "a--b", "tag")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func userKey(t testing.TB) string {
	t.Helper()
	k, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func TestSignRefusesWhatIsNotAPartOfASubject(t *testing.T) {
	g, key := authority(t), userKey(t)
	never := map[string]string{
		"empty": "", "a wildcard": "*", "all": ">", "a wildcard in it": "a*", "all in it": "a.>", "a blank": "a b", "a blank before": " a", "a blank behind": "a ",
		"a tab": "a\tb", "a line": "a\nb", "a line behind": "a\n", "what is trimmed away": "a\v", "what is trimmed away, too": "a\f", "a blank of Unicode": "a\u00a0", "a line of Unicode": "a\u0085",
		"upper case": "A", "a template": "{{subject()}}", "another tag": "a:b", "an empty token": "a..b", "a dot before": ".a", "a dot behind": "a.", "a dot": ".",
		"a control character": "a\x00b", "three tokens": "a.b.c", "a wildcard, then a name": "*.a",
	}
	for role, tags := range tagsOf {
		if _, err := g.Sign(grants.User{Role: role, Name: "n", Key: key, Tags: plain(role)}, time.Now()); err != nil {
			t.Errorf("%s with plain tags: %v", role, err)
		}
		for _, tag := range tags {
			bad := maps.Clone(never)
			if tokensOf(tag) == 1 {
				bad["two tokens"] = "a.b"
			} else {
				bad["one token"] = "a" // and the rest of the subject would take its place
			}
			if tag == grants.TagObjects {
				delete(bad, "a wildcard")
			}
			if tag != grants.TagCall && tag != grants.TagTopic {
				bad["everything"], bad["a wildcard of two"] = "*.*", "a.*"
			}
			var taken []string
			for _, name := range slices.Sorted(maps.Keys(bad)) {
				alone, second := plain(role), plain(role)
				alone[tag] = []string{bad[name]}
				second[tag] = append(second[tag], bad[name])
				for _, with := range []map[string][]string{alone, second} {
					if _, err := g.Sign(grants.User{Role: role, Name: "n", Key: key, Tags: with}, time.Now()); err == nil {
						taken = append(taken, fmt.Sprintf("%s (%q)", name, with[tag]))
					}
				}
			}
			if len(taken) > 0 {
				t.Errorf("a user of role %s was signed whose %s is\n\t%s\nwant it refused", role, tag, strings.Join(taken, "\n\t"))
			}
			without := plain(role)
			delete(without, tag)
			if _, err := g.Sign(grants.User{Role: role, Name: "n", Key: key, Tags: without}, time.Now()); err == nil {
				t.Errorf("a user of role %s without a %s was signed", role, tag)
			}
		}
	}
}

func TestATenantNeedsAnAccount(t *testing.T) {
	for tenant, want := range map[kbroker.TenantID]bool{"other": true, "": false, "a.b": false, "A": false} {
		g, err := grants.New(make([]byte, grants.SecretSize), tenant)
		if (err == nil) != want {
			t.Errorf("an authority with tenant %q: %v", tenant, err)
		}
		if err != nil {
			continue
		}
		tags := plain(grants.Viewer)
		for name, want := range map[string]bool{"default": true, "other": true, "third": false} {
			tags[grants.TagTenant] = []string{name}
			if _, err := g.Sign(grants.User{Role: grants.Viewer, Name: "n", Key: userKey(t), Tags: tags}, time.Now()); (err == nil) != want {
				t.Errorf("a viewer of tenant %s: %v, want it signed: %t", name, err, want)
			}
		}
	}
}

// TestTheGateIsNotTakenBack, nor everybody, by what is taken back.
func TestTheGateIsNotTakenBack(t *testing.T) {
	g, out := authority(t), userKey(t)
	shown, err := g.Gate()
	if err != nil {
		t.Fatal(err)
	}
	gate, err := jwt.DecodeUserClaims(shown)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(time.Hour)
	for _, c := range g.Accounts(map[string]time.Time{gate.Subject: at, "*": at, "": at, "ann": at, out: at}) {
		for _, key := range []string{gate.Subject, userKey(t)} {
			if c.Revocations.IsRevoked(key, time.Now()) {
				t.Errorf("%s is out in account %s", key, c.Name)
			}
		}
		if c.Subject != g.System() && (len(c.Revocations) != 1 || !c.Revocations.IsRevoked(out, time.Now())) {
			t.Errorf("out in account %s are %v, want %s", c.Name, c.Revocations, out)
		}
	}
	for role := range tagsOf {
		if role != grants.Gate {
			if _, err := g.Sign(grants.User{Role: role, Key: gate.Subject, Tags: plain(role)}, time.Now()); err == nil {
				t.Errorf("the key of the gate is signed for a %s", role)
			}
		}
	}
}

func TestSignRefusesOtherKeysAndRoles(t *testing.T) {
	g, key := authority(t), userKey(t)
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	public, err := account.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, u := range map[string]grants.User{
		"no role":              {Key: key},
		"an unknown role":      {Role: "root", Key: key},
		"no key":               {Role: grants.Viewer, Tags: plain(grants.Viewer)},
		"the key of no user":   {Role: grants.Viewer, Tags: plain(grants.Viewer), Key: public},
		"a wildcard for a key": {Role: grants.Viewer, Tags: plain(grants.Viewer), Key: "*"},
	} {
		if _, err := g.Sign(u, time.Now()); err == nil {
			t.Errorf("%s: signed, want it refused", name)
		}
	}
}

// TestPermissionsAreAsWideAsTheirTemplates: whatever Sign takes, each subject of the
// role has as many tokens as with plain names, and a wildcard only where the template
// has one, or the tag that says whom an instance calls.
func TestPermissionsAreAsWideAsTheirTemplates(t *testing.T) {
	g, key := authority(t), userKey(t)
	templates := templatesOf(t, g)
	if len(templates) != len(tagsOf) {
		t.Fatalf("%d roles have permissions, this test knows %d", len(templates), len(tagsOf))
	}
	odd := rapid.OneOf(
		rapid.StringMatching(kbroker.NamePattern),
		rapid.SampledFrom([]string{"a", "kb", "svc", "own", "event", "lease", "host", "tag", "name", "subject", "a--b", "a1", "x-0", strings.Repeat("a", kbroker.MaxNameBytes)}),
		rapid.StringMatching(`[a-cA-C.*>{}():$_ \v-]{0,8}`), // most of these are refused
	)
	rapid.Check(t, func(t *rapid.T) {
		role := rapid.SampledFrom(slices.Sorted(maps.Keys(tagsOf))).Draw(t, "role")
		tags := plain(role)
		for _, tag := range tagsOf[role] {
			if v := odd.Draw(t, tag); tag == grants.TagTenant {
				tags[tag] = []string{rapid.SampledFrom([]string{"default", "other", "a--b", "tag", v}).Draw(t, "tenant")}
			} else if tokensOf(tag) == 1 {
				tags[tag] = []string{v}
			} else if tag == grants.TagCall || !rapid.Bool().Draw(t, "plain") {
				tags[tag] = []string{v + "." + odd.Draw(t, tag)}
			}
		}
		signed, err := g.Sign(grants.User{Role: role, Name: odd.Draw(t, "name"), Key: key, Tags: tags}, time.Now())
		if err != nil {
			return // refused: nothing is granted
		}
		claims, err := jwt.DecodeUserClaims(signed)
		if err != nil {
			t.Fatal(err)
		}
		if len(claims.Pub.Allow)+len(claims.Sub.Allow)+len(claims.Pub.Deny)+len(claims.Sub.Deny) > 0 {
			t.Fatalf("%s has permissions of its own: %+v", role, claims.Permissions)
		}
		for _, template := range templates[role] {
			wide := strings.Count(template, "*") + strings.Count(template, ">")
			if strings.Contains(template, "{{tag("+grants.TagCall+")}}") {
				wide += strings.Count(tags[grants.TagCall][0], "*")
			}
			if strings.Contains(template, "{{tag("+grants.TagTopic+")}}") {
				wide += strings.Count(tags[grants.TagTopic][0], "*")
			}
			if strings.Contains(template, "{{tag("+grants.TagObjects+")}}") {
				wide += strings.Count(tags[grants.TagObjects][0], "*")
			}
			tokens := len(strings.Split(template, "."))
			for tag := range tags {
				tokens += strings.Count(template, "{{tag("+tag+")}}") * (tokensOf(tag) - 1)
			}
			subject := expand(template, claims)
			if strings.Contains(subject, "{{") {
				t.Fatalf("%s: %q is not in the credential: %q", role, template, subject)
			}
			if got := len(strings.Split(subject, ".")); got != tokens {
				t.Fatalf("%s with %v: %q becomes %q of %d tokens, want %d", role, tags, template, subject, got, tokens)
			}
			if got := strings.Count(subject, "*") + strings.Count(subject, ">"); got != wide {
				t.Fatalf("%s with %v: %q becomes %q with %d wildcards, want %d", role, tags, template, subject, got, wide)
			}
			if slices.Contains(strings.Split(subject, "."), "") || strings.ContainsAny(subject, " \t\r\n\f\v") {
				t.Fatalf("%s with %v: %q becomes %q, which is no subject", role, tags, template, subject)
			}
		}
	})
}

// templatesOf are the subjects of all roles, as they stand in the account.
func templatesOf(t *testing.T, g *grants.Authority) map[grants.Role][]string {
	t.Helper()
	all := map[grants.Role][]string{}
	for _, u := range scopesOf(t, g) {
		role := grants.Role(u.Role)
		if u.Template.BearerToken != (role == grants.Gate) { // whose key proves nothing
			t.Errorf("%s: that nobody needs the key is %t", role, u.Template.BearerToken)
		}
		had := all[role]
		if all[role] = slices.Concat(u.Template.Pub.Allow, u.Template.Sub.Allow); had != nil && !slices.Equal(had, all[role]) {
			t.Errorf("%s has other permissions in one account than in another", role)
		}
		for _, s := range all[role] {
			// The servers also know these, which nothing bounds.
			if strings.Contains(s, "name()") {
				t.Errorf("%s: %q has a name, which is for people", role, s)
			}
		}
		// An empty list of what is allowed allows everything.
		if len(u.Template.Pub.Allow) == 0 || len(u.Template.Sub.Allow) == 0 {
			t.Errorf("%s may publish %q and subscribe %q: an empty list means everything", role, u.Template.Pub.Allow, u.Template.Sub.Allow)
		}
	}
	return all
}

// scopesOf are the roles of all accounts.
func scopesOf(t *testing.T, g *grants.Authority) (all []*jwt.UserScope) {
	t.Helper()
	for public, account := range g.Accounts(nil) {
		for _, key := range account.SigningKeys.Keys() {
			scope, ok := account.SigningKeys.GetScope(key)
			u, isUser := scope.(*jwt.UserScope)
			if !ok || !isUser {
				t.Fatalf("key %s signs without a role in account %s", key, account.Name)
			}
			all = append(all, u)
		}
		if want := public == g.System(); (len(account.SigningKeys) == 0) != want {
			t.Errorf("account %s has %d roles", account.Name, len(account.SigningKeys))
		}
	}
	return all
}

// expand is what a server makes of a template: see processUserPermissionsTemplate of
// nats-server.
func expand(template string, c *jwt.UserClaims) string {
	s := strings.ReplaceAll(template, "{{subject()}}", c.Subject)
	for _, tag := range c.Tags {
		if name, value, ok := strings.Cut(tag, ":"); ok {
			s = strings.ReplaceAll(s, "{{tag("+name+")}}", value)
		}
	}
	return s
}

// TestOnlyStartsOfInstancesAreRenewed: the life of a person's credential is on record, and
// nobody lengthens it.
func TestOnlyStartsOfInstancesAreRenewed(t *testing.T) {
	g, now := authority(t), time.Now()
	for _, role := range slices.Sorted(maps.Keys(tagsOf)) {
		signed, err := g.Sign(grants.User{Role: role, Name: "ann", Key: userKey(t), Life: time.Minute, Tags: plain(role)}, now)
		if err != nil {
			t.Fatal(err)
		}
		again, err := g.Renew(signed, now, time.Hour, func(string) bool { return false })
		want := role == grants.Instance || role == grants.Allocator
		if (err == nil) != want {
			t.Errorf("%s: renewed as %.10q, %v; want that it is: %t", role, again, err, want)
		}
	}
}

// TestWhatWasTakenBackIsNotRenewed, nor what a person runs who was revoked, however often
// it was renewed before.
func TestWhatWasTakenBackIsNotRenewed(t *testing.T) {
	g, now := authority(t), time.Now()
	own, by, other := userKey(t), userKey(t), userKey(t)
	signed, err := g.Sign(grants.User{Role: grants.Instance, Name: "shop-web-dev.1", Key: own, By: by, Life: time.Minute, Tags: plain(grants.Instance)}, now)
	if err != nil {
		t.Fatal(err)
	}
	renew := func(revoked string) error {
		again, err := g.Renew(signed, now, time.Hour, func(key string) bool { return key == revoked })
		if err == nil {
			signed = again
		}
		return err
	}
	for range 2 {
		if err := renew(other); err != nil {
			t.Errorf("nothing of it was taken back: %v", err)
		}
		for what, key := range map[string]string{"its own": own, "that of whose program it is": by} {
			if err := renew(key); err == nil {
				t.Errorf("renewed, and the key that was revoked is %s", what)
			}
		}
	}
	if _, err := g.Sign(grants.User{Role: grants.Instance, Key: own, By: "ann", Tags: plain(grants.Instance)}, now); err == nil {
		t.Error("signed for a program of who has no key")
	}
}

// TestNoRenewalMovesAnEnd that whose program it is has.
func TestNoRenewalMovesAnEnd(t *testing.T) {
	g, now := authority(t), time.Unix(2_000_000_000, 0)
	until := now.Add(90 * time.Minute)
	u := grants.User{Role: grants.Instance, Key: userKey(t), By: userKey(t), Until: until, Life: time.Hour, Tags: plain(grants.Instance)}
	signed, err := g.Sign(u, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ at, want time.Time }{
		{now, now.Add(time.Hour)}, {now.Add(20 * time.Minute), now.Add(80 * time.Minute)}, {now.Add(40 * time.Minute), until}, {now.Add(80 * time.Minute), until},
	} {
		if signed, err = g.Renew(signed, step.at, time.Hour, func(string) bool { return false }); err != nil {
			t.Fatal(err)
		}
		if claims, err := jwt.DecodeUserClaims(signed); err != nil || claims.Expires != step.want.Unix() {
			t.Errorf("renewed %v after it was signed it ends at %d, %v; want %d", step.at.Sub(now), claims.Expires, err, step.want.Unix())
		}
	}
	if _, err := g.Renew(signed, until, time.Hour, func(string) bool { return false }); err == nil {
		t.Error("renewed after its end")
	}
	u.Life = 2 * time.Hour
	signed, err = g.Sign(u, now)
	if err != nil {
		t.Fatal(err)
	}
	if claims, err := jwt.DecodeUserClaims(signed); err != nil || claims.Expires != until.Unix() {
		t.Errorf("signed until %d, %v; want %d", claims.Expires, err, until.Unix())
	}
	if _, err := g.Sign(u, until); err == nil {
		t.Error("signed after its end")
	}
}
