package client

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// fakeKey signs in words.
type fakeKey string

func (k fakeKey) Key() string { return string(k) }

func (k fakeKey) Prove(claim kbroker.Claim) ([]byte, error) {
	return fmt.Appendf(nil, "%s signs %q", string(k), claim), nil
}

// TestAProgramIsSignedForWithTheOwnCredential, as it is by then, and a proof.
func TestAProgramIsSignedForWithTheOwnCredential(t *testing.T) {
	c := newCluster(t)
	heard := make(chan kbroker.DevelopRequest, 2)
	c.serve(subjects.Core(subjects.VerbDevelop, kbroker.DefaultTenant), func(m *nats.Msg) any {
		heard <- parse[kbroker.DevelopRequest](c.t, m)
		return kbroker.SignReply{Credential: "signed"}
	})
	api, now := c.client(), ""
	api.signed = func() (string, error) { return now, nil }
	ask := kbroker.DevelopRequest{App: "shop", Service: "web", Instance: "shop-web-dev", Incarnation: "shop-web-dev.1"}
	for _, now = range []string{"first", "renewed"} {
		if signed, err := api.Develop(t.Context(), ask, fakeKey("U1")); err != nil || signed != "signed" {
			t.Fatalf("%q, %v", signed, err)
		}
		want := ask
		want.Tenant, want.Key, want.Credential = kbroker.DefaultTenant, "U1", now
		want.Proof = []byte(`U1 signs ["kbroker develop" "default" "shop" "web" "shop-web-dev" "shop-web-dev.1"]`)
		if got := <-heard; !reflect.DeepEqual(got, want) {
			t.Errorf("asked for %+v, want %+v", got, want)
		}
	}
}

// TestAUserIsAskedForAgain with the same key, after a lost answer.
func TestAUserIsAskedForAgain(t *testing.T) {
	c := newCluster(t)
	var asked atomic.Int32
	heard := make(chan kbroker.UserRequest, 8)
	c.serve(subjects.Super(subjects.VerbUser, kbroker.DefaultTenant, subjects.NoKey), func(m *nats.Msg) any {
		heard <- parse[kbroker.UserRequest](c.t, m)
		if asked.Add(1) == 1 {
			return nil // the answer is lost
		}
		return kbroker.UserReply{Credential: "signed"}
	})
	r, err := c.client().CreateUser(t.Context(), "ann", kbroker.UserDeployer, fakeKey("U1"), time.Hour, "root@h1")
	if err != nil || r.Credential != "signed" || !r.Expires.IsZero() {
		t.Fatalf("%+v, %v", r, err)
	}
	want := kbroker.UserRequest{
		Tenant: kbroker.DefaultTenant, Name: "ann", Role: kbroker.UserDeployer, Key: "U1", TTL: time.Hour, By: "root@h1",
		Proof: []byte(`U1 signs ["kbroker user" "default" "ann" "deployer"]`),
	}
	for range 2 {
		if got := <-heard; !reflect.DeepEqual(got, want) {
			t.Errorf("asked for %+v, want %+v", got, want)
		}
	}
}

func TestUsersAreListedAndRevoked(t *testing.T) {
	c := newCluster(t)
	all := make(chan bool, 1)
	c.serve(subjects.Core(subjects.VerbUsers, kbroker.DefaultTenant), func(m *nats.Msg) any {
		all <- parse[kbroker.ListRequest](c.t, m).All
		return []kbroker.UserRow{{Name: "ann", State: kbroker.UserActive}}
	})
	c.serve(subjects.Super(subjects.VerbUserRevoke, kbroker.DefaultTenant, subjects.NoKey), func(m *nats.Msg) any {
		if parse[kbroker.RevokeUserRequest](c.t, m).Name != "ann" {
			return kbroker.Errorf(kbroker.NotFound, "there is no such user")
		}
		return kbroker.RevokeUserReply{Unchanged: true}
	})
	for _, want := range []bool{false, true} {
		rows, err := c.client().Users(t.Context(), want)
		if err != nil || len(rows) != 1 || rows[0].Name != "ann" || <-all != want {
			t.Errorf("users are %+v, %v", rows, err)
		}
	}
	if r, err := c.client().RevokeUser(t.Context(), "ann"); err != nil || !r.Unchanged {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := c.client().RevokeUser(t.Context(), "bob"); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("one that nobody made: %v, want not found", err)
	}
}

// TestEveryVerbIsInWords, that people may be refused.
func TestEveryVerbIsInWords(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "subjects", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var source []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, b...)
	}
	verbs := regexp.MustCompile(`(?m)^\t(Verb\w+) += "(\w+)"`).FindAllStringSubmatch(string(source), -1)
	if len(verbs) < 25 {
		t.Fatalf("only %d verbs found: %q", len(verbs), verbs)
	}
	for _, v := range verbs {
		if _, ok := deeds[v[2]]; !ok && !slices.Contains([]string{"VerbJoin", "VerbLogs", "VerbCheckup", "VerbOwnRead", "VerbOwnWrite", "VerbTopicPublish", "VerbTopicRead", "VerbAllocate", "VerbRelease", "VerbFind"}, v[1]) {
			t.Errorf("%s has no words in deeds", v[1])
		}
	}
	for _, tc := range []struct{ role, subject, want string }{
		{"viewer", subjects.Super(subjects.VerbDeploy, "default", "UKEY"), "role viewer may not deploy"},
		{"viewer", subjects.Core(subjects.VerbArtifactBegin, "default"), "role viewer may not deploy"},
		{"operator", subjects.Core(subjects.VerbUsers, "default"), "role operator may not see the users"},
		{"", subjects.Super(subjects.VerbDrain, "default", "UKEY"), "this credential does not allow you to drain hosts"},
		{"viewer", subjects.Super("new", "default", "UKEY"), `role viewer may not ask for "new"`},
		{"", subjects.Endpoints("default", "cache", "redis"), "this credential does not allow you to ask where cache/redis listens"},
		{"", "x.y", `this credential does not allow you to ask for "x.y"`},
	} {
		if e := (&refusals{role: tc.role}).notAllowed(tc.subject); e.Message != tc.want || e.Code != kbroker.Refused || e.Hint == "" {
			t.Errorf("%s: %v, want %q", tc.subject, e, tc.want)
		}
	}
}
