package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// fakeBank is an app with objects of kind account: alice, bob, and 300 whose ids are
// numbers. broken is in quarantine, lost is in a shard that nobody owns. Objects of kind room are
// placed: lobby is never stored; old is, and is not allocated.
func fakeBank() kbroker.App {
	return kbroker.App{Name: "bank", ObjectStreams: 4, Services: []kbroker.Service{{Name: "ledger", Objects: []kbroker.KindName{"account", "room"}, Placed: map[kbroker.KindName]kbroker.Demanded{"room": {Slots: 1}}}}}
}

const fakePage = 100

// objects answers what is asked about objects; false: it is something else.
func (f *fakeCore) objects(verb string, m *nats.Msg) (any, bool, error) {
	switch verb {
	case subjects.VerbObjects, subjects.VerbObjectOwners, subjects.VerbObject, subjects.VerbObjectState, subjects.VerbObjectAct:
	default:
		return nil, false, nil
	}
	var of struct {
		App  kbroker.AppName
		Kind kbroker.KindName
	}
	if err := json.Unmarshal(m.Data, &of); err != nil {
		return nil, true, err
	}
	app, ok := f.deployed[of.App]
	if !ok {
		return nil, true, kbroker.Errorf(kbroker.NotFound, "there is no app %q", of.App).WithHint("`kbroker apps` lists them")
	}
	if of.Kind != "" || !app.HasObjects() {
		if err := app.CheckKind(of.Kind); err != nil {
			return nil, true, err
		}
	}
	reply, err := f.ofObjects(verb, m)
	return reply, true, err
}

func (f *fakeCore) ofObjects(verb string, m *nats.Msg) (any, error) {
	switch verb {
	case subjects.VerbObjects:
		var r kbroker.ObjectsRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, err
		}
		return fakeObjects(r), nil
	case subjects.VerbObjectOwners:
		return kbroker.ObjectOwnersReply{
			App: "bank", Kinds: []kbroker.ObjectKindRow{{Kind: "account", Service: "ledger", Stored: 302, Active: 12}},
			Owners: []kbroker.ObjectOwnerRow{
				{Instance: "bank-ledger-1", Incarnation: "bank-ledger-1.a", Host: "h1", Shards: 1000, Leaving: 1, Lease: "held", Seen: &kbroker.KeeperSeen{Shards: 1000, Active: map[kbroker.KindName]int{"account": 12}, Mailbox: 3, TurnsPerS: 1234}},
				{Instance: "bank-ledger-2", Incarnation: "bank-ledger-2.b", Shards: 23, Arriving: 1, Lease: "revoked", Silent: "bank-ledger-2 does not listen"},
			},
			Unowned: 1, Moving: []kbroker.ObjectMoving{{Shard: 7, From: "bank-ledger-1", To: "bank-ledger-2"}},
			Hot:         []kbroker.ObjectHot{{Object: "bank/account:alice", Instance: "bank-ledger-1", TurnsPerS: 1200, Mailbox: 3}},
			Quarantined: []kbroker.ObjectQuarantine{{Object: "bank/account:broken", Instance: "bank-ledger-1", Reason: "its turns have panicked 6 times within 1m0s"}},
		}, nil
	case subjects.VerbObjectAct:
		var r kbroker.ObjectActRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, err
		}
		return f.act(r)
	}
	var r kbroker.ObjectRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, err
	}
	app := fakeBank()
	return fakeObject(app.Object(r.Kind, r.ID), verb == subjects.VerbObjectState), nil
}

