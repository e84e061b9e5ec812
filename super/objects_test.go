package super

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

func marshalled(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWhatIsKnownOfObjects: what is stored is read by a core, the rest is asked of the
// owner; what is done with an object is in the trail first.
func TestWhatIsKnownOfObjects(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) {
		s.Artifact, s.Objects = kbroker.Artifact{Builtin: kbroker.BuiltinHello}, []kbroker.KindName{"account"}
	})
	app.ObjectStreams = 1
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &kbroker.DeployReply{})
	})
	mine := subjects.Own(tenant, "shop", subjects.VerbOwnWrite, webStart)
	bob := kbroker.Object{Kind: "account", ID: "bob/1"}
	later := ownership.Reminder{Method: "tick", Due: 1_700_000_500_250, Every: 90 * time.Second, CatchUp: "all", Data: []byte("7")}
	soon := ownership.Reminder{Method: "dine", Due: 1_700_000_000_000, CatchUp: "one"}
	stored := func(r ownership.Record) []byte { return ownership.Encode(r) }
	wait.Until(t, 5*time.Second, func() error { // a core may be behind
		_, err := d.ownWrite(
			mine, kbroker.Write{Key: subjects.KeyState(anObject), Value: stored(ownership.Record{Epoch: 3, Exists: true, Schema: 2, State: []byte(`{"cents":7}`), Age: time.Minute})},
			kbroker.Write{Key: subjects.KeyOut(anObject, 1), Value: []byte("tell")}, kbroker.Write{Key: subjects.KeyDue(anObject, "tick tock"), Value: later.Encode()},
			kbroker.Write{Key: subjects.KeyDue(anObject, "noon"), Value: soon.Encode()}, kbroker.Write{Key: subjects.KeyDue(anObject, "broken"), Value: []byte("due")},
			kbroker.Write{Key: subjects.KeyState(bob), Value: stored(ownership.Record{Epoch: 3})}, // deleted
		)
		return err
	})
	var list kbroker.ObjectsReply
	if err := d.ask(subjects.Core(subjects.VerbObjects, tenant), kbroker.ObjectsRequest{App: "shop"}, &list); err != nil ||
		len(list.Rows) != 1 || list.Rows[0].Object != "shop/account:alice" || list.Rows[0].SizeBytes != 11 || list.Rows[0].Schema != 2 || list.Rows[0].Owner != "" {
		t.Errorf("the list is %+v (%v), want alice alone, who has no owner", list, err)
	}
	act := kbroker.ObjectActRequest{App: "shop", Verb: kbroker.ObjectDeactivate, ID: "r1", Kind: "account", Object: "alice"}
	if err := d.askAs("ME", subjects.VerbObjectAct, act, &kbroker.ObjectActReply{}); !errors.Is(err, kbroker.Unavailable) || !strings.Contains(err.Error(), "no instance owns shard") {
		t.Errorf("without an owner: %v", err)
	}
	d.assign(webStart, anObject.Shard())
	detail := func(verb string) (r kbroker.ObjectDetail) {
		t.Helper()
		if err := d.ask(subjects.Core(verb, tenant), kbroker.ObjectRequest{App: "shop", Kind: "account", ID: "alice"}, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	reminders := []kbroker.ObjectReminder{
		{Name: "noon", Method: "dine", Due: time.UnixMilli(soon.Due).UTC(), CatchUp: "one"},
		{Name: "tick tock", Method: "tick", Due: time.UnixMilli(later.Due).UTC(), EveryS: 90, CatchUp: "all"},
	}
	is := detail(subjects.VerbObject)
	if is.Owner != "shop-web-1" || is.Host != "h1" || is.Epoch != 3 || is.Lease != "held" || !is.Stored || is.InMemoryS != 60 || is.Outbox != 1 ||
		!slices.Equal(is.Reminders, []string{"broken", "noon", "tick tock"}) || !slices.Equal(is.Due, reminders) || is.State != nil || is.AssignedAt == nil || time.Since(*is.AssignedAt) > time.Minute || is.Seen != nil || is.Silent == "" {
		t.Errorf("alice is %+v, want what is stored, without her state, and that her owner is silent", is)
	}
	moved := 0
	asked := d.owner(webStart, func(r kbroker.KeeperRequest) (any, *kbroker.Error) {
		switch {
		case r.Kind == "":
			return kbroker.KeeperReply{Keeper: &kbroker.KeeperSeen{
				Shards: 1, Active: map[kbroker.KindName]int{"account": 1}, Hot: []kbroker.ObjectHot{{Object: "shop/account:alice", TurnsPerS: 5}},
				Quarantined: []kbroker.ObjectQuarantine{{Object: "shop/account:eve"}},
			}}, nil
		case r.Verb == kbroker.ObjectRelease && moved < 2:
			moved++
			return nil, kbroker.Errorf(kbroker.Moved, "it is on its way")
		case r.Verb == kbroker.ObjectRemove:
			return nil, kbroker.Errorf(kbroker.NotFound, "it is not stored")
		}
		return kbroker.KeeperReply{Object: &kbroker.ObjectSeen{Active: true, Turns: 4}, Message: "account:alice is away"}, nil
	})
	if is = detail(subjects.VerbObjectState); is.Seen == nil || is.Seen.Turns != 4 || string(is.State) != `{"cents":7}` {
		t.Errorf("alice is %+v, want her state, and what her owner says", is)
	}
	var owners kbroker.ObjectOwnersReply
	if err := d.ask(subjects.Core(subjects.VerbObjectOwners, tenant), kbroker.ListRequest{App: "shop"}, &owners); err != nil || owners.Unowned != kbroker.Shards-1 ||
		len(owners.Owners) != 1 || owners.Owners[0].Shards != 1 || owners.Kinds[0].Stored != 2 || owners.Kinds[0].Active != 1 ||
		len(owners.Hot) != 1 || owners.Hot[0].Instance != "shop-web-1" || len(owners.Quarantined) != 1 {
		t.Errorf("owners are %+v (%v)", owners, err)
	}
	var did kbroker.ObjectActReply
	if err := d.askAs("ME", subjects.VerbObjectAct, act, &did); err != nil || did.Message != "shop/account:alice is away" {
		t.Errorf("deactivate: %+v %v", did, err)
	}
	if r := <-asked; r.Verb != kbroker.ObjectDeactivate || r.ID != "r1" {
		t.Errorf("the owner was asked %+v", r)
	}
	act.Verb = kbroker.ObjectRelease
	if err := d.askAs("ME", subjects.VerbObjectAct, act, &did); err != nil {
		t.Errorf("release, while it moves: %v", err)
	}
	act.Verb = kbroker.ObjectRemove
	if err := d.askAs("ME", subjects.VerbObjectAct, act, &did); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("an error of the owner arrives as %v", err)
	}
	d.awaitTrail("what was done", func(r kbroker.AuditRecord) bool {
		return r.Action == "deactivate" && r.Object == "object shop/account:alice" && r.Outcome == kbroker.AuditDone
	})
	for name, c := range map[string]struct {
		verb string
		ask  any
		code kbroker.Code
	}{
		"an app that is none":  {subjects.VerbObjects, kbroker.ObjectsRequest{App: "nobody"}, kbroker.NotFound},
		"a kind that is none":  {subjects.VerbObjects, kbroker.ObjectsRequest{App: "shop", Kind: "room"}, kbroker.NotFound},
		"a place that is none": {subjects.VerbObjects, kbroker.ObjectsRequest{App: "shop", After: "9999"}, kbroker.Invalid},
		"no id":                {subjects.VerbObject, kbroker.ObjectRequest{App: "shop", Kind: "account"}, kbroker.Invalid},
		"a deed that is none":  {subjects.VerbObjectAct, kbroker.ObjectActRequest{App: "shop", Verb: "steal", ID: "r2", Kind: "account", Object: "alice"}, kbroker.Invalid},
		"a move of nothing":    {subjects.VerbObjectAct, kbroker.ObjectActRequest{App: "shop", Verb: kbroker.ObjectMove, To: "shop-web-1"}, kbroker.Invalid},
		"a move to nobody":     {subjects.VerbObjectAct, kbroker.ObjectActRequest{App: "shop", Verb: kbroker.ObjectMove, Kind: "account", Object: "alice", To: "shop-web-9"}, kbroker.NotFound},
	} {
		if err := d.askAs("ME", c.verb, c.ask, &struct{}{}); !errors.Is(err, c.code) {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
}

// assign gives a shard to a start that has a lease, as an allocator does.
func (d *desktop) assign(to kbroker.Incarnation, n kbroker.Shard) {
	d.t.Helper()
	seeded, err := d.ownRead(subjects.Own(tenant, "shop", subjects.VerbOwnRead, allocates), kbroker.OwnReadRequest{Keys: []string{subjects.KeyAllocatorLease}})
	if err == nil {
		_, err = d.ownWrite(subjects.Own(tenant, "shop", subjects.VerbOwnWrite, to), kbroker.Write{Key: subjects.KeyLease(to), Value: marshalled(d.t, ownership.Lease{Incarnation: to, Host: "h1"})})
	}
	if err == nil {
		_, err = d.ownWrite(
			subjects.Own(tenant, "shop", subjects.VerbOwnWrite, allocates), allocatorLease(allocates, seeded.Records[0].Revision),
			kbroker.Write{Key: subjects.KeyAssign(n), Value: marshalled(d.t, ownership.Assignment{Owner: to, Epoch: 3})},
		)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// owner answers cores as a start does, and passes on what it is to do.
func (d *desktop) owner(who kbroker.Incarnation, says func(kbroker.KeeperRequest) (any, *kbroker.Error)) <-chan kbroker.KeeperRequest {
	d.t.Helper()
	asked := make(chan kbroker.KeeperRequest, 100)
	if _, err := d.nc.Subscribe(subjects.Keeper(tenant, who), func(m *nats.Msg) {
		var r kbroker.KeeperRequest
		if err := json.Unmarshal(m.Data, &r); err != nil || !subjects.IsKept(m.Reply, tenant, who) {
			d.t.Errorf("the owner is asked %q, to answer on %q", m.Data, m.Reply)
		}
		if r.Verb != "" {
			asked <- r
		}
		v, e := says(r)
		reply := &nats.Msg{Subject: m.Reply}
		if e != nil {
			v, reply.Header = e, nats.Header{subjects.HeaderCode: {string(e.Code)}}
		}
		reply.Data, _ = json.Marshal(v)
		_ = d.nc.PublishMsg(reply)
	}); err != nil {
		d.t.Fatal(err)
	}
	return asked
}

func TestWishes(t *testing.T) {
	app := kbroker.App{Name: "shop", Services: []kbroker.Service{{Name: "mail"}, {Name: "web", Objects: []kbroker.KindName{"account"}}}}
	v := &state.View{Placements: map[state.PlacementKey]kbroker.Placement{}, Statuses: map[state.PlacementKey]kbroker.Status{}}
	own := newOwners()
	add := func(of kbroker.AppName, service kbroker.ServiceName, i kbroker.InstanceID, lease *ownership.Lease) {
		start := kbroker.Incarnation(i + ".a")
		p := kbroker.Placement{Tenant: tenant, App: of, Service: service, Instance: i, Host: "h1"}
		v.Placements[keyOf(p)] = p
		v.Statuses[keyOf(p)] = kbroker.Status{Incarnation: start}
		if lease != nil {
			own.leases[start] = *lease
		}
	}
	for n := range 3 {
		add("shop", "web", kbroker.InstanceID(fmt.Sprintf("shop-web-%d", n+1)), &ownership.Lease{})
	}
	add("shop", "web", "shop-web-4", &ownership.Lease{Leaving: true})
	add("shop", "web", "shop-web-5", nil)
	add("shop", "mail", "shop-mail-1", nil)
	add("bank", "web", "bank-web-1", nil)
	own.leases["shop-web-1.old"] = ownership.Lease{} // of an earlier start
	for n := range kbroker.Shard(kbroker.Shards) {
		own.assigned[n] = ownership.Assignment{Owner: kbroker.Incarnation(fmt.Sprintf("shop-web-%d.a", n%3+1)), Epoch: 1}
	}
	own.wishes = kbroker.ObjectWishes{"shop-web-2.a": {3, 4}}
	shard := kbroker.Shard(7)
	wish := func(r kbroker.ObjectActRequest) (map[kbroker.Shard]kbroker.Incarnation, error) {
		all, _, err := wishesOf(v, app, tenant, r, kbroker.Object{Kind: r.Kind, ID: r.Object}, own)
		return all, err
	}
	for name, c := range map[string]struct {
		r    kbroker.ObjectActRequest
		want map[kbroker.Shard]kbroker.Incarnation
		code kbroker.Code
	}{
		"an object":                       {kbroker.ObjectActRequest{Kind: "account", Object: "alice", To: "shop-web-2"}, map[kbroker.Shard]kbroker.Incarnation{257: "shop-web-2.a"}, ""},
		"a shard":                         {kbroker.ObjectActRequest{Shard: &shard, To: "shop-web-3"}, map[kbroker.Shard]kbroker.Incarnation{7: "shop-web-3.a"}, ""},
		"back":                            {kbroker.ObjectActRequest{Even: true}, map[kbroker.Shard]kbroker.Incarnation{3: "", 4: ""}, ""},
		"to one that leaves":              {kbroker.ObjectActRequest{Shard: &shard, To: "shop-web-4"}, nil, kbroker.Refused},
		"to one without a lease":          {kbroker.ObjectActRequest{Shard: &shard, To: "shop-web-5"}, nil, kbroker.Refused},
		"to one of another service":       {kbroker.ObjectActRequest{Shard: &shard, To: "shop-mail-1"}, nil, kbroker.Invalid},
		"to one of another app":           {kbroker.ObjectActRequest{Shard: &shard, To: "bank-web-1"}, nil, kbroker.Invalid},
		"to nobody":                       {kbroker.ObjectActRequest{Shard: &shard, To: "shop-web-9"}, nil, kbroker.NotFound},
		"from one to one that leaves":     {kbroker.ObjectActRequest{From: "shop-web-1", To: "shop-web-4"}, nil, kbroker.Refused},
		"from one to itself, nobody else": {kbroker.ObjectActRequest{From: "shop-web-1", To: "shop-web-1"}, nil, kbroker.Refused},
	} {
		if got, err := wish(c.r); c.code == "" && (err != nil || !maps.Equal(got, c.want)) || c.code != "" && !errors.Is(err, c.code) {
			t.Errorf("%s: %v (%v), want %v, %q", name, got, err, c.want, c.code)
		}
	}
	all, err := wish(kbroker.ObjectActRequest{From: "shop-web-1"})
	has := map[kbroker.Incarnation]int{}
	for n, to := range all {
		if has[to]++; own.assigned[n].Owner != "shop-web-1.a" && own.assigned[n].Owner != to {
			t.Errorf("shard %d moves from %s to %s, which is no need", n, own.assigned[n].Owner, to)
		}
	}
	if err != nil || len(has) != 2 || has["shop-web-2.a"] != kbroker.Shards/2 || has["shop-web-3.a"] != kbroker.Shards/2 {
		t.Errorf("emptied one: %v (%v), want half of all at each of the others", has, err)
	}
}
