package allocator

import (
	"fmt"
	"testing"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// wish stores that shards are wanted at a start; none: that nothing is wanted any more.
func (w *world) wish(at kbroker.Revision, to kbroker.Incarnation, shards ...kbroker.Shard) kbroker.Revision {
	w.t.Helper()
	one := kbroker.Write{Key: subjects.KeyWishes, Expected: at}
	if len(shards) > 0 {
		one.Value = encoded(kbroker.ObjectWishes{to: shards})
	}
	reply, err := w.put(one)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply.First
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
	w.wish(0, webB, mine...)
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
	at := w.wish(0, webB, all...)
	w.at(webB, all...)
	w.wish(at, "")
	w.shared(webA, webB)
}
