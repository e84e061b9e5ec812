package super

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestWhatAnAllocatorDecides is asked of the one that holds the app's lease.
func TestWhatAnAllocatorDecides(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &kbroker.DeployReply{})
	})
	ask := func(of kbroker.AppName) (r kbroker.AllocatorReply, err error) {
		return r, d.ask(subjects.Core(subjects.VerbAllocator, tenant), kbroker.ListRequest{App: of}, &r)
	}
	refused := func(what string, code kbroker.Code, text, hint string) {
		t.Helper()
		wait.Until(t, 5*time.Second, func() error { // a core may be behind
			_, err := ask("shop")
			if e := kbroker.AsError(err); err == nil || e.Code != code || !strings.Contains(e.Message, text) || !strings.Contains(e.Hint, hint) {
				return fmt.Errorf("%s: %+v, want %s: %q, with the hint %q", what, e, code, text, hint)
			}
			return nil
		})
	}
	if _, err := ask("nobody"); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("of an app that is not there: %v", err)
	}
	refused("with no lease taken", kbroker.Unavailable, `no allocator of app "shop" is active`, "kbroker why shop")

	var seeded kbroker.LeaseReply
	if err := d.ask(subjects.Lease(tenant, "shop"), kbroker.LeaseRequest{}, &seeded); err != nil {
		t.Fatal(err)
	}
	const holder = kbroker.Incarnation("shop-allocator-1.aaaa")
	take := kbroker.LeaseRequest{Write: &kbroker.AllocatorLease{Holder: holder, Epoch: 7}, Expected: seeded.Sequence}
	if err := d.ask(subjects.Lease(tenant, "shop"), take, &kbroker.LeaseReply{}); err != nil {
		t.Fatal(err)
	}
	refused("of one that has ended", kbroker.Unavailable, "shop-allocator-1 does not listen", "kbroker restart shop/allocator/shop-allocator-1")

	var active, idle atomic.Bool
	d.owner(holder, func(r kbroker.KeeperRequest) (any, *kbroker.Error) {
		if !active.Load() {
			return nil, kbroker.Errorf(kbroker.Moved, "it is not active")
		}
		if idle.Load() {
			return kbroker.KeeperReply{Allocator: &kbroker.AllocatorSeen{Epoch: 7}}, nil
		}
		return kbroker.KeeperReply{Allocator: &kbroker.AllocatorSeen{
			Epoch: 7, Services: []kbroker.AllocatorNeed{{Service: "web", Wanted: 3}},
			Instances: []kbroker.AllocatorLoad{{Instance: "shop-web-10", Service: "web"}, {Instance: "shop-mail-11", Service: "mail"}, {Instance: "shop-web-2", Service: "web"}},
		}}, nil
	})
	refused("of one that lost its lease", kbroker.Unavailable, "is not the active allocator", "try again")
	active.Store(true)
	r, err := ask("shop")
	if err != nil || r.App != "shop" || r.Allocator != "shop-allocator-1" || r.Epoch != 7 || len(r.Services) != 1 || r.Services[0].Wanted != 3 {
		t.Errorf("it decides %+v (%v)", r, err)
	}
	var names []kbroker.InstanceID
	for _, i := range r.Instances {
		names = append(names, i.Instance)
	}
	if want := []kbroker.InstanceID{"shop-mail-11", "shop-web-2", "shop-web-10"}; !slices.Equal(names, want) {
		t.Errorf("instances are %v, want %v, as people count", names, want)
	}
	idle.Store(true)
	if r, err := ask("shop"); err != nil || r.Services == nil || r.Instances == nil {
		t.Errorf("of one that knows of nothing: %+v (%v), want lists that are empty, and not null", r, err)
	}
	if err := d.ask(subjects.Super(subjects.VerbStop, tenant, subjects.NoKey), kbroker.StopRequest{App: "shop"}, &kbroker.DeployReply{}); err != nil {
		t.Fatal(err)
	}
	refused("of a stopped app", kbroker.NotFound, `app "shop" is stopped`, "kbroker restart shop")
}

// TestARebalance is found by the active allocator, and in the trail before it is done.
func TestARebalance(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) {
		s.Artifact, s.Objects = kbroker.Artifact{Builtin: kbroker.BuiltinHello}, []kbroker.KindName{"account"}
	})
	app.ObjectStreams = 1
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &kbroker.DeployReply{})
	})
	wait.Until(t, 5*time.Second, func() error { // a core may be behind
		return d.ask(subjects.Core(subjects.VerbObjects, tenant), kbroker.ObjectsRequest{App: "shop"}, &kbroker.ObjectsReply{})
	})
	d.assign(webStart, anObject.Shard())
	var knows atomic.Bool
	asked := d.owner(allocates, func(r kbroker.KeeperRequest) (any, *kbroker.Error) {
		says := kbroker.AllocatorSeen{Epoch: 1}
		if knows.Load() && r.Verb == kbroker.ObjectRebalance {
			says.Rebalance = &kbroker.Rebalance{Moves: []kbroker.RebalanceMove{{ShardLoad: kbroker.ShardLoad{Shard: 7}, From: webStart, To: "shop-web-2.b"}, {ShardLoad: kbroker.ShardLoad{Shard: 9}, From: webStart, To: "shop-web-2.b"}}}
		}
		return kbroker.KeeperReply{Allocator: &says}, nil
	})
	dry := func() (r kbroker.AllocatorReply, err error) {
		return r, d.ask(subjects.Core(subjects.VerbAllocator, tenant), kbroker.AllocatorRequest{App: "shop", Rebalance: true}, &r)
	}
	act := kbroker.ObjectActRequest{App: "shop", Verb: kbroker.ObjectRebalance, ID: "r1"}
	if _, err := dry(); !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint != "kbroker restart shop/allocator/"+string(allocates.Instance()) {
		t.Errorf("of an earlier build: %v", err)
	}
	knows.Store(true)
	if r, err := dry(); err != nil || r.Rebalance == nil || len(r.Rebalance.Moves) != 2 {
		t.Errorf("it would move %+v (%v)", r.Rebalance, err)
	}
	var done kbroker.ObjectActReply
	if err := d.askAs("ME", subjects.VerbObjectAct, act, &done); err != nil || len(done.Moves) != 2 || done.Moves[7] != "shop-web-2.b" || done.Message != "2 shards of shop move, by its policy" {
		t.Errorf("it moves %+v (%v)", done, err)
	}
	for n, wantDry := range []bool{true, true, false} {
		if r := <-asked; r.Verb != kbroker.ObjectRebalance || r.DryRun != wantDry {
			t.Errorf("question %d is %+v, want a dry run: %t", n, r, wantDry)
		}
	}
	act.From = "shop-web-1"
	if err := d.askAs("ME", subjects.VerbObjectAct, act, &done); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("a rebalance of one instance: %v", err)
	}
	d.awaitTrail("the rebalance", func(r kbroker.AuditRecord) bool {
		return r.Action == kbroker.ObjectRebalance && r.Object == "app shop" && r.Outcome == kbroker.AuditDone
	})
}
