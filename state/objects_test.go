package state

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestObjectsAreListedPageByPage(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	var keys []string
	for n := range 40 {
		o := alice(n)
		if n%10 == 0 {
			o.Kind = "room"
		}
		keys = append(keys, subjects.KeyState(o))
		mustOwn(t, s, kbroker.Write{Key: subjects.KeyState(o), Value: []byte("x")})
	}
	gone := kbroker.Object{Kind: "account", ID: "gone"}
	at := mustOwn(t, s, kbroker.Write{Key: subjects.KeyState(gone), Value: []byte("x")})
	mustOwn(t, s, kbroker.Write{Key: subjects.KeyState(gone), Expected: at.First})
	mustOwn(t, s, kbroker.Write{Key: subjects.KeyOut(alice(1), 1), Value: []byte("x")}) // is no object
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(subjects.ParseOwnKey(a).Shard, subjects.ParseOwnKey(b).Shard), cmp.Compare(a, b))
	})
	list := func(q ObjectQuery) (all []string) {
		t.Helper()
		for {
			found, next, err := s.Objects(testContext(t, 5*time.Second), shopKey, shopStreams, q)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) > q.Limit {
				t.Fatalf("%d objects in a page of %d", len(found), q.Limit)
			}
			for _, r := range found {
				all = append(all, r.Key)
			}
			if q.After = next; next == "" {
				return all
			}
		}
	}
	accounts := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return subjects.ParseOwnKey(k).Object.Kind != "account" })
	twenties := slices.DeleteFunc(slices.Clone(accounts), func(k string) bool { return subjects.ParseOwnKey(k).Object.ID[:len("alice 2")] != "alice 2" })
	for _, few := range []int{fewObjects, 1} { // by stream, and by shard
		for _, limit := range []int{7, 40, 100} {
			if got := list(ObjectQuery{few: few, Limit: limit}); !slices.Equal(got, keys) {
				t.Errorf("in pages of %d there are %q, want %q", limit, got, keys)
			}
		}
		if got := list(ObjectQuery{few: few, Kind: "account", Limit: 7}); !slices.Equal(got, accounts) {
			t.Errorf("of kind account there are %q, want %q", got, accounts)
		}
		if got := list(ObjectQuery{few: few, Kind: "account", Prefix: "alice 2", Limit: 2}); !slices.Equal(got, twenties) {
			t.Errorf("that begin with alice 2 there are %q, want %q", got, twenties)
		}
	}
	for kind, want := range map[kbroker.KindName]int{"account": len(accounts) + 1, "room": 4, "none": 0} { // with the one that is gone
		if n, exact, err := s.CountObjects(testContext(t, 5*time.Second), shopKey, shopStreams, kind, nil); err != nil || n != want || !exact {
			t.Errorf("%d objects of kind %s are counted (%v), exactly %v, want %d", n, kind, err, exact, want)
		}
	}
	taken := subjects.KeyOut(alice(1), 9)
	reply := mustOwn(t, s, kbroker.Write{Key: taken, Value: []byte("sent since")})
	mustOwn(t, s, kbroker.Write{Key: taken, Expected: reply.First})
	if n, err := s.CountBelow(testContext(t, 5*time.Second), shopKey, shopStreams, subjects.MatchOutsOf(alice(1))); err != nil || n != 1 {
		t.Errorf("%d messages (%v), want 1", n, err)
	}
	for _, after := range []string{"x", "1024", "-1", "3.out.account.a", fmt.Sprintf("%d.state.account", 3)} {
		if _, _, err := s.Objects(testContext(t, 5*time.Second), shopKey, shopStreams, ObjectQuery{After: after, Limit: 1}); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("after %q: %v, want Invalid", after, err)
		}
	}
}
