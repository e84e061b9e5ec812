package super

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// maintained is a cluster whose cores are well, and one worker.
func maintained(t *testing.T, cores int) (*cluster, *Members) {
	c := newCluster(t, cores)
	m := &Members{Known: true, Writable: true, Replicas: 3, Current: map[kbroker.HostID]bool{}}
	for h := range c.view.Hosts {
		m.Current[h] = true
	}
	c.view.Hosts["w1"] = kbroker.Host{Name: "w1", Role: kbroker.RoleWorker, State: kbroker.HostReady}
	return c, m
}

func (c *cluster) maintain(r kbroker.MaintainRequest, m *Members) (kbroker.MaintainReply, error) {
	d, err := decideMaintain(&c.view, r, c.facts(*m), time.Unix(1, 0))
	if err != nil {
		return kbroker.MaintainReply{}, err
	}
	c.apply(d.changes)
	return d.reply.(kbroker.MaintainReply), nil
}

func TestDecideMaintain(t *testing.T) {
	for name, tc := range map[string]struct {
		cores   int
		prepare func(c *cluster, m *Members)
		host    kbroker.HostID
		refused string // a part of why; empty: it is granted
		warned  bool
	}{
		"one of three cores that are well":                 {cores: 3, host: "h2"},
		"a worker":                                         {cores: 3, host: "w1"},
		"the only core, with a warning":                    {cores: 1, host: "h1", warned: true},
		"one of two cores, with a warning":                 {cores: 2, host: "h1", warned: true},
		"a core while another host has leave":              {cores: 3, host: "h2", refused: "h1 is in maintenance", prepare: func(c *cluster, _ *Members) { c.leave("h1") }},
		"a worker while another host has leave":            {cores: 3, host: "w1", refused: "h1 is in maintenance", prepare: func(c *cluster, _ *Members) { c.leave("h1") }},
		"a host whose own upgrade somebody else has begun": {cores: 3, host: "h1", refused: "h1 is in maintenance", prepare: func(c *cluster, _ *Members) { c.leave("h1") }},
		"a core while the leave of another is about to lapse": {
			cores: 3, host: "h2", refused: "h1 is in maintenance",
			prepare: func(c *cluster, _ *Members) { c.leave("h1"); c.now += kbroker.MaintenanceLimit - time.Second },
		},
		"a core after the leave of another has lapsed": {
			cores: 3, host: "h2",
			prepare: func(c *cluster, _ *Members) { c.leave("h1"); c.now += kbroker.MaintenanceLimit },
		},
		"the same host after a crashed upgrade has lapsed": {
			cores: 3, host: "h1",
			prepare: func(c *cluster, _ *Members) { c.leave("h1"); c.now += kbroker.MaintenanceLimit },
		},
		"a core while another is silent": {
			cores: 3, host: "h2", refused: "core h3 is suspect",
			prepare: func(c *cluster, _ *Members) { c.down["h3"] = true; c.silent["h3"] = state.Tuned.Suspect },
		},
		"a core while another is lost":           {cores: 3, host: "h2", refused: "core h3 is lost", prepare: func(c *cluster, _ *Members) { c.lose("h3") }},
		"a worker while a core is lost":          {cores: 3, host: "w1", prepare: func(c *cluster, _ *Members) { c.lose("h3") }},
		"a core while another has not caught up": {cores: 3, host: "h2", refused: "core h3 has not caught up", prepare: func(_ *cluster, m *Members) { m.Current["h3"] = false }},
		"a core while a stream is not settled":   {cores: 3, host: "h2", refused: "2 of 3 replicas", prepare: func(_ *cluster, m *Members) { m.Unsettled = "stream x has 2 of 3 replicas current" }},
		"a core while one that was removed is still a member of the broker": {
			cores: 4, host: "h2", refused: "h4 is being removed", prepare: func(c *cluster, _ *Members) { c.removed("h4") },
		},
		"a core while the broker does not tell how it is": {
			cores: 3, host: "h2", refused: "it does not tell", prepare: func(_ *cluster, m *Members) { m.Stale = "it does not tell" },
		},
		"a worker while a stream is not settled": {cores: 3, host: "w1", prepare: func(_ *cluster, m *Members) { m.Unsettled = "stream x has 2 of 3 replicas current" }},
		"a core while the canary fails":          {cores: 3, host: "h2", refused: "does not take writes", prepare: func(_ *cluster, m *Members) { m.Writable = false }},
		"a core while the broker has no leader":  {cores: 3, host: "h2", refused: "no leader", prepare: func(_ *cluster, m *Members) { *m = Members{} }},
		"the only core while the canary fails":   {cores: 1, host: "h1", refused: "does not take writes", prepare: func(_ *cluster, m *Members) { m.Writable = false }},
		"a core while another is joining": {
			cores: 3, host: "h2", refused: "core h4 is joining",
			prepare: func(c *cluster, _ *Members) {
				c.view.Hosts["h4"] = kbroker.Host{Name: "h4", Role: kbroker.RoleCore, State: kbroker.HostJoining}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, m := maintained(t, tc.cores)
			if tc.prepare != nil {
				tc.prepare(c, m)
			}
			reply, err := c.maintain(kbroker.MaintainRequest{Host: tc.host, Holder: "me"}, m)
			if tc.refused != "" {
				if !errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), tc.refused) || kbroker.AsError(err).Hint == "" {
					t.Fatalf("%+v, %v; want refused with %q and a hint", reply, err, tc.refused)
				}
				return
			}
			if err != nil || (reply.Warning != "") != tc.warned || c.view.Hosts[tc.host].Maintenance.Holder != "me" {
				t.Errorf("%+v, %v, %+v", reply, err, c.view.Hosts[tc.host].Maintenance)
			}
		})
	}
}

