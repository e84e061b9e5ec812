package super

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// versions deploys forms of the service, each as a version that gets done.
func (c *cluster) versions(forms ...kbroker.Service) {
	for _, s := range forms {
		c.deploy(s)
		c.settle()
	}
}

// form is a service that runs a program.
func form(program string, count int) kbroker.Service {
	s := service(count)
	s.Artifact.SHA256 = program
	return s
}

// failed marks the wanted version as one whose rollout has failed.
func (c *cluster) failed() {
	rec := c.view.Apps[webKey]
	rec.Rollout.State = kbroker.RolloutFailed
	c.view.Apps[webKey] = rec
}

func TestDecideRollback(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(*cluster)
		version int
		want    string // program and count of the new version; "": none is made
		cause   string
		code    kbroker.Code
	}{
		{"without a number it is the version before", func(c *cluster) { c.versions(form("a", 1), form("b", 2)) }, 0, "a 1", "rollback to 1", ""},
		{"a number names any version", func(c *cluster) { c.versions(form("a", 1), form("b", 2), form("c", 3)) }, 1, "a 1", "rollback to 1", ""},
		{"of a failed version it is the last good one", func(c *cluster) {
			c.versions(form("a", 1))
			c.deploy(form("b", 1))
			c.failed()
			c.deploy(form("c", 1))
			c.failed()
		}, 0, "a 1", "rollback to 1", ""},
		{"a version like the wanted one is passed over", func(c *cluster) {
			c.versions(form("a", 1), form("b", 1))
			c.restart("")
			c.settle()
		}, 0, "a 1", "rollback to 1", ""},
		{"a rollback can be undone", func(c *cluster) {
			c.versions(form("a", 1), form("b", 1))
			c.rollback(0)
			c.settle()
		}, 0, "b 1", "rollback to 2", ""},
		{"to what is wanted it changes nothing", func(c *cluster) { c.versions(form("a", 1), form("b", 2)) }, 2, "", "", ""},
		{"to what has failed it tries again", func(c *cluster) {
			c.versions(form("a", 1))
			c.deploy(form("b", 1))
			c.failed()
		}, 2, "b 1", "rollback to 2", ""},
		{"a stopped app is started", func(c *cluster) {
			c.versions(form("a", 1))
			rec := c.view.Apps[webKey]
			rec.Stopped = true
			c.view.Apps[webKey] = rec
		}, 1, "a 1", "rollback to 1", ""},
		{"there is no such version", func(c *cluster) { c.versions(form("a", 1)) }, 7, "", "", kbroker.NotFound},
		{"there is none before the first", func(c *cluster) { c.versions(form("a", 1)) }, 0, "", "", kbroker.NotFound},
		{"no known host meets its constraints any more", func(c *cluster) {
			old := form("a", 1)
			old.Require = []string{"disk == ssd"}
			for name, h := range c.view.Hosts {
				h.Labels["disk"] = "ssd"
				c.view.Hosts[name] = h
			}
			c.versions(old, form("b", 1))
			for name, h := range c.view.Hosts {
				h.Labels = map[string]string{"arch": "amd64"}
				c.view.Hosts[name] = h
			}
		}, 1, "", "", kbroker.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, 2)
			tc.prepare(c)
			before := c.view.Apps[webKey].Version
			d, err := decideRollback(&c.view, kbroker.RollbackRequest{Tenant: tenant, App: "shop", Version: tc.version, Request: "r"}, time.Time{})
			if tc.code != "" {
				if !errors.Is(errorOf(err), tc.code) || len(d.changes) > 0 {
					t.Fatalf("%v with %d changes, want %s and none", err, len(d.changes), tc.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			reply := d.reply.(kbroker.DeployReply)
			if tc.want == "" {
				if !reply.Unchanged || reply.Version != before || len(d.changes) > 0 {
					t.Fatalf("reply %+v with %d changes, want unchanged", reply, len(d.changes))
				}
				return
			}
			c.apply(d.changes)
			got := c.view.Versions[webKey][reply.Version]
			s := got.App.Services[0]
			if text := fmt.Sprint(s.Artifact.SHA256, " ", s.Count.Min); text != tc.want || got.Cause != tc.cause || reply.Version <= before {
				t.Errorf("version %d runs %s by %q, want %s by %q in a new one", reply.Version, text, got.Cause, tc.want, tc.cause)
			}
			if rec := c.view.Apps[webKey]; rec.Version != reply.Version || rec.Stopped {
				t.Errorf("wanted is version %d (stopped: %t), want %d", rec.Version, rec.Stopped, reply.Version)
			}
			again, err := decideRollback(&c.view, kbroker.RollbackRequest{Tenant: tenant, App: "shop", Version: tc.version, Request: "r"}, time.Time{})
			if err != nil || len(again.changes) > 0 || again.reply.(kbroker.DeployReply).Version != reply.Version {
				t.Errorf("the same request again: %+v with %d changes, %v; want version %d and none", again.reply, len(again.changes), err, reply.Version)
			}
		})
	}
}

