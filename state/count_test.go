package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// manyObjects stores objects, of which every tenth is a room, one is a lamp and the others are
// accounts, and to each tenth account a message.
func manyObjects(t testing.TB, s *Store, number int) (of map[kbroker.KindName]int) {
	t.Helper()
	of = map[kbroker.KindName]int{}
	batches := make([][]kbroker.Write, shopStreams)
	for n := range number {
		o := alice(n)
		switch {
		case n == number/2:
			o.Kind = "lamp"
		case n%10 == 0:
			o.Kind = "room"
		}
		of[o.Kind]++
		at := int(o.Shard()) % shopStreams
		batches[at] = append(batches[at], kbroker.Write{Key: subjects.KeyState(o), Value: []byte("x")})
		if n%10 == 1 {
			batches[at] = append(batches[at], kbroker.Write{Key: subjects.KeyOut(o, 1), Value: []byte("x")})
		}
	}
	for _, writes := range batches {
		for some := range slices.Chunk(writes, kbroker.MaxBatchWrites) {
			mustOwn(t, s, some...)
		}
	}
	return of
}

func TestManyObjectsAreCountedInSomeShards(t *testing.T) {
	t.Parallel()
	srv, s := ownedObjects(t)
	of := manyObjects(t, s, 3000)
	nc := srv.Connect(t)
	sub, err := nc.SubscribeSync(subjects.LeaderInfo("*"))
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	const few = 100 // of some 800 subjects of each stream
	for kind, c := range map[kbroker.KindName]struct {
		exact bool
		off   int // at most
	}{"account": {off: 150}, "room": {exact: true}, "lamp": {exact: true}, "none": {exact: true}} {
		n, exact, err := s.countObjects(testContext(t, 5*time.Second), shopKey, shopStreams, kind, nil, few)
		if err != nil || exact != c.exact || n < of[kind]-c.off || n > of[kind]+c.off {
			t.Errorf("%d objects of kind %s are counted (%v), exactly %v, want %d, give or take %d, exactly %v", n, kind, err, exact, of[kind], c.off, c.exact)
		}
	}
	for asked := 0; ; asked++ {
		m, err := sub.NextMsg(100 * time.Millisecond)
		if err != nil {
			if asked > 1200 || asked < 4*4 {
				t.Errorf("the leaders were asked %d times for four kinds in %d shards", asked, kbroker.Shards)
			}
			break
		}
		if strings.Contains(string(m.Data), "*.state.account.") {
			t.Errorf("a leader was asked %s, which goes through nearly all that it has, and takes no writes meanwhile", m.Data)
		}
	}
}

func TestAKindOfWhichThereAreFewIsListedAmongMany(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	of := manyObjects(t, s, 1000)
	for _, kind := range []kbroker.KindName{"lamp", "room", ""} {
		want := of[kind]
		if kind == "" {
			want = 1000
		}
		seen := map[string]bool{}
		for q := (ObjectQuery{Kind: kind, Limit: 300, few: 60}); ; {
			found, next, err := s.Objects(testContext(t, 5*time.Second), shopKey, shopStreams, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range found {
				seen[r.Key] = true
			}
			if q.After = next; next == "" {
				break
			}
		}
		if len(seen) != want {
			t.Errorf("of kind %q there are %d, want %d", kind, len(seen), want)
		}
	}
}

func BenchmarkCountObjects(b *testing.B) {
	_, s := ownedObjects(b)
	manyObjects(b, s, 20_000)
	for _, few := range []int{fewObjects, 100, 1 << 30} {
		b.Run(fmt.Sprint(few), func(b *testing.B) {
			for b.Loop() {
				if _, _, err := s.countObjects(b.Context(), shopKey, shopStreams, "account", nil, few); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
