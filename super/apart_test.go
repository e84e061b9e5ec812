package super

import (
	"fmt"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// joined is a cluster of one host that runs apps of two instances each, when a
// second host has just joined.
func joined(t *testing.T, apps int, second kbroker.Host) *cluster {
	c := newCluster(t, 1)
	for i := range apps {
		k := state.AppKey{Tenant: tenant, App: kbroker.AppName(fmt.Sprintf("shop%d", i))}
		c.apply(newVersion(&c.view, k, kbroker.App{Name: k.App, Services: []kbroker.Service{service(2)}}, "deploy", time.Time{}).changes)
	}
	c.settle()
	second.Name, second.Role, second.State = "h2", kbroker.RoleWorker, kbroker.HostReady
	second.Labels = map[string]string{"arch": "amd64"}
	c.view.Hosts["h2"] = second
	return c
}

// TestAHostThatJoinsGetsOneOfEach: not before it has proven itself, not all at
// once, and nobody fails meanwhile.
func TestAHostThatJoinsGetsOneOfEach(t *testing.T) {
	const apps = 7
	c := joined(t, apps, kbroker.Host{Capacity: kbroker.Resources{CPU: 2, MemoryBytes: 8 << 30}})
	for range provenAfter / time.Second {
		if changes := c.step(); len(changes) > 0 {
			t.Fatalf("planned %v for a host that has just joined", changes)
		}
	}
	most := 0
	for range 60 {
		c.step()
		together := 0
		for _, p := range c.view.Placements {
			if p.Replace == togetherReason && !p.Stop {
				together++
			}
		}
		most = max(most, together)
		if n := c.readyCount(); n < 2*apps {
			t.Fatalf("%d of %d instances answer", n, 2*apps)
		}
	}
	if most != apartAtOnce {
		t.Errorf("%d were moved at a time, want %d", most, apartAtOnce)
	}
	c.settle()
	if live := c.live(); len(live["h1"]) != apps || len(live["h2"]) != apps {
		t.Errorf("h1 has %d instances and h2 %d, want %d each", len(live["h1"]), len(live["h2"]), apps)
	}
}

// TestNothingMovesApartWithoutGain: a host that cannot take an instance, or may
// be gone in a moment, gets none, and an app that does not answer keeps its own.
func TestNothingMovesApartWithoutGain(t *testing.T) {
	roomy := kbroker.Resources{CPU: 2, MemoryBytes: 8 << 30}
	for name, tc := range map[string]struct {
		second kbroker.Host
		change func(c *cluster)
	}{
		"it is full":      {second: kbroker.Host{Capacity: kbroker.Resources{CPU: 0.01, MemoryBytes: 1 << 20}}},
		"it drains":       {second: kbroker.Host{Capacity: roomy, Drain: &kbroker.Drain{}}},
		"it is suspect":   {second: kbroker.Host{Capacity: roomy}, change: func(c *cluster) { c.silent["h2"] = state.Tuned.Suspect }},
		"it is not fit":   {second: kbroker.Host{Capacity: roomy}, change: func(c *cluster) { c.view.Hosts["h2"].Labels["arch"] = "arm64" }},
		"the app is down": {second: kbroker.Host{Capacity: roomy}, change: func(c *cluster) { c.broken[1] = true }},
	} {
		t.Run(name, func(t *testing.T) {
			c := joined(t, 1, tc.second)
			w := c.world()
			if tc.change != nil {
				tc.change(c)
				c.agents()
				w = c.world()
			}
			w.InState["h2"] = time.Hour
			for _, change := range Plan(w) {
				if put, ok := change.(state.PutPlacement); ok && put.Placement.Service != kbroker.AllocatorService {
					t.Errorf("planned %v, want no instance moved", change)
				}
			}
		})
	}
}

// TestAMoveApartIsTakenBack: the host that it was for is full, or gone, before the
// new instance was placed. Nothing is restarted for nothing, and others get their
// turn.
func TestAMoveApartIsTakenBack(t *testing.T) {
	for name, change := range map[string]func(c *cluster, h *kbroker.Host){
		"full":  func(_ *cluster, h *kbroker.Host) { h.Capacity = kbroker.Resources{} },
		"drain": func(_ *cluster, h *kbroker.Host) { h.Drain = &kbroker.Drain{} },
		"down":  func(c *cluster, h *kbroker.Host) { c.down[h.Name], c.silent[h.Name] = true, state.Tuned.Suspect },
	} {
		t.Run(name, func(t *testing.T) {
			c := joined(t, 1, kbroker.Host{Capacity: kbroker.Resources{CPU: 2, MemoryBytes: 8 << 30}})
			before := c.names("h1")
			w := c.world()
			w.InState["h2"] = time.Hour
			c.apply(Plan(w))
			marked := 0
			for _, p := range c.view.Placements {
				if p.Replace == togetherReason {
					marked++
				}
			}
			if marked == 0 {
				t.Fatal("nothing is moved apart")
			}
			h2 := c.view.Hosts["h2"]
			change(c, &h2)
			c.view.Hosts["h2"] = h2
			c.view.Hosts["h3"] = kbroker.Host{Name: "h3", Role: kbroker.RoleWorker, State: kbroker.HostReady} // without room
			c.settle()
			if after := c.names("h1"); after != before {
				t.Errorf("h1 runs %s, want what it ran: %s", after, before)
			}
			for k, p := range c.view.Placements {
				if p.Replace != "" {
					t.Errorf("%s is still to be replaced", k.Instance)
				}
			}
		})
	}
}
