package super

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
	"github.com/kbroker/kbroker/state"
)

// shop is a valid app, with every default filled in.
func shop(t *testing.T, change func(*kbroker.Service)) kbroker.App {
	t.Helper()
	app, err := spec.Parse([]byte("name: shop\nservices:\n  web:\n    run: bin/web\n    count: 3\n"), "app.yaml")
	if err != nil {
		t.Fatal(err)
	}
	app.Services[0].Artifact = kbroker.Artifact{SHA256: strings.Repeat("a", 64), SizeBytes: 1, Arch: "amd64"}
	if change != nil {
		change(&app.Services[0])
	}
	return *app
}

// In how many streams objects are decides in which one each is: it never changes.
func TestTheStreamsOfAnAppAreFixed(t *testing.T) {
	c := newCluster(t, 3)
	deploy := func(streams int, kinds ...kbroker.KindName) (decision, error) {
		app := shop(t, func(s *kbroker.Service) { s.Objects = kinds })
		app.ObjectStreams = streams
		d, err := decideDeploy(&c.view, kbroker.DeployRequest{Tenant: tenant, App: app}, time.Time{})
		if err == nil {
			c.apply(d.changes)
		}
		return d, err
	}
	for _, step := range []struct {
		name             string
		streams          int
		kinds            []kbroker.KindName
		version, of, rec int // afterwards; version 0: it is refused
	}{
		{"a first version without objects", 0, nil, 1, 0, 0},
		{"a first version with objects", 16, []kbroker.KindName{"account"}, 2, 16, 16},
		{"the number left out", 0, []kbroker.KindName{"account"}, 2, 16, 16},
		{"another number", 4, []kbroker.KindName{"account"}, 0, 16, 16},
		{"one more kind", 16, []kbroker.KindName{"account", "rate"}, 3, 16, 16},
		{"no objects", 0, nil, 4, 0, 16},
		{"another number, after none", 4, []kbroker.KindName{"account"}, 0, 0, 16},
		{"objects again", 0, []kbroker.KindName{"account"}, 5, 16, 16},
	} {
		d, err := deploy(step.streams, step.kinds...)
		if step.version == 0 {
			if e := kbroker.AsError(err); !errors.Is(err, kbroker.Refused) || !strings.Contains(e.Hint, "write 16") {
				t.Errorf("%s: %v, want it refused with a hint", step.name, err)
			}
		} else if err != nil || d.reply.(kbroker.DeployReply).Version != step.version {
			t.Fatalf("%s: %+v, %v, want version %d", step.name, d.reply, err, step.version)
		}
		rec := c.view.Apps[webKey]
		if got := c.view.Versions[webKey][rec.Version].App.ObjectStreams; got != step.of || rec.ObjectStreams != step.rec {
			t.Errorf("%s: the version has %d streams, the record %d, want %d and %d", step.name, got, rec.ObjectStreams, step.of, step.rec)
		}
	}
	back, err := decideRollback(&c.view, kbroker.RollbackRequest{Tenant: tenant, App: "shop", Version: 1}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	c.apply(back.changes)
	if rec := c.view.Apps[webKey]; rec.ObjectStreams != 16 {
		t.Errorf("after a rollback to a version without objects the record has %d streams, want 16", rec.ObjectStreams)
	}
	c.apply(func() []state.Change {
		d, err := deploy(0, "account")
		if err != nil {
			t.Fatal(err)
		}
		return d.changes
	}())
	c.settle()
	for _, p := range c.view.Placements {
		if p.ObjectStreams != 16 && !p.Stop && p.Service == "web" {
			t.Errorf("instance %s is told of %d streams, want 16", p.Instance, p.ObjectStreams)
		}
	}
	if c.count() == 0 {
		t.Error("nothing is placed")
	}
}

func TestAFirstAppHasFourStreamsOfObjects(t *testing.T) {
	app := shop(t, func(s *kbroker.Service) { s.Objects = []kbroker.KindName{"account"} })
	if n, err := objectStreams(kbroker.AppRecord{}, app); n != kbroker.DefaultObjectStreams || err != nil {
		t.Errorf("%d streams, %v, want %d", n, err, kbroker.DefaultObjectStreams)
	}
}

func TestDecideDeploy(t *testing.T) {
	c := newCluster(t, 3)
	request := kbroker.DeployRequest{Tenant: tenant, App: shop(t, nil)}
	dry := request
	dry.DryRun = true
	if d, err := decideDeploy(&c.view, dry, time.Time{}); err != nil || len(d.changes) != 0 {
		t.Fatalf("a dry run: %v, %v; want no change", d.changes, err)
	}
	d, err := decideDeploy(&c.view, request, time.Time{})
	if err != nil || d.reply.(kbroker.DeployReply).Version != 1 {
		t.Fatalf("first deploy: %+v, %v; want version 1", d.reply, err)
	}
	c.apply(d.changes)
	again := request
	again.App = shop(t, func(s *kbroker.Service) { s.Build, s.Artifact.Path = "elsewhere", "/elsewhere" })
	d, err = decideDeploy(&c.view, again, time.Time{})
	if err != nil || len(d.changes) != 0 || !d.reply.(kbroker.DeployReply).Unchanged {
		t.Errorf("the same app again: %+v with %d changes, %v; want unchanged, so that a request may be sent twice", d.reply, len(d.changes), err)
	}
	stopped := c.view.Apps[webKey]
	stopped.Stopped = true
	c.apply([]state.Change{state.PutApp{Record: stopped}})
	d, err = decideDeploy(&c.view, request, time.Time{})
	if err != nil || len(d.changes) != 1 || d.reply.(kbroker.DeployReply).Unchanged {
		t.Errorf("the same app after a stop: %+v with %d changes, %v; want it started", d.reply, len(d.changes), err)
	}
	request.App = shop(t, func(s *kbroker.Service) { s.Args = []string{"-v"} })
	d, err = decideDeploy(&c.view, request, time.Time{})
	if err != nil || d.reply.(kbroker.DeployReply).Version != 2 {
		t.Errorf("another app: %+v, %v; want version 2", d.reply, err)
	}
}

// On one host a crash can leave the beginning of a batch: a version that no
// record names must not be in the way for ever.
func TestDecideDeployStepsOverAVersionWithoutARecord(t *testing.T) {
	c := newCluster(t, 1)
	request := kbroker.DeployRequest{Tenant: tenant, App: shop(t, nil)}
	d, err := decideDeploy(&c.view, request, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range d.changes {
		if _, ok := change.(state.PutVersion); ok {
			c.apply([]state.Change{change})
		}
	}
	d, err = decideDeploy(&c.view, request, time.Time{})
	if err != nil || d.reply.(kbroker.DeployReply).Version != 2 {
		t.Errorf("deploy beside a version 1 without a record: %+v, %v; want version 2", d.reply, err)
	}
}

func TestDecideDeployRefusesWhatCannotBe(t *testing.T) {
	c := newCluster(t, 2)
	for name, change := range map[string]func(*kbroker.Service){
		"a constraint that no known host meets": func(s *kbroker.Service) { s.Require = []string{"disk == ssd"} },
		"a program of another architecture":     func(s *kbroker.Service) { s.Artifact.Arch = "arm64" },
		"a negative count":                      func(s *kbroker.Service) { s.Count = kbroker.Count{Min: -1, Max: -1} },
		"a built-in program that is ours":       func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinAllocator} },
		"the reserved name":                     func(s *kbroker.Service) { s.Name = kbroker.AllocatorService },
	} {
		d, err := decideDeploy(&c.view, kbroker.DeployRequest{Tenant: tenant, App: shop(t, change)}, time.Time{})
		if code := errorOf(err); err == nil || code.Code != kbroker.Invalid || len(d.changes) != 0 {
			t.Errorf("%s: %v with %d changes, want code invalid and none", name, err, len(d.changes))
		}
	}
}

