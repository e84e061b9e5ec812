package super

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// withRooms is the shop with accounts, and rooms that are placed.
func withRooms(t *testing.T) kbroker.App {
	app := shop(t, func(s *kbroker.Service) {
		s.Artifact, s.Objects = kbroker.Artifact{Builtin: kbroker.BuiltinHello}, []kbroker.KindName{"account", "room"}
		s.Placed, s.Slots = map[kbroker.KindName]kbroker.Demanded{"room": {Slots: 1}}, 4
	})
	app.ObjectStreams = 1
	return app
}

func room(id string) kbroker.Object { return kbroker.Object{Kind: "room", ID: id, Placed: true} }

// allocate gives placed objects to a start that has a lease, as an allocator does.
func (d *desktop) allocate(to kbroker.Incarnation, all ...ownership.Placed) {
	d.t.Helper()
	d.assign(to, 0)
	seeded, err := d.ownRead(subjects.Own(tenant, "shop", subjects.VerbOwnRead, allocates), kbroker.OwnReadRequest{Keys: []string{subjects.KeyAllocatorLease}})
	if err != nil {
		d.t.Fatal(err)
	}
	writes := []kbroker.Write{allocatorLease(allocates, seeded.Records[0].Revision)}
	for _, p := range all {
		a := ownership.Assignment{Owner: to, Epoch: 1 << 34, Placed: &p}
		if p.ID == "ending" {
			a.Next, a.NextEpoch = ownership.Nobody, a.Epoch+1
		}
		writes = append(writes, kbroker.Write{Key: subjects.KeyAssign(p.Object().Shard()), Value: marshalled(d.t, a)})
	}
	if _, err := d.ownWrite(subjects.Own(tenant, "shop", subjects.VerbOwnWrite, allocates), writes...); err != nil {
		d.t.Fatal(err)
	}
}

