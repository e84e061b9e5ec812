package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func room(n int) kbroker.Object {
	return kbroker.Object{Kind: "room", ID: fmt.Sprintf("room %d", n), Placed: true}
}

func TestAllocatedObjectsAreListedPageByPage(t *testing.T) {
	t.Parallel()
	_, s := ownedApp(t)
	const all = 300
	want := map[string]bool{}
	for n := range all {
		mustOwn(t, s, kbroker.Write{Key: subjects.KeyAssign(room(n).Shard()), Value: fmt.Appendf(nil, "%d", n%3)})
		want[subjects.KeyAssign(room(n).Shard())] = n%3 == 0
	}
	mustOwn(t, s, kbroker.Write{Key: subjects.KeyAssign(7), Value: []byte("0")}) // of no placed object
	for _, limit := range []int{1, 7, all / 3, all} {
		seen, after := map[string]bool{}, ""
		for {
			found, next, err := s.Allocated(testContext(t, 5*time.Second), shopKey, after, limit, func(r kbroker.Stored) bool { return string(r.Value) == "0" })
			if err != nil || len(found) > limit {
				t.Fatalf("%d in a page of %d (%v)", len(found), limit, err)
			}
			for _, r := range found {
				if seen[r.Key] || !want[r.Key] {
					t.Errorf("in pages of %d: %s is there, and was before: %v", limit, r.Key, seen[r.Key])
				}
				seen[r.Key] = true
			}
			if after = next; next == "" {
				break
			}
		}
		if len(seen) != all/3 {
			t.Errorf("in pages of %d there are %d, want %d", limit, len(seen), all/3)
		}
	}
	for _, after := range []string{"x", "placed.256", "placed", "assign.7", subjects.KeyRelease(room(1).Shard())} {
		if _, _, err := s.Allocated(testContext(t, 5*time.Second), shopKey, after, 1, nil); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("after %q: %v, want Invalid", after, err)
		}
	}
}

// Those of a stream with too many objects are not listed, and that is said.
func TestStoredPlacedObjectsAreListedWhereThereAreFew(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	var keys []string
	for n := range 60 {
		mustOwn(t, s, kbroker.Write{Key: subjects.KeyState(room(n)), Value: []byte("x")})
		mustOwn(t, s, kbroker.Write{Key: subjects.KeyState(alice(n)), Value: []byte("x")})
		keys = append(keys, subjects.KeyState(room(n)))
	}
	slices.Sort(keys)
	placed := []kbroker.KindName{"room"}
	list := func(q ObjectQuery) (all []string, left bool) {
		t.Helper()
		for q.Placed = placed; ; {
			found, next, some, err := s.PlacedObjects(testContext(t, 5*time.Second), shopKey, shopStreams, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range found {
				all = append(all, r.Key)
			}
			if left, q.After = left || some, next; next == "" {
				return all, left
			}
		}
	}
	ones := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return !strings.HasPrefix(subjects.ParseOwnKey(key).Object.ID, "room 1") })
	for _, c := range []struct {
		q    ObjectQuery
		want []string
	}{{ObjectQuery{Limit: 7}, keys}, {ObjectQuery{Kind: "room", Limit: 100}, keys}, {ObjectQuery{Kind: "room", Prefix: "room 1", Limit: 3}, ones}, {ObjectQuery{Kind: "account", Limit: 9}, nil}} {
		if got, left := list(c.q); !slices.Equal(got, c.want) || left {
			t.Errorf("%+v: %q (left %v), want %q", c.q, got, left, c.want)
		}
	}
	if got, left := list(ObjectQuery{Kind: "room", Limit: 7, few: 3}); len(got) > 0 || !left {
		t.Errorf("of many %q are listed, others left out: %v", got, left)
	}
	// The others are listed as if there were none of them.
	for _, few := range []int{fewObjects, 20} {
		n := 0
		for q := (ObjectQuery{Limit: 250, Placed: placed, few: few}); ; {
			found, next, err := s.Objects(testContext(t, 5*time.Second), shopKey, shopStreams, q)
			if err != nil {
				t.Fatal(err)
			}
			n += len(found)
			if q.After = next; next == "" {
				break
			}
		}
		if n != 60 {
			t.Errorf("of shards there are %d objects, want 60", n)
		}
		for _, kind := range []kbroker.KindName{"room", "account"} {
			n, exact, err := s.countObjects(testContext(t, 5*time.Second), shopKey, shopStreams, kind, placed, few)
			if err != nil || n < 40 || n > 80 || few == fewObjects && (n != 60 || !exact) {
				t.Errorf("%d objects of kind %s are counted, exactly %v (%v), want 60", n, kind, exact, err)
			}
		}
	}
	if _, _, _, err := s.PlacedObjects(testContext(t, 5*time.Second), shopKey, shopStreams, ObjectQuery{After: subjects.KeyState(alice(1)), Limit: 1}); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("after one of a shard: %v, want Invalid", err)
	}
}
