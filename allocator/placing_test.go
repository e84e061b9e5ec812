package allocator

import (
	"fmt"
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
	// As long as what is on it changes it is behind, and mostly not for long.
	hears := func() (messages int) {
		t.Helper()
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		for {
			select {
			case <-told:
				messages++
			case <-time.After(200 * time.Millisecond):
				return messages
			}
		}
	}
	more := func(n int) {
		p := ownership.Placed{Kind: "room", ID: fmt.Sprint("more ", n)}
		a.shards.assigner.SawShard(now, p.Object().Shard(), ownership.Assignment{Owner: webA, Epoch: 1, Placed: &p}, 4)
		a.shards.knows(now, kbroker.InstanceLoad{Incarnation: webA, Placed: 1})
		now += tellAgain / 2
	}
	saw(3, "")
	hears()
	says(1, false)
	rounds := int(2 * tellAgainInFlow / tellAgain)
	for n := range rounds {
		more(n)
	}
	if n := hears(); n != 0 {
		t.Errorf("it is told %d times what it will have heard by then", n)
	}
	more(rounds)
	if n := hears(); n != 1 {
		t.Errorf("after %v in which it never knew all it is told %d times, want once", tellAgainInFlow, n)
	}
}

// TestTheOldestAreReleasedFirst: a flow of others does not keep one from its end.
func TestTheOldestAreReleasedFirst(t *testing.T) {
	a := &Allocator{own: kbroker.InstanceFile{Tenant: tenant, App: shop}, pace: normalPace, log: slog.New(slog.DiscardHandler)}
	a.cfg.Judge, a.cfg.Clock = func() time.Duration { return time.Hour }, func() time.Duration { return time.Hour }
	a.cfg.Times = objectTimes
	a.shards = newShards(a)
	a.shards.assigner.SawAll()
	a.shards.assigner.SawLease(time.Hour, time.Hour, webA, ownership.Lease{Incarnation: webA, Number: 1}, 1)
	const all = 3 * kbroker.MaxBatchWrites
	var order []string
	for n := range all {
		p := ownership.Placed{Kind: "room", ID: fmt.Sprint(n)}
		at := p.Object().Shard()
		a.shards.assigner.SawShard(time.Hour, at, ownership.Assignment{Owner: webA, Epoch: 1, Placed: &p}, kbroker.Revision(n+2))
		a.shards.placing.leaving[at] = &claim{Placed: Placed{Object: p.Object()}, number: uint64(n + 1)}
		order = append(order, subjects.KeyAssign(at))
	}
	web := service("web", 1, 1)
	web.Placed = map[kbroker.KindName]kbroker.Demanded{"room": {}}
	b := a.shards.planPlaced(1, View{App: app(web)}, nil)
	if len(b.Writes) < kbroker.MaxBatchWrites/2 {
		t.Fatalf("%d records of %d that are to be released are written", len(b.Writes), all)
	}
	for i, w := range b.Writes {
		if w.Key != order[i] {
			t.Fatalf("the release number %d is that of %s, want that of %s", i, w.Key, order[i])
		}
	}
}
