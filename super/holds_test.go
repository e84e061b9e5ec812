package super

import (
	"testing"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// Where fewer are wanted those go that hold least, and of equals those on the host that has
// most of them.
func TestWhoHoldsLeastLeaves(t *testing.T) {
	c := newCluster(t, 3)
	web := service(6)
	web.Count.Min, web.Count.Max = 1, 8
	c.deploy(web)
	c.apply([]state.Change{state.PutDemand{Demand: kbroker.Demand{Tenant: tenant, App: webKey.App, Wanted: map[kbroker.ServiceName]int{"web": 6}}}})
	c.settle()
	all := c.liveNames()
	if len(all) != 6 {
		t.Fatalf("%d instances, want 6", len(all))
	}
	holds := map[kbroker.InstanceID]int{}
	for n, i := range all {
		if n > 0 && n < 5 {
			holds[i] = 10 - n
		}
	}
	for _, n := range []int{4, 2, 1} {
		c.apply([]state.Change{state.PutDemand{Demand: kbroker.Demand{Tenant: tenant, App: webKey.App, Wanted: map[kbroker.ServiceName]int{"web": n}, Holds: holds}}})
		c.settle()
		least := 10 - n
		stay := c.liveNames()
		for _, i := range stay {
			if holds[i] < least {
				t.Errorf("of %d %s stays, which holds %d of %v", n, i, holds[i], holds)
			}
		}
		if len(stay) != n {
			t.Errorf("%d stay, want %d", len(stay), n)
		}
	}
}
