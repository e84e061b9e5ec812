package allocator

import (
	"fmt"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// wishes stores that shards are wanted at a start; empty: that they are no more.
func (w *world) wishes(revs map[kbroker.Shard]kbroker.Revision, to kbroker.Incarnation, shards ...kbroker.Shard) {
	w.t.Helper()
	for _, n := range shards {
		one := kbroker.Write{Key: subjects.KeyWish(n), Expected: revs[n]}
		if to != "" {
			one.Value = encoded(kbroker.ObjectWish{To: to, Time: time.Now()})
		}
		reply, err := w.put(one)
		if err != nil {
			w.t.Fatal(err)
		}
		revs[n] = reply.First
	}
}

// at waits until shards are at a start, and none is on its way.
func (w *world) at(to kbroker.Incarnation, shards ...kbroker.Shard) {
	w.t.Helper()
	wait.Until(w.t, within, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for key, as := range w.owners {
			if as.Next != "" {
				return fmt.Errorf("%s is on its way: %+v", key, as)
			}
		}
		for _, n := range shards {
			if as := w.owners[subjects.KeyAssign(n)]; as.Owner != to {
				return fmt.Errorf("shard %d is %+v, want it at %s", n, as, to)
			}
		}
		return nil
	})
}

func TestShardsMoveWhereAnOperatorWantsThem(t *testing.T) {
	w := newObjects(t)
	w.fake(webA, "web")
	b := w.fake(webB, "web")
	first := w.start("shop-allocator-1", objectPace)
	before := w.shared(webA, webB)
	var mine []kbroker.Shard // of a
	for n := range kbroker.Shard(kbroker.Shards) {
		if before[subjects.KeyAssign(n)].Owner == webA && len(mine) < 3 {
			mine = append(mine, n)
		}
	}
	revs := map[kbroker.Shard]kbroker.Revision{}
	w.wishes(revs, webB, mine...)
	w.at(webB, mine...)
	after := w.shared(webA, webB) // still even: others have moved in their place
	for _, n := range mine {
		if was, is := before[subjects.KeyAssign(n)], after[subjects.KeyAssign(n)]; is.Epoch != was.Epoch+1 {
			t.Errorf("shard %d was %+v and is %+v, want it moved as planned", n, was, is)
		}
	}
	// The next allocator knows it from the store.
	w.start("shop-allocator-2", objectPace)
	first.stop()
	if err := first.ended(t); err != nil {
		t.Fatal(err)
	}
	w.fake(webC, "web")
	w.shared(webA, webB, webC)
	w.at(webB, mine...)
	// It ends with the start.
	b.stop()
	w.shared(webA, webC)
}

func TestAnInstanceIsEmptied(t *testing.T) {
	w := newObjects(t)
	w.fake(webA, "web")
	w.fake(webB, "web")
	w.start("shop-allocator-1", objectPace)
	w.shared(webA, webB)
	var all []kbroker.Shard
	for n := range kbroker.Shard(kbroker.Shards) {
		all = append(all, n)
	}
	revs := map[kbroker.Shard]kbroker.Revision{}
	w.wishes(revs, webB, all...)
	w.at(webB, all...)
	w.wishes(revs, "", all...)
	w.shared(webA, webB)
}

// TestAWishThatWasTakenBackUnheard: what is read says that it is not there any more.
func TestAWishThatWasTakenBackUnheard(t *testing.T) {
	w := newObjects(t)
	w.fake(webA, "web")
	w.fake(webB, "web")
	a := w.start("shop-allocator-1", objectPace)
	w.shared(webA, webB)
	s := newShards(a.alloc)
	s.wishes[3] = wish{webB, 7}
	if err := s.readShards(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.wishes) != 0 {
		t.Errorf("wishes are %v, want none: the store has none", s.wishes)
	}
	// One that is heard meanwhile is newer than what was read.
	known, found, err := s.readWishes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.sawWish(4, kbroker.Stored{Key: subjects.KeyWish(4), Revision: 9, Value: encoded(kbroker.ObjectWish{To: webA})})
	s.sawWishes(known, found)
	if s.wished()[4] != webA {
		t.Errorf("wishes are %v, want the one that was just heard", s.wishes)
	}
}