func (c *cluster) rollback(version int) {
	c.t.Helper()
	d, err := decideRollback(&c.view, kbroker.RollbackRequest{Tenant: tenant, App: "shop", Version: version}, time.Time{})
	if err != nil {
		c.t.Fatal(err)
	}
	c.apply(d.changes)
}

func (c *cluster) restart(instance kbroker.InstanceID) kbroker.DeployReply {
	c.t.Helper()
	d, err := decideRestart(&c.view, kbroker.RestartRequest{Tenant: tenant, App: "shop", Instance: instance}, time.Time{})
	if err != nil {
		c.t.Fatal(err)
	}
	c.apply(d.changes)
	return d.reply.(kbroker.DeployReply)
}

// liveNames are the live instances of the shop, in order.
func (c *cluster) liveNames() []kbroker.InstanceID {
	var names []kbroker.InstanceID
	for _, ps := range c.live() {
		for _, p := range ps {
			if p.App == webKey.App {
				names = append(names, p.Instance)
			}
		}
	}
	slices.SortFunc(names, compareInstances)
	return names
}

// neverBelow steps until enough, and fails when fewer than n answer meanwhile.
func (c *cluster) neverBelow(n int, enough func() bool) {
	c.t.Helper()
	for i := 0; !enough(); i++ {
		if i > 100 {
			c.t.Fatalf("it does not end; live are %v", c.liveNames())
		}
		c.step()
		if ready := c.readyCount(); ready < n {
			c.t.Fatalf("second %d: %d instances answer, want %d or more", i, ready, n)
		}
	}
}

func TestRestartReplacesEveryInstanceAndLosesNoCapacity(t *testing.T) {
	c := newCluster(t, 3)
	c.versions(service(3))
	before := c.liveNames()
	reply := c.restart("")
	if got := c.view.Versions[webKey][reply.Version]; got.Cause != "restart" || reply.Version != 2 {
		t.Fatalf("restart made version %d by %q, want 2 by restart", reply.Version, got.Cause)
	}
	c.neverBelow(3, func() bool { return c.view.Apps[webKey].Rollout.State == kbroker.RolloutDone })
	for _, name := range c.liveNames() {
		if slices.Contains(before, name) {
			t.Errorf("%s was not replaced", name)
		}
	}
}

