package super

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// withPolicy makes an app of 3 web instances whose allocator runs that program the next
// version; "": the built-in one.
func (c *cluster) withPolicy(program string) {
	app := kbroker.App{Name: webKey.App, Services: []kbroker.Service{service(3)}}
	if program != "" {
		app.Own = &kbroker.OwnPolicy{Run: "bin/policy", Artifact: kbroker.Artifact{SHA256: program}}
	}
	c.apply(newVersion(&c.view, webKey, app, "deploy", time.Time{}).changes)
}

// allocators are how many allocators answer, by their program.
func (c *cluster) allocators() map[string]int {
	of := map[string]int{}
	for k, p := range c.view.Placements {
		if p.Service == kbroker.AllocatorService && !p.Stop && c.view.Statuses[k].State == kbroker.StateReady {
			of[p.Spec.Artifact.SHA256+p.Spec.Artifact.Builtin]++
		}
	}
	return of
}

// TestAnotherPolicyIsRolled: one allocator after the other, a new one first; and nothing else
// is.
func TestAnotherPolicyIsRolled(t *testing.T) {
	c := newCluster(t, 3)
	c.withPolicy("")
	c.settle()
	before := c.names("h1") + c.names("h2") + c.names("h3")
	for _, to := range []string{"one", "two", ""} {
		c.withPolicy(to)
		for range 30 {
			c.step()
			sum := 0
			for _, n := range c.allocators() {
				sum += n
			}
			if sum < 2 || sum > 3 {
				t.Fatalf("%d allocators answer on the way to %q, want 2 or 3", sum, to)
			}
		}
		c.settle()
		want := to
		if to == "" {
			want = kbroker.BuiltinAllocator
		}
		if of := c.allocators(); len(of) != 1 || of[want] != 2 {
			t.Fatalf("allocators %v, want 2 of %q", of, want)
		}
		if r := c.view.Apps[webKey].Rollout; r.State != kbroker.RolloutDone {
			t.Errorf("the rollout to %q is %+v", to, r)
		}
	}
	if is := c.names("h1") + c.names("h2") + c.names("h3"); is != before {
		t.Errorf("instances are %s, were %s", is, before)
	}
}

// TestAPolicyThatDoesNotStart: the rollout fails and says why, and who decided before goes on.
func TestAPolicyThatDoesNotStart(t *testing.T) {
	for _, from := range []string{"", "one"} {
		c := newCluster(t, 3)
		c.withPolicy(from)
		c.settle()
		c.brokenOn = func(p kbroker.Placement) bool { return p.Spec.Artifact.SHA256 == "bad" }
		c.withPolicy("bad")
		for range 90 {
			c.step()
			sum := 0
			for _, n := range c.allocators() {
				sum += n
			}
			if sum != 2 {
				t.Fatalf("%d allocators answer, want the 2 of before", sum)
			}
		}
		if r := c.view.Apps[webKey].Rollout; r.State != kbroker.RolloutFailed || !strings.Contains(r.Reason, "shop-allocator-") {
			t.Errorf("the rollout is %+v, want failed, for the allocator", r)
		}
		// What is lost comes back as it was.
		c.lose("h1")
		c.seconds(10)
		for program, n := range c.allocators() {
			if program == "bad" || n != 2 {
				t.Errorf("allocators %v, want 2 as before", c.allocators())
			}
		}
		c.withPolicy("good")
		c.settle()
		if of := c.allocators(); of["good"] != 2 {
			t.Errorf("allocators %v, want 2 that are mended", of)
		}
	}
}

// TestAPolicyIsAPartOfItsApp: it is uploaded, compared, planned and told of as its services.
func TestAPolicyIsAPartOfItsApp(t *testing.T) {
	c := newCluster(t, 1)
	c.withPolicy("")
	c.settle()
	app := c.view.Versions[webKey][1].App
	own := app
	own.Own = &kbroker.OwnPolicy{Build: "make", Run: "bin/policy", Artifact: kbroker.Artifact{Path: "bin/policy", SHA256: "one"}}
	elsewhere := own
	elsewhere.Own = &kbroker.OwnPolicy{Run: "policy", Artifact: kbroker.Artifact{Path: "policy", SHA256: "one"}}
	changed, unbuiltOne := own, own
	changed.Own = &kbroker.OwnPolicy{Artifact: kbroker.Artifact{SHA256: "two"}}
	unbuiltOne.Own = &kbroker.OwnPolicy{Artifact: kbroker.Artifact{SHA256: unbuilt}}
	balanced := app
	balanced.Policy = kbroker.PolicyBalanced
	if !sameApp(own, elsewhere) || sameApp(own, app) || sameApp(own, changed) {
		t.Error("where it was built is a difference, or its program is none")
	}
	for _, d := range []struct {
		name     string
		from, to kbroker.App
		runs     bool
		words    string
		mode     kbroker.ChangeMode
	}{
		{"nothing", own, elsewhere, true, "", ""},
		{"a built-in one", app, balanced, true, "policy spread -> balanced", kbroker.ModeInPlace},
		{"an own one", app, own, true, "policy spread -> own (or spread)", kbroker.ModeRolling},
		{"another one", own, changed, true, "program changed", kbroker.ModeRolling},
		{"one that is not built", own, unbuiltOne, true, unbuiltText, kbroker.ModeRolling},
		{"back", own, app, true, "policy own (or spread) -> spread", kbroker.ModeRolling},
		{"a new app", kbroker.App{}, own, false, "policy spread -> own (or spread)", kbroker.ModeStart},
	} {
		p, changes := allocatorPlan(d.from, d.to, d.runs)
		if words := strings.Join(allocatorWords(d.from, d.to), "; "); words != d.words || changes != (d.words != "") || changes && p.Mode != d.mode {
			t.Errorf("%s: %q, plan %t %+v; want %q, %s", d.name, words, changes, p, d.words, d.mode)
		}
	}
}

// TestARefusedPolicyIsAnEvent: once, and once more when it is not refused any more.
func TestARefusedPolicyIsAnEvent(t *testing.T) {
	c := newCluster(t, 1)
	c.withPolicy("one")
	var said []string
	for _, refused := range []string{"", "it panicked", "it panicked", "it stalls", ""} {
		put := state.PutDemand{Demand: kbroker.Demand{Tenant: webKey.Tenant, App: webKey.App, Epoch: 1, Wanted: map[kbroker.ServiceName]int{"web": 3}, Refused: refused}}
		for _, e := range eventsOf(&c.view, []state.Change{put}) {
			if e.Kind == kbroker.EventPolicy {
				said = append(said, e.Message)
			}
		}
		c.apply([]state.Change{put})
	}
	want := []string{
		"the app's own policy is refused: it panicked; spread decides", "the app's own policy is refused: it stalls; spread decides", "the app's own policy decides again",
	}
	if !slices.Equal(said, want) {
		t.Errorf("events %q, want %q", said, want)
	}
}
