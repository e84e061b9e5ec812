package super

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

// listening is a service that listens on one number.
func listening(count, number int) kbroker.Service {
	s := service(count)
	s.Ports = []kbroker.Port{{Name: "http", Number: number}}
	return s
}

func TestAPortIsTakenOncePerHost(t *testing.T) {
	c := newCluster(t, 2)
	c.deploy(listening(3, 8080))
	c.settle()
	if n := c.count(); n != 2 || len(c.live()["h1"]) != 1 || len(c.live()["h2"]) != 1 {
		t.Fatalf("%d instances are placed, on %v; want one per host", n, c.live())
	}
	const taken = "h1: port 8080 is taken by shop/web; h2: port 8080 is taken by shop/web"
	if u := c.view.Apps[webKey].Unplaced; len(u) != 1 || u[0].Count != 1 || u[0].Reason != taken {
		t.Errorf("unplaced is %+v, want one: %s", u, taken)
	}
	for _, f := range newDraft(c.world()).hostFits(webKey, listening(3, 8080)) {
		if f.Fits || !slices.Equal(f.Why, []string{"port 8080 is taken by shop/web"}) {
			t.Errorf("host %s fits %t: %q", f.Host, f.Fits, f.Why)
		}
	}
}

func TestAPortThatAnAgentHasHandedOutIsTaken(t *testing.T) {
	c := newCluster(t, 2)
	free := service(1)
	free.Ports = []kbroker.Port{{Name: "http"}}
	c.deploy(free)
	c.settle()
	var on kbroker.HostID
	for k, s := range c.view.Statuses {
		if s.Service == "web" {
			s.Ports = map[string]int{"http": 20000}
			c.view.Statuses[k], on = s, k.Host
		}
	}
	d := newDraft(c.world())
	for _, f := range d.hostFits(webKey, listening(1, 20000)) {
		if want := f.Host != on; f.Fits != want {
			t.Errorf("host %s fits: %t, want %t: %q", f.Host, f.Fits, want, f.Why)
		}
	}
	for _, f := range d.hostFits(webKey, free) {
		if !f.Fits {
			t.Errorf("host %s refuses who names no number: %q", f.Host, f.Why)
		}
	}
}

// TestWhoHasTheOnlyPlaceForAPortLeavesFirst: a new instance cannot be beside it, however
// long it is waited for.
func TestWhoHasTheOnlyPlaceForAPortLeavesFirst(t *testing.T) {
	for name, tc := range map[string]struct {
		hosts, count int
		least        int // answering instances, at any time
	}{
		"one on one host":             {1, 1, 0},
		"one on each of three":        {3, 3, 2},
		"one, with another host free": {2, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, tc.hosts)
			s := listening(tc.count, 8080)
			c.deploy(s)
			c.settle()
			s.Artifact.SHA256 = "two"
			c.deploy(s)
			for i := 0; c.view.Apps[webKey].Rollout.State == kbroker.RolloutRunning; i++ {
				if i > 100 {
					t.Fatalf("the rollout does not end: %+v", c.view.Apps[webKey])
				}
				c.step()
				if n := c.readyCount(); n < tc.least {
					t.Fatalf("second %d: %d instances answer, want %d or more", i, n, tc.least)
				}
			}
			c.settle()
			if got := c.answering()[2]; got != tc.count {
				t.Errorf("%d instances of version 2 answer, want %d: %s", got, tc.count, c.view.Apps[webKey].Rollout.Reason)
			}
		})
	}
}

func TestAPortOfAnotherAppIsWaitedFor(t *testing.T) {
	c := newCluster(t, 1)
	c.deploy(service(1))
	c.settle()
	for k, p := range c.view.Placements {
		if p.Service == "web" { // as if another app had the number
			p.App, p.Spec.Ports = "other", []kbroker.Port{{Name: "http", Number: 8080}}
			c.view.Placements[k] = p
		}
	}
	c.deploy(listening(1, 8080))
	for range 20 {
		c.step()
	}
	rec := c.view.Apps[webKey]
	if len(rec.Unplaced) != 1 || !strings.Contains(rec.Unplaced[0].Reason, "port 8080 is taken by other/web") {
		t.Errorf("unplaced is %+v, want port 8080 taken by other/web", rec.Unplaced)
	}
	if names := fmt.Sprint(c.names("h1")); !strings.Contains(names, "shop-web-") {
		t.Errorf("who had the number was stopped: %s", names)
	}
}
