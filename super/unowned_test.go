package super

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// TestARolloutWaitsForTheOwnersOfObjects: instances that are ready are not enough, and the
// deadline holds for that as well.
func TestARolloutWaitsForTheOwnersOfObjects(t *testing.T) {
	for name, tc := range map[string]struct {
		count   int
		unowned bool
		seconds int
		want    kbroker.RolloutState
		reason  string
	}{
		"all are owned":                {2, false, 10, kbroker.RolloutDone, ""},
		"some are not":                 {2, true, 10, kbroker.RolloutRunning, ""},
		"some are not for too long":    {2, true, 90, kbroker.RolloutFailed, "no progress for 1m0s: 7 shards have no owner"},
		"nobody is there to own them":  {0, true, 10, kbroker.RolloutDone, ""},
		"no instance is ready as well": {2, true, 90, kbroker.RolloutFailed, "exit code 1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2)
			c.broken[1] = tc.reason == "exit code 1"
			s := service(tc.count)
			s.Objects = []kbroker.KindName{"account"}
			c.deploy(s)
			step := func() {
				c.agents()
				c.now += time.Second
				w := c.world()
				if tc.unowned {
					w.Unowned = map[state.AppKey]string{webKey: "7 shards have no owner"}
				}
				c.apply(Plan(w))
			}
			for range tc.seconds {
				step()
			}
			r := c.view.Apps[webKey].Rollout
			if r.State != tc.want || !strings.Contains(r.Reason, tc.reason) {
				t.Errorf("after %d s the rollout is %+v, want %s, %q", tc.seconds, r, tc.want, tc.reason)
			}
			if tc.unowned = false; tc.want == kbroker.RolloutDone || c.broken[1] {
				return
			}
			if step(); c.view.Apps[webKey].Rollout.State != kbroker.RolloutDone {
				t.Errorf("when all are owned the rollout is %+v, want done", c.view.Apps[webKey].Rollout)
			}
		})
	}
}

func TestWhoseShardsAreServed(t *testing.T) {
	v := &state.View{Placements: map[state.PlacementKey]kbroker.Placement{}, Statuses: map[state.PlacementKey]kbroker.Status{}}
	add := func(app kbroker.AppName, i kbroker.InstanceID, start kbroker.Incarnation, pid int, stop bool) {
		p := kbroker.Placement{Tenant: tenant, App: app, Service: "web", Instance: i, Host: "h1", Stop: stop, Epoch: 1}
		v.Placements[keyOf(p)] = p
		v.Statuses[keyOf(p)] = kbroker.Status{Incarnation: start, PID: pid, State: kbroker.StateReady, Epoch: 1}
	}
	add("shop", "shop-web-1", "shop-web-1.b", 1, false)
	add("shop", "shop-web-2", "shop-web-2.a", 1, true)
	add("shop", "shop-web-3", "shop-web-3.a", 0, true)
	add("bank", "bank-web-1", "bank-web-1.a", 1, false)
	add("shop", "shop-web-4", "", 1, false)
	for owner, want := range map[kbroker.Incarnation]int{
		"shop-web-1.b": 1, // runs
		"shop-web-2.a": 1, // leaves, and runs
		"shop-web-1.a": 0, // was the start before
		"shop-web-3.a": 0, // has ended
		"shop-web-9.a": 0, // is not known
		"bank-web-1.a": 0, // of another app
		"":             0,
	} {
		if n := ownedShards(v, webKey, map[kbroker.Shard]ownership.Assignment{3: {Owner: owner, Epoch: 1}}); n != want {
			t.Errorf("of one shard of %q %d are served, want %d", owner, n, want)
		}
	}
}

// TestADeployEndsWhenAllShardsHaveAnOwner: the leader reads who owns them.
func TestADeployEndsWhenAllShardsHaveAnOwner(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) {
		s.Artifact, s.Objects = kbroker.Artifact{Builtin: kbroker.BuiltinHello}, []kbroker.KindName{"account"}
		s.Count, s.Update.MinHealthy = kbroker.Count{Min: 1, Max: 1}, 0
	})
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &kbroker.DeployReply{})
	})
	var start kbroker.Incarnation
	wait.Until(t, 10*time.Second, func() error {
		var view kbroker.ViewReply
		if err := d.ask(subjects.View("h1"), kbroker.ViewRequest{Host: "h1"}, &view); err != nil {
			return err
		}
		report := kbroker.ReportRequest{Host: "h1", Process: "p1", Number: 1}
		for _, p := range view.Placements {
			i := kbroker.Incarnation(string(p.Instance) + ".a")
			if p.Service == "web" {
				start = i
			}
			report.Statuses = append(report.Statuses, kbroker.Status{
				Tenant: p.Tenant, App: p.App, Service: p.Service, Instance: p.Instance, Host: p.Host, Version: p.Version, Epoch: p.Epoch,
				State: kbroker.StateReady, PID: 42, Incarnation: i,
			})
		}
		if start == "" {
			return fmt.Errorf("the instance is not among %+v", view.Placements)
		}
		return d.ask(subjects.Report("h1"), report, &kbroker.ReportReply{})
	})
	rollout := func() (kbroker.RolloutState, error) {
		var rows []kbroker.AppRow
		err := d.ask(subjects.Core(subjects.VerbApps, tenant), kbroker.ListRequest{App: "shop"}, &rows)
		if err == nil && len(rows) != 1 {
			err = fmt.Errorf("the apps are %+v", rows)
		}
		if err != nil {
			return "", err
		}
		return rows[0].Rollout, nil
	}
	give := func(from, to kbroker.Shard) {
		t.Helper()
		lease, err := d.ownRead(subjects.Own(tenant, "shop", subjects.VerbOwnRead, allocates), kbroker.OwnReadRequest{Keys: []string{subjects.KeyAllocatorLease}})
		if err != nil {
			t.Fatal(err)
		}
		writes := []kbroker.Write{allocatorLease(allocates, lease.Records[0].Revision)}
		for n := from; n < to; n++ {
			writes = append(writes, kbroker.Write{Key: subjects.KeyAssign(n), Value: marshalled(t, ownership.Assignment{Owner: start, Epoch: 3})})
		}
		if _, err := d.ownWrite(subjects.Own(tenant, "shop", subjects.VerbOwnWrite, allocates), writes...); err != nil {
			t.Fatal(err)
		}
	}
	for n := kbroker.Shard(0); n < kbroker.Shards; n += 128 {
		if n+128 == kbroker.Shards {
			<-time.After(1200 * time.Millisecond) // longer than from round to round
		}
		if state, err := rollout(); err != nil || state != kbroker.RolloutRunning {
			t.Fatalf("with %d shards owned the rollout is %q (%v), want it running", n, state, err)
		}
		give(n, n+128)
	}
	wait.Until(t, 5*time.Second, func() error {
		state, err := rollout()
		if err == nil && state != kbroker.RolloutDone {
			err = fmt.Errorf("the rollout is %s, want done", state)
		}
		return err
	})
}
