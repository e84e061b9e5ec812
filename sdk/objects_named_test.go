package sdk

import (
	"container/heap"
	"fmt"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestAShardIsReleasedWithItsRemindersAlone(t *testing.T) {
	const objects = 2 * kbroker.Shards
	r := newReminders()
	of := map[kbroker.Shard]int{}
	for n := range objects {
		for _, name := range []string{"tick", "tock"} {
			r.put(reminderID{acc(fmt.Sprint(n)), name}, &due{Due: int64(objects - n)})
		}
		of[acc(fmt.Sprint(n)).Shard()] += 2
	}
	calls := heap.Pop(&r).(*reminder) // its turn runs, so that it is not in the queue
	gone := calls.id.object.Shard()
	r.release(gone)
	if got, want := len(r.queue), 2*objects-of[gone]; got != want {
		t.Errorf("%d wait, want %d: %d were of the shard", got, want, of[gone])
	}
	for n := range objects {
		o := acc(fmt.Sprint(n))
		want := 2
		if o.Shard() == gone {
			want = 0
		}
		if got := len(r.names(o)); got != want {
			t.Errorf("%s of shard %d has %d reminders, want %d", o, o.Shard(), got, want)
		}
	}
	for s := range of {
		r.release(s)
	}
	if len(r.queue)+len(r.named) != 0 {
		t.Errorf("%d wait, and %d shards have some, after all were released", len(r.queue), len(r.named))
	}
}