// TestWhatIsKnownOfPlacedObjects: they are found by their own shards, and only those that are
// allocated have an owner.
func TestWhatIsKnownOfPlacedObjects(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: withRooms(t)}, &kbroker.DeployReply{})
	})
	mine := subjects.Own(tenant, "shop", subjects.VerbOwnWrite, webStart)
	wait.Until(t, 5*time.Second, func() error { // a core may be behind
		state := ownership.Encode(ownership.Record{Epoch: 3, Exists: true, State: []byte(`{"seats":7}`)})
		_, err := d.ownWrite(mine, kbroker.Write{Key: subjects.KeyState(room("lobby")), Value: state}, kbroker.Write{Key: subjects.KeyState(room("old")), Value: state},
			kbroker.Write{Key: subjects.KeyState(anObject), Value: ownership.Encode(ownership.Record{Epoch: 3, Exists: true, State: []byte("{}")})})
		return err
	})
	labels := map[string]string{"map": "dust"}
	d.allocate(webStart, ownership.Placed{Kind: "room", ID: "lobby", Demanded: kbroker.Demanded{Slots: 2}, Labels: labels}, ownership.Placed{Kind: "room", ID: "ending"})
	detail := func(id string) (r kbroker.ObjectDetail) {
		t.Helper()
		if err := d.ask(subjects.Core(subjects.VerbObjectState, tenant), kbroker.ObjectRequest{App: "shop", Kind: "room", ID: id}, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if is := detail("lobby"); !is.Placed || is.Shard != room("lobby").Shard() || is.Owner != "shop-web-1" || is.Host != "h1" || is.Epoch != 1<<34 || is.Lease != "held" ||
		is.Takes == nil || is.Takes.Slots != 2 || is.Labels["map"] != "dust" || !is.Stored || string(is.State) != `{"seats":7}` || is.AssignedAt == nil || is.Releasing {
		t.Errorf("the lobby is %+v", is)
	}
	if is := detail("old"); !is.Placed || is.Owner != "" || !is.Stored || is.Silent != "it is not allocated" || is.Takes != nil || is.AssignedAt != nil {
		t.Errorf("one that is not allocated is %+v", is)
	}
	if is := detail("ending"); is.Owner != "shop-web-1" || !is.Releasing || is.Moving != "" {
		t.Errorf("one that is released is %+v", is)
	}
	d.lists("shop/room:ending shop-web-1 0 unstored", "shop/room:lobby shop-web-1 11", "shop/room:old  11")
	asked := d.owner(webStart, func(r kbroker.KeeperRequest) (any, *kbroker.Error) {
		return kbroker.KeeperReply{Object: &kbroker.ObjectSeen{}, Message: "done with " + r.Object}, nil
	})
	act := kbroker.ObjectActRequest{App: "shop", Verb: kbroker.ObjectDeactivate, ID: "r1", Kind: "room", Object: "lobby"}
	var did kbroker.ObjectActReply
	if err := d.askAs("ME", subjects.VerbObjectAct, act, &did); err != nil || did.Message != "shop/done with lobby" {
		t.Errorf("deactivate: %+v %v", did, err)
	}
	if r := <-asked; r.Verb != kbroker.ObjectDeactivate || r.Object != "lobby" {
		t.Errorf("the owner was asked %+v", r)
	}
	act.Object = "old"
	if err := d.askAs("ME", subjects.VerbObjectAct, act, &did); !errors.Is(err, kbroker.NotFound) || !strings.Contains(err.Error(), "room:old is not allocated") || kbroker.AsError(err).Executed != kbroker.ExecutedNo {
		t.Errorf("what is not allocated is put away: %v", err)
	}
	act = kbroker.ObjectActRequest{App: "shop", Verb: kbroker.ObjectMove, ID: "r2", Kind: "room", Object: "lobby", To: "shop-web-1"}
	if err := d.askAs("ME", subjects.VerbObjectAct, act, &did); !errors.Is(err, kbroker.Refused) || !strings.Contains(kbroker.AsError(err).Hint, "kbroker drain") {
		t.Errorf("a move of a placed object: %v, want it refused", err)
	}
}

// lists expects the rooms in pages of one, and with the accounts.
func (d *desktop) lists(want ...string) {
	d.t.Helper()
	for _, kind := range []kbroker.KindName{"room", ""} {
		var got []string
		for r := (kbroker.ObjectsRequest{App: "shop", Kind: kind, Limit: 1}); ; {
			var reply kbroker.ObjectsReply
			if err := d.ask(subjects.Core(subjects.VerbObjects, tenant), r, &reply); err != nil || len(reply.Rows) > 1 || reply.Incomplete {
				d.t.Fatalf("after %q there is %+v (%v)", r.After, reply, err)
			}
			for _, row := range reply.Rows {
				is := fmt.Sprintf("%s %s %d", row.Object, row.Owner, row.SizeBytes)
				if row.Unstored {
					is += " unstored"
				}
				if row.Placed != (row.Kind == "room") {
					is += " wrong"
				}
				got = append(got, is)
			}
			if r.After = reply.After; r.After == "" {
				break
			}
		}
		if kind == "" {
			want = append(want, "shop/account:alice  2")
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			d.t.Errorf("of kind %q there are %q, want %q", kind, got, want)
		}
	}
}

// Where two placed objects have the same shard, the one that is not allocated has no owner.
func TestTheOwnerOfAnotherPlacedObject(t *testing.T) {
	own, o := newOwners(), room("lobby")
	own.assigned[o.Shard()] = ownership.Assignment{Owner: webStart, Epoch: 1, Placed: &ownership.Placed{Kind: "room", ID: "other"}}
	if a := own.of(o); a.Owner != "" {
		t.Errorf("it is on %s", a.Owner)
	}
	if own.assigned[o.Shard()].Placed.ID = "lobby"; own.of(o).Owner != webStart {
		t.Error("its own assignment is not found")
	}
}

func TestAKindStaysPlacedOrNot(t *testing.T) {
	c := newCluster(t, 3)
	with := func(placed bool, kinds ...kbroker.KindName) kbroker.App {
		app := withRooms(t)
		s := &app.Services[0]
		if s.Objects = kinds; !placed {
			s.Placed = nil
		}
		return app
	}
	for _, step := range []struct {
		name string
		app  kbroker.App
		why  string // it is refused
	}{
		{"without rooms", with(false, "account"), ""},
		{"with rooms that are placed", with(true, "account", "room"), ""},
		{"placed no more", with(false, "account", "room"), `the objects room of app "shop" are placed in version 2, and not placed in this one`},
		{"takes something else", func() kbroker.App {
			app := with(true, "account", "room")
			app.Services[0].Placed = map[kbroker.KindName]kbroker.Demanded{"room": {Slots: 2}}
			return app
		}(), ""},
		{"without rooms again", with(false, "account"), ""},
		{"rooms that are not placed, though there were none", with(false, "account", "room"), "are placed in version 3"},
		{"a kind that was not placed", func() kbroker.App {
			app := with(true, "account", "room")
			app.Services[0].Placed["account"] = kbroker.Demanded{}
			return app
		}(), "the objects account of app \"shop\" are not placed in version 4"},
		{"rooms again", with(true, "account", "room"), ""},
	} {
		for _, dry := range []bool{true, false} {
			d, err := decideDeploy(&c.view, kbroker.DeployRequest{Tenant: tenant, App: step.app, DryRun: dry}, time.Time{})
			if step.why == "" && err != nil || step.why != "" && (!errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), step.why) || kbroker.AsError(err).Hint == "") {
				t.Fatalf("%s, dry %v: %v, want %q", step.name, dry, err, step.why)
			}
			c.apply(d.changes)
		}
		_, err := decidePlan(t.Context(), &c.view, Verdict{}, kbroker.PlanRequest{Tenant: tenant, App: step.app}, time.Time{})
		if step.why != "" && !errors.Is(err, kbroker.Refused) || step.why == "" && err != nil {
			t.Errorf("%s: the plan says %v, want %q", step.name, err, step.why)
		}
	}
	if _, err := decideRollback(&c.view, kbroker.RollbackRequest{Tenant: tenant, App: "shop", Version: 2}, time.Time{}); err != nil {
		t.Errorf("a rollback: %v", err)
	}
	// A version of an earlier build, which has let it pass.
	old := c.view.Versions[webKey][1]
	old.App = with(false, "account", "room")
	c.apply([]state.Change{state.PutVersion{Version: old}})
	if _, err := decideRollback(&c.view, kbroker.RollbackRequest{Tenant: tenant, App: "shop", Version: 1}, time.Time{}); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a rollback to rooms that are not placed: %v, want it refused", err)
	}
}
