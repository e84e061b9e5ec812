package super

import (
	"errors"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

func TestWhyApp(t *testing.T) {
	c := newCluster(t, 3)
	c.versions(service(2))
	c.apply([]state.Change{state.PutDemand{Demand: kbroker.Demand{Tenant: tenant, App: "shop", Epoch: 4, Wanted: map[kbroker.ServiceName]int{"web": 2}}}})
	for k, s := range c.view.Statuses {
		if s.Service == "web" && s.Host == "h1" {
			s.State, s.Message = kbroker.StateBackoff, "exit code 3"
			c.view.Statuses[k] = s
		}
	}
	w := c.world()
	why, err := whyApp(w.View, w.Verdict, webKey)
	if err != nil {
		t.Fatal(err)
	}
	s := why.Services[0]
	if why.Cause != "deploy" || why.Demand == nil || why.Demand.Epoch != 4 || s.Wanted != 2 || s.Placed != 2 || s.Ready != 1 || why.Row.Ready != 1 {
		t.Errorf("why is %+v, want a deploy, a demand of epoch 4, and 1 of 2 ready", why)
	}
	if len(s.Troubles) != 1 || !strings.Contains(s.Troubles[0], "on h1 is backoff: exit code 3") {
		t.Errorf("troubles are %q, want the crash on h1", s.Troubles)
	}
	if len(s.Hosts) != 3 || s.Hosts[0].Host != "h3" || s.Hosts[0].Rank != 1 || s.Hosts[0].Same != 0 || s.Hosts[2].Same != 1 {
		t.Errorf("hosts are %+v, want h3 first, which has none", s.Hosts)
	}
	if a := why.Services[1]; a.Service != kbroker.AllocatorService || a.Placed != 2 {
		t.Errorf("the second service is %+v, want the allocator", a)
	}
	if _, err := whyApp(w.View, w.Verdict, state.AppKey{Tenant: tenant, App: "none"}); !errors.Is(errorOf(err), kbroker.NotFound) {
		t.Errorf("why of no app: %v, want not found", err)
	}
}

func TestWhyInstance(t *testing.T) {
	c := newCluster(t, 3)
	c.versions(service(2))
	one := c.liveNames()[0]
	ask := func() *kbroker.WhyInstance {
		w := c.world()
		return whyInstance(w.View, w.Verdict, webKey, one)
	}
	if i := ask(); i.State != kbroker.StateReady || i.Reason != "it answers" || i.Placement == nil || i.Status == nil || i.Host != "h1" {
		t.Errorf("a running instance: %+v", i)
	}
	c.restart(one)
	if i := ask(); i.Placement.Replace == "" || !strings.Contains(i.Reason, "leaves when a new one has settled") {
		t.Errorf("one that is to be replaced: %+v", i)
	}
	c.down["h1"] = true
	for range 7 {
		c.step()
	}
	if i := ask(); i.State != kbroker.StateUnmanaged || i.Reason != "restarted; host h1 will confirm its exit when it is back" {
		t.Errorf("one that was replaced, and then its host was lost: %+v", i)
	}
	c.down["h1"], c.silent["h1"] = false, 0
	c.settle()
	if i := ask(); i.State != kbroker.StateExited || i.Placement != nil || i.Status == nil {
		t.Errorf("one that has ended: %+v", i)
	}
	for k := range c.view.Statuses {
		delete(c.view.Statuses, k)
	}
	if i := ask(); i != nil {
		t.Errorf("one of which nothing is left: %+v, want nothing", i)
	}
	got := lastDecision([]kbroker.Event{{Kind: kbroker.EventMoved, Message: "moved away"}, {Kind: kbroker.EventExited, Message: "exit"}}, "otherwise")
	if got != "moved away" || lastDecision(nil, "otherwise") != "otherwise" {
		t.Errorf("the last decision is %q, want that it was moved away", got)
	}
}
