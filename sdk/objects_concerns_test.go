package sdk

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// What is announced of shards of others wakes nobody; what is behind a record that names this
// instance is taken, also while that one waits to be.
func TestWhatIsAnnouncedOfOthers(t *testing.T) {
	own := instance("", "echo-echo-1")
	a := New(as("", &own))
	a.identity = own
	k := newKeeper(a, nil, ownership.Tuned)
	rev := 0
	says := func(key, record string) {
		rev++
		k.announced(&nats.Msg{
			Subject: subjects.Owned(own.Tenant, own.App, key),
			Header:  nats.Header{subjects.HeaderSequence: {fmt.Sprint(rev)}},
			Data:    []byte(record),
		})
	}
	taken := func() int {
		all := k.take()
		for _, do := range all {
			do(0)
		}
		return len(all)
	}
	assigns := func(n kbroker.Shard, owner, next kbroker.Incarnation) {
		says(subjects.KeyAssign(n), fmt.Sprintf(`{"owner":%q,"epoch":3,"next":%q,"next_epoch":4}`, owner, next))
	}
	const other = "echo-echo-2.00112233aabbccdd"
	for n := range kbroker.Shard(kbroker.Shards) {
		assigns(n, other, "")
		says(subjects.KeyRelease(n), `{"epoch":3}`)
	}
	if n := taken(); n > 0 {
		t.Errorf("of what is announced of others %d records are taken", n)
	}
	assigns(7, other, own.Incarnation)
	assigns(7, other, "") // before it knows of the first
	if n := taken(); n != 2 {
		t.Errorf("of a move to it that was called off %d records are taken, want 2", n)
	}
	if assigns(7, other, ""); taken() > 0 {
		t.Error("that shard counts still")
	}
	k.concerns.reads.Add(1) // a read under way, which shows shard 9 as it was
	assigns(9, other, "")
	read := kbroker.Stored{Key: subjects.KeyAssign(9), Revision: 1, Value: fmt.Appendf(nil, `{"owner":%q,"epoch":3,"next":%q,"next_epoch":4}`, other, own.Incarnation)}
	k.see(0, []kbroker.Stored{read}, true)
	k.concerns.reads.Add(-1)
	if n := taken(); n != 1 {
		t.Errorf("of what came behind a read %d records are taken, want 1", n)
	}
	assigns(8, own.Incarnation, "")
	taken()
	says(subjects.KeyRelease(8), `{"epoch":2}`)
	assigns(8, other, "")
	if n := taken(); n != 2 {
		t.Errorf("of a shard of its own %d records are taken, want 2", n)
	}
}
