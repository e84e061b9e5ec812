package allocator

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// TestAnOwnerIsToldAgain what is on it, if it knows of another number, and what it is to leave, if
// it has not: the word of it can be lost.
func TestAnOwnerIsToldAgain(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	conn := server.Connect(t)
	now := time.Hour
	a := &Allocator{own: kbroker.InstanceFile{Tenant: tenant, App: shop}, pace: normalPace, log: slog.New(slog.DiscardHandler)}
	a.cfg.Conn = conn
	a.cfg.Judge, a.cfg.Clock = func() time.Duration { return now }, func() time.Duration { return now }
	a.shards = newShards(a)
	told := make(chan []kbroker.Stored, 10)
	natstest.Listen(t, server.Connect(t), subjects.PlacedOn(tenant, shop, webA), func(m *nats.Msg) {
		var r kbroker.OwnReadReply
		if err := r.UnmarshalBinary(m.Data); err != nil {
			t.Error(err)
		}
		told <- r.Records
	})
	p := ownership.Placed{Kind: "room", ID: "1"}
	n := p.Object().Shard()
	saw := func(rev kbroker.Revision, next kbroker.Incarnation) {
		a.shards.assigner.SawShard(now, n, ownership.Assignment{Owner: webA, Epoch: 1, Next: next, Placed: &p}, rev)
	}
	says := func(knows int, want bool) {
		t.Helper()
		for range 2 {
			a.shards.knows(now, kbroker.InstanceLoad{Incarnation: webA, Placed: knows})
			now += tellAgain
		}
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case records := <-told:
			if !want || len(records) != 1 || records[0].Key != subjects.KeyAssign(n) {
				t.Errorf("it knows of %d and is told %v", knows, records)
			}
		case <-time.After(time.Second):
			if want {
				t.Errorf("it knows of %d and is told nothing", knows)
			}
		}
	}
	saw(1, "")
	says(1, false)
	says(0, true)
	saw(2, ownership.Nobody)
	says(1, true)
}