func TestALeaveIsTakenOnceAndGivenBack(t *testing.T) {
	c, m := maintained(t, 3)
	mine := kbroker.MaintainRequest{Host: "h1", Holder: "me"}
	for i := range 2 { // asked again after a lost answer
		if r, err := c.maintain(mine, m); err != nil || r.Unchanged != (i == 1) {
			t.Fatalf("asked %d times: %+v, %v", i+1, r, err)
		}
	}
	if r, err := c.maintain(kbroker.MaintainRequest{Host: "h1", Holder: "another", Done: true}, m); err != nil || !r.Unchanged {
		t.Errorf("given back by another: %+v, %v; want unchanged", r, err)
	}
	mine.Done = true
	*m = Members{} // it can always be given back
	for i := range 2 {
		if r, err := c.maintain(mine, m); err != nil || r.Unchanged != (i == 1) || c.view.Hosts["h1"].Maintenance != nil {
			t.Errorf("given back %d times: %+v, %v, %+v", i+1, r, err, c.view.Hosts["h1"].Maintenance)
		}
	}
	if _, err := c.maintain(kbroker.MaintainRequest{Host: "nobody", Holder: "me"}, m); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("an unknown host: %v, want not found", err)
	}
	if _, err := c.maintain(kbroker.MaintainRequest{Host: "h1"}, m); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("without a holder: %v, want invalid", err)
	}
}

// TestALapsedLeaveIsCleared, so that a new leader, who counts anew, does not
// keep others waiting for it.
func TestALapsedLeaveIsCleared(t *testing.T) {
	c, m := maintained(t, 3)
	c.settle()
	c.leave("h1")
	c.now += kbroker.MaintenanceLimit - time.Second
	if changes := c.round(); len(changes) != 0 || c.view.Hosts["h1"].Maintenance == nil {
		t.Errorf("planned %v before the leave lapses, want nothing", changes)
	}
	c.now += time.Second
	if changes := c.round(); len(changes) != 1 || c.view.Hosts["h1"].Maintenance != nil {
		t.Errorf("planned %v, want the lapsed leave cleared and nothing else", changes)
	}
	c.memory = newMemory() // a new leader
	if _, err := c.maintain(kbroker.MaintainRequest{Host: "h2", Holder: "me"}, m); err != nil {
		t.Errorf("the leave of another: %v", err)
	}
}