func TestDecideScale(t *testing.T) {
	c := newCluster(t, 2)
	d, err := decideDeploy(&c.view, kbroker.DeployRequest{Tenant: tenant, App: shop(t, nil)}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	c.apply(d.changes)
	before := kbroker.Template(c.view.Versions[webKey][1].App.Services[0])
	d, err = decideScale(&c.view, kbroker.ScaleRequest{Tenant: tenant, App: "shop", Count: 5}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	c.apply(d.changes)
	s := c.view.Versions[webKey][2].App.Services[0]
	if s.Count != (kbroker.Count{Min: 5, Max: 5}) || kbroker.Template(s) != before {
		t.Errorf("scaled service has count %+v and template %s, want 5 and %s", s.Count, kbroker.Template(s), before)
	}
	if c.view.Versions[webKey][1].App.Services[0].Count.Min != 3 {
		t.Error("scaling changed the version before")
	}
	for name, tc := range map[string]struct {
		request kbroker.ScaleRequest
		want    kbroker.Code
	}{
		"an app that is not there":    {kbroker.ScaleRequest{Tenant: tenant, App: "none", Count: 1}, kbroker.NotFound},
		"a service that is not there": {kbroker.ScaleRequest{Tenant: tenant, App: "shop", Service: "none", Count: 1}, kbroker.NotFound},
		"a negative count":            {kbroker.ScaleRequest{Tenant: tenant, App: "shop", Count: -1}, kbroker.Invalid},
	} {
		if _, err := decideScale(&c.view, tc.request, time.Time{}); !errors.Is(errorOf(err), tc.want) {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

// A number is given for now: the version before still has the scale, and takes it back.
func TestDecideScaleOfAScaledServiceLeavesItsScaleOut(t *testing.T) {
	c := newCluster(t, 2)
	scale := &kbroker.Scale{Busy: 0.5}
	app := shop(t, func(s *kbroker.Service) { s.Count, s.Scale = kbroker.Count{Min: 2, Max: 20}, scale })
	for _, want := range []int{1, 3} {
		d, err := decideDeploy(&c.view, kbroker.DeployRequest{Tenant: tenant, App: app}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		c.apply(d.changes)
		if s := c.view.Versions[webKey][want].App.Services[0]; !reflect.DeepEqual(s.Scale, scale) {
			t.Errorf("version %d as deployed has scale %+v, want %+v", want, s.Scale, scale)
		}
		d, err = decideScale(&c.view, kbroker.ScaleRequest{Tenant: tenant, App: "shop", Count: 5}, time.Time{})
		if err != nil {
			t.Fatalf("a scaled service takes no number: %v", err)
		}
		c.apply(d.changes)
		if s := c.view.Versions[webKey][want+1].App.Services[0]; s.Count != (kbroker.Count{Min: 5, Max: 5}) || s.Scale != nil {
			t.Errorf("version %d has count %+v and scale %+v, want 5 and none", want+1, s.Count, s.Scale)
		}
	}
}

func TestDecideDemandRefusesALowerEpoch(t *testing.T) {
	c := newCluster(t, 1)
	c.deploy(service(1))
	demand := func(epoch uint64, n int) kbroker.Demand {
		return kbroker.Demand{Tenant: tenant, App: "shop", Epoch: epoch, Wanted: map[kbroker.ServiceName]int{"web": n}}
	}
	d, err := decideDemand(&c.view, demand(2, 3))
	if err != nil {
		t.Fatal(err)
	}
	c.apply(d.changes)
	if d, err := decideDemand(&c.view, demand(2, 3)); err != nil || len(d.changes) != 0 {
		t.Errorf("the same demand again: %v, %v; want nothing", d.changes, err)
	}
	if _, err := decideDemand(&c.view, demand(1, 9)); !errors.Is(err, kbroker.Refused) {
		t.Errorf("demand of a deposed allocator: %v, want refused", err)
	}
}