func fakeObjects(r kbroker.ObjectsRequest) kbroker.ObjectsReply {
	reply := kbroker.ObjectsReply{Rows: []kbroker.ObjectRow{}}
	if r.Kind == "room" {
		row := func(id string) kbroker.ObjectRow {
			return kbroker.ObjectRow{Object: "bank/room:" + id, Kind: "room", ID: id, Shard: 4503599627370496, Placed: true}
		}
		lobby, old := row("lobby"), row("old")
		lobby.Owner, lobby.Unstored, old.SizeBytes, reply.Incomplete = "bank-ledger-1", true, 13, true
		reply.Rows = append(reply.Rows, lobby, old)
		return reply
	}
	var ids []string
	for n := range 300 {
		ids = append(ids, fmt.Sprintf("%03d", n))
	}
	for _, id := range append(ids, "alice", "bob") {
		if !strings.HasPrefix(id, r.Prefix) || id <= r.After {
			continue
		}
		if n := len(reply.Rows); n == fakePage || r.Limit > 0 && n == r.Limit {
			reply.After = reply.Rows[n-1].ID
			break
		}
		o := kbroker.Object{Kind: "account", ID: id}
		reply.Rows = append(reply.Rows, kbroker.ObjectRow{Object: "bank/" + o.String(), Kind: o.Kind, ID: id, Shard: o.Shard(), Owner: "bank-ledger-1", SizeBytes: 13})
	}
	return reply
}

func fakeObject(o kbroker.Object, state bool) kbroker.ObjectDetail {
	d := kbroker.ObjectDetail{ObjectRow: kbroker.ObjectRow{Object: "bank/" + o.String(), Kind: o.Kind, ID: o.ID, Shard: o.Shard(), Placed: o.Placed}, Lease: "none", Reminders: []string{}}
	if o.Placed && o.ID != "lobby" {
		d.Stored, d.Silent = o.ID == "old", "it is not allocated"
		return d
	}
	if o.ID == "lost" {
		d.Stored, d.SizeBytes, d.Silent = true, 13, "no instance owns its shard"
		return d
	}
	d.Owner, d.Incarnation, d.Host, d.Epoch, d.Lease = "bank-ledger-1", "bank-ledger-1.a", "h1", 3, "held"
	d.Seen = &kbroker.ObjectSeen{Serves: true}
	switch o.ID {
	case "lobby":
		d.Takes, d.Labels = &kbroker.Demanded{Slots: 2, CPU: 0.5, MemoryBytes: 64 << 20}, map[string]string{"map": "dust", "mode": "duel"}
		d.Seen = &kbroker.ObjectSeen{Serves: true, Active: true, Phase: "idle", Turns: 2, Durable: kbroker.ObjectNever}
	case "alice":
		d.Stored, d.SizeBytes, d.InMemoryS, d.Outbox, d.Reminders = true, 13, 90, 1, []string{"interest"}
		d.Moving, d.Wanted = "bank-ledger-2", "bank-ledger-2"
		d.Seen = &kbroker.ObjectSeen{Serves: true, Active: true, Phase: "turning", Mailbox: 3, Turns: 17, TurnsPerS: 1200, LastError: "overdrawn: 7 cents are there", LastErrorAgo: 125, Durable: "interval 2s"}
		if state {
			d.State = json.RawMessage(`{"cents":7}`)
		}
	case "broken":
		d.Seen.Quarantine = "its turns have panicked 6 times within 1m0s"
	}
	return d
}

func (f *fakeCore) act(r kbroker.ObjectActRequest) (any, error) {
	if r.Object == "busy" {
		return nil, kbroker.Errorf(kbroker.Overloaded, "account:busy is busy: it stays in memory")
	}
	what := r.Object
	if r.Shard != nil {
		what = fmt.Sprintf("shard %d", *r.Shard)
	}
	if r.From != "" {
		what = "from " + string(r.From)
	}
	if r.Even {
		what = "even"
	}
	f.writes = append(f.writes, strings.Join(strings.Fields(r.Verb+" "+what+" "+string(r.To)), " "))
	if r.Verb == kbroker.ObjectRebalance {
		f.rebalancing = 3
		return kbroker.ObjectActReply{Message: "2 shards of bank move, by its policy", Rebalancing: &kbroker.Rebalancing{Epoch: 4, Number: 1, Left: 2}}, nil
	}
	return kbroker.ObjectActReply{Message: "bank/" + r.Verb + " is done", Moves: map[kbroker.Shard]kbroker.Incarnation{3: "bank-ledger-2.b"}}, nil
}