func TestADeployKeepsARestart(t *testing.T) {
	c := newCluster(t, 2)
	app := shop(t, nil)
	deploy := func() decision {
		t.Helper()
		d, err := decideDeploy(&c.view, kbroker.DeployRequest{Tenant: tenant, App: app}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		c.apply(d.changes)
		return d
	}
	deploy()
	c.settle()
	c.restart("")
	c.settle()
	before := c.liveNames()
	if d := deploy(); len(d.changes) != 0 {
		t.Errorf("deploying the same spec after a restart makes %v, want nothing", d.changes)
	}
	app.Services[0].Count = kbroker.Count{Min: 4, Max: 4}
	deploy()
	c.settle()
	for _, name := range before {
		if !slices.Contains(c.liveNames(), name) {
			t.Errorf("a deploy that changes a count alone replaced %s", name)
		}
	}
	app.Services[0].Restart = 7
	if d := deploy(); len(d.changes) != 0 {
		t.Errorf("a client that sets the restarts itself makes %v, want nothing", d.changes)
	}
}

func TestRestartStartsAStoppedApp(t *testing.T) {
	c := newCluster(t, 2)
	c.versions(service(2))
	d, err := decideStop(&c.view, kbroker.StopRequest{Tenant: tenant, App: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	c.apply(d.changes)
	c.settle()
	c.restart("")
	c.settle()
	if n := c.count(); n != 2 {
		t.Errorf("%d instances run after the restart of a stopped app, want 2", n)
	}
}

func TestRestartOfOneInstanceBringsANewOneFirst(t *testing.T) {
	for _, count := range []int{1, 3} {
		c := newCluster(t, 3)
		c.versions(service(count))
		before := c.liveNames()
		c.restart(before[0])
		c.restart(before[0]) // asked again after a lost answer
		c.neverBelow(count, func() bool { return !slices.Contains(c.liveNames(), before[0]) })
		c.settle()
		after := c.liveNames()
		if len(after) != count {
			t.Errorf("of %d: %v run afterwards", count, after)
		}
		for _, name := range before[1:] {
			if !slices.Contains(after, name) {
				t.Errorf("of %d: %s was replaced too", count, name)
			}
		}
		if rec := c.view.Apps[webKey]; rec.Version != 1 || rec.Rollout.State != kbroker.RolloutDone {
			t.Errorf("of %d: the app is at version %d, %s; want 1, done", count, rec.Version, rec.Rollout.State)
		}
	}
}

// A new instance that does not get ready must not cost the old one.
func TestRestartOfOneInstanceKeepsItWhileTheNewOneIsNotReady(t *testing.T) {
	c := newCluster(t, 2)
	c.versions(service(2))
	before := c.liveNames()
	for k := range c.view.Placements {
		c.keep(k)
	}
	c.broken[1] = true
	c.restart(before[0])
	for range 300 {
		c.step()
	}
	for _, name := range before {
		if !slices.Contains(c.liveNames(), name) {
			t.Errorf("%s has left although its successor is not ready; live are %v", name, c.liveNames())
		}
	}
	if n := c.count(); n != 3 {
		t.Errorf("%d instances are placed, want the two and one successor", n)
	}
}

func TestDecideRestartRefuses(t *testing.T) {
	c := newCluster(t, 2)
	c.versions(service(2))
	name := c.liveNames()[0]
	for what, tc := range map[string]struct {
		request kbroker.RestartRequest
		want    kbroker.Code
	}{
		"an app that is not there":          {kbroker.RestartRequest{App: "none"}, kbroker.NotFound},
		"a service that is not there":       {kbroker.RestartRequest{App: "shop", Service: "none"}, kbroker.NotFound},
		"an instance that is not there":     {kbroker.RestartRequest{App: "shop", Instance: "shop-web-99"}, kbroker.NotFound},
		"an instance of another service":    {kbroker.RestartRequest{App: "shop", Service: "api", Instance: name}, kbroker.NotFound},
		"the allocator, which has no spec":  {kbroker.RestartRequest{App: "shop", Service: kbroker.AllocatorService}, kbroker.Refused},
		"an instance of another app's name": {kbroker.RestartRequest{App: "none", Instance: name}, kbroker.NotFound},
	} {
		tc.request.Tenant = tenant
		if d, err := decideRestart(&c.view, tc.request, time.Time{}); !errors.Is(errorOf(err), tc.want) || len(d.changes) > 0 {
			t.Errorf("%s: %v with %d changes, want %s", what, err, len(d.changes), tc.want)
		}
	}
	c.failed()
	if _, err := decideRestart(&c.view, kbroker.RestartRequest{Tenant: tenant, App: "shop", Instance: name}, time.Time{}); !errors.Is(errorOf(err), kbroker.Refused) {
		t.Errorf("one instance of a failed rollout: %v, want refused", err)
	}
}

func TestHistoryRows(t *testing.T) {
	c := newCluster(t, 2)
	c.versions(form("a", 1), form("b", 3))
	c.deploy(form("c", 3))
	c.failed()
	rows, err := historyRows(&c.view, webKey)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprintf("%d %s wanted %t good %t: %s", r.Version, r.Cause, r.Wanted, r.Good, strings.Join(r.Changes, ", ")))
	}
	want := []string{
		"3 deploy wanted true good false: web: program changed",
		"2 deploy wanted false good true: web: count 1 -> 3; program changed",
		"1 deploy wanted false good false: web: new, count 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("history is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if rows[1].Running != 3 {
		t.Errorf("%d instances of version 2 run, want 3", rows[1].Running)
	}
	if _, err := historyRows(&c.view, state.AppKey{Tenant: tenant, App: "none"}); !errors.Is(errorOf(err), kbroker.NotFound) {
		t.Errorf("history of no app: %v, want not found", err)
	}
}
