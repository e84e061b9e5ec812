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

func TestDecideJoin(t *testing.T) {
	c := newCluster(t, 1)
	members := Members{Known: true, Current: map[kbroker.HostID]bool{"h1": true}}
	request := kbroker.JoinRequest{Host: "h2", Role: kbroker.RoleCore, Client: "127.0.0.1:1", Route: "127.0.0.1:2", Fingerprint: "two", Token: c.token(kbroker.RoleCore, nil)}
	ask := func(r kbroker.JoinRequest, m Members) (kbroker.JoinReply, error) {
		t.Helper()
		d, err := decideJoin(&c.view, r, c.facts(m), "kb-test", time.Time{})
		if err != nil {
			return kbroker.JoinReply{}, err
		}
		c.apply(d.changes)
		return d.reply.(kbroker.JoinReply), nil
	}
	if r, err := ask(request, Members{}); err != nil || r.Admitted || r.Wait == "" {
		t.Errorf("without a broker leader: %+v, %v; want to wait", r, err)
	}
	for range 2 { // asked again after a lost answer
		if r, err := ask(request, members); err != nil || !r.Admitted || r.ClusterID != "kb-test" || len(r.Cores) != 1 {
			t.Fatalf("join: %+v, %v; want admitted with one core", r, err)
		}
	}
	third := request
	third.Host, third.Route, third.Token = "h3", "127.0.0.1:3", c.token(kbroker.RoleCore, nil)
	if r, err := ask(third, members); err != nil || r.Admitted || !strings.Contains(r.Wait, "h2") {
		t.Errorf("a second join while one is under way: %+v, %v; want to wait for h2", r, err)
	}
	other := request
	other.Fingerprint, other.Token = "another", c.token(kbroker.RoleCore, nil)
	if _, err := ask(other, members); !errors.Is(err, kbroker.Refused) {
		t.Errorf("another host of the same name: %v, want refused", err)
	}
	worker := kbroker.JoinRequest{Host: "w1", Role: kbroker.RoleWorker, Fingerprint: "w", Token: c.token(kbroker.RoleWorker, nil)}
	for range 2 {
		if r, err := ask(worker, Members{}); err != nil || !r.Admitted || r.Generation != firstGeneration || len(r.Cores) != 1 {
			t.Errorf("a worker, while a core is joining: %+v, %v; want admitted with one core", r, err)
		}
	}
	behind := Members{Known: true, Current: map[kbroker.HostID]bool{"h1": false}}
	if r, err := ask(request, behind); err != nil || r.Admitted {
		t.Errorf("while a core is not current: %+v, %v; want to wait", r, err)
	}
	h2 := c.view.Hosts["h2"]
	h2.State = kbroker.HostReady
	c.view.Hosts["h2"] = h2
	if _, err := ask(request, members); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a member whose disk was wiped: %v, want refused", err)
	}
	request.ClusterID = "kb-test"
	if r, err := ask(request, members); err != nil || !r.Admitted {
		t.Errorf("a member that asks again before it has seen itself: %+v, %v; want admitted", r, err)
	}
	full := newCluster(t, maxCores)
	sixth := request
	sixth.Host, sixth.Token = "h6", full.token(kbroker.RoleCore, nil)
	if _, err := decideJoin(&full.view, sixth, full.facts(members), "kb-test", time.Time{}); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a sixth core: %v, want refused", err)
	}
}

func TestDecideJoinOfARemovedName(t *testing.T) {
	c := newCluster(t, 3)
	for name, role := range map[kbroker.HostID]kbroker.Role{"h3": kbroker.RoleCore, "w1": kbroker.RoleWorker} {
		c.view.Hosts[name] = kbroker.Host{Name: name, Role: role, State: kbroker.HostRemoved, Generation: 2, Fingerprint: "old"}
	}
	members := Members{Known: true, Current: map[kbroker.HostID]bool{"h1": true, "h2": true}}
	join := func(r kbroker.JoinRequest) (kbroker.JoinReply, error) {
		d, err := decideJoin(&c.view, r, c.facts(members), "kb-test", time.Time{})
		if err != nil {
			return kbroker.JoinReply{}, err
		}
		c.apply(d.changes)
		return d.reply.(kbroker.JoinReply), nil
	}
	if _, err := join(kbroker.JoinRequest{Host: "h3", Role: kbroker.RoleCore, Fingerprint: "new", Token: c.token(kbroker.RoleCore, nil)}); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a core under the name of a removed one: %v, want refused", err)
	}
	if r, err := join(kbroker.JoinRequest{Host: "w1", Role: kbroker.RoleWorker, Fingerprint: "new", Token: c.token(kbroker.RoleWorker, nil)}); err != nil || !r.Admitted || r.Generation != 3 {
		t.Errorf("a worker under the name of a removed one: %+v, %v; want generation 3", r, err)
	}
	if h := c.view.Hosts["w1"]; !h.Removed(2) || h.Removed(3) {
		t.Errorf("host %+v: want the old one removed and the new one not", h)
	}
	if r, err := join(kbroker.JoinRequest{Host: "h4", Role: kbroker.RoleCore, Fingerprint: "4", Token: c.token(kbroker.RoleCore, nil)}); err != nil || !r.Admitted || len(r.Cores) != 2 {
		t.Errorf("a core in the place of a removed one: %+v, %v; want admitted", r, err)
	}
}

func TestDecideDrain(t *testing.T) {
	c := newCluster(t, 2)
	c.view.Hosts["gone"] = kbroker.Host{Name: "gone", State: kbroker.HostRemoved}
	c.view.Hosts["lost"] = kbroker.Host{Name: "lost", State: kbroker.HostLost}
	ask := func(r kbroker.DrainRequest) (kbroker.HostReply, error) {
		d, err := decideDrain(&c.view, r, time.Time{})
		if err != nil {
			return kbroker.HostReply{}, err
		}
		c.apply(d.changes)
		return d.reply.(kbroker.HostReply), nil
	}
	for _, step := range []struct {
		name      string
		request   kbroker.DrainRequest
		unchanged bool
		drains    bool
	}{
		{"drained", kbroker.DrainRequest{Host: "h1"}, false, true},
		{"drained again", kbroker.DrainRequest{Host: "h1"}, true, true},
		{"by force", kbroker.DrainRequest{Host: "h1", Force: true}, false, true},
		{"without force it stays by force", kbroker.DrainRequest{Host: "h1"}, true, true},
		{"undrained", kbroker.DrainRequest{Host: "h1", Undrain: true}, false, false},
		{"undrained again", kbroker.DrainRequest{Host: "h1", Undrain: true}, true, false},
	} {
		r, err := ask(step.request)
		if err != nil || r.Unchanged != step.unchanged || (c.view.Hosts["h1"].Drain != nil) != step.drains {
			t.Errorf("%s: %+v, %v, %+v", step.name, r, err, c.view.Hosts["h1"].Drain)
		}
	}
	for host, want := range map[kbroker.HostID]kbroker.Code{"nobody": kbroker.NotFound, "gone": kbroker.NotFound, "lost": kbroker.Refused} {
		if _, err := ask(kbroker.DrainRequest{Host: host}); !errors.Is(err, want) {
			t.Errorf("drain of %s: %v, want %s", host, err, want)
		}
	}
}

func TestDecideRemove(t *testing.T) {
	for name, tc := range map[string]struct {
		cores   int
		prepare func(c *cluster, m *Members)
		host    kbroker.HostID
		want    kbroker.Code // empty: removed
	}{
		"a host that is not there":              {cores: 3, host: "nobody", want: kbroker.NotFound},
		"the only core":                         {cores: 1, host: "h1", want: kbroker.Refused},
		"one of three cores that is well":       {cores: 3, host: "h3", want: kbroker.Refused},
		"one of four":                           {cores: 4, host: "h4"},
		"one of two that holds no stream alone": {cores: 2, host: "h2"},
		"one of two that holds a stream alone": {
			cores: 2, host: "h1", want: kbroker.Refused,
			prepare: func(_ *cluster, m *Members) { m.Alone = map[kbroker.HostID]string{"h1": "KV_kbroker"} },
		},
		"one of four while a stream is not settled": {
			cores: 4, host: "h4", want: kbroker.Refused,
			prepare: func(_ *cluster, m *Members) { m.Unsettled = "stream KV_kbroker has 2 of 3 replicas" },
		},
		"one of four while another is not current": {
			cores: 4, host: "h4", want: kbroker.Refused,
			prepare: func(_ *cluster, m *Members) { m.Current["h2"] = false },
		},
		"one of five while the broker does not tell how it is": {
			cores: 5, host: "h4", want: kbroker.Refused,
			prepare: func(_ *cluster, m *Members) { m.Stale = "the broker does not tell" },
		},
		"a lost one while the broker does not tell how it is": {
			cores: 3, host: "h3", want: kbroker.Refused,
			prepare: func(c *cluster, m *Members) {
				c.lose("h3")
				m.Current["h3"], m.Stale = false, "the broker does not tell"
			},
		},
		"one of five while the broker has no leader": {
			cores: 5, host: "h4", want: kbroker.Refused, prepare: func(_ *cluster, m *Members) { m.Known = false },
		},
		"one of five while another that was removed is still a member of the broker": {
			cores: 5, host: "h4", want: kbroker.Refused, prepare: func(c *cluster, _ *Members) { c.removed("h5") },
		},
		"one of five after another that was removed has left the broker": {
			cores: 5, host: "h4", prepare: func(c *cluster, m *Members) { c.removed("h5"); delete(m.Current, "h5") },
		},
		"one of five while another has leave to go down": {
			cores: 5, host: "h4", want: kbroker.Refused, prepare: func(c *cluster, _ *Members) { c.leave("h1") },
		},
		"one of five that has leave to go down itself": {
			cores: 5, host: "h4", want: kbroker.Refused, prepare: func(c *cluster, _ *Members) { c.leave("h4") },
		},
		"one of five after the leave of another has lapsed": {
			cores: 5, host: "h4", prepare: func(c *cluster, _ *Members) { c.leave("h1"); c.now += kbroker.MaintenanceLimit },
		},
		"one of five while a member of the broker has no record": {
			cores: 5, host: "h4", want: kbroker.Refused, prepare: func(_ *cluster, m *Members) { m.Current["h6"] = true },
		},
		"a lost one of three while a stream has no leader": {
			cores: 3, host: "h3", want: kbroker.Refused,
			prepare: func(c *cluster, m *Members) { c.lose("h3"); m.Current["h3"], m.Replicas = false, 0 },
		},
		"a dead one of three, beyond the share": {
			cores: 3, host: "h3", prepare: func(c *cluster, m *Members) { c.dead(m, "h3", "w1") },
		},
		"a dead worker that runs something, beyond the share": {
			cores: 3, host: "w1", prepare: func(c *cluster, m *Members) { c.dead(m, "h3", "w1") },
		},
		"the first of two dead ones of five": {
			cores: 5, host: "h5", prepare: func(c *cluster, m *Members) { c.dead(m, "h4", "h5") },
		},
		"the second of two dead ones of five, while the broker waits for it": {
			cores: 5, host: "h4", prepare: func(c *cluster, m *Members) { c.dead(m, "h4", "h5"); c.removed("h5") },
		},
		"a live one while a dead one that was removed is still a member of the broker": {
			cores: 5, host: "h4", want: kbroker.Refused, prepare: func(c *cluster, m *Members) { c.dead(m, "h5"); c.removed("h5") },
		},
		"a live one of five while another is dead": {
			cores: 5, host: "h4", want: kbroker.Refused, prepare: func(c *cluster, m *Members) { c.dead(m, "h5", "w1") },
		},
		"a dead one while another is silent only for the broker": {
			cores: 5, host: "h5", want: kbroker.Refused, prepare: func(c *cluster, m *Members) { c.dead(m, "h5", "w1"); m.Current["h4"] = false },
		},
		"a dead one when fewer than half of the broker's members stay": {
			cores: 5, host: "h3", want: kbroker.Refused, prepare: func(c *cluster, m *Members) {
				c.dead(m, "h3", "h4", "h5")
				c.removed("h4")
				c.removed("h5")
			},
		},
		"a lost one that is heard again and still runs something": {
			cores: 4, host: "h4", want: kbroker.Refused,
			prepare: func(c *cluster, _ *Members) {
				c.deploy(service(8))
				c.settle()
				h := c.view.Hosts["h4"]
				h.State = kbroker.HostLost
				c.view.Hosts["h4"] = h
			},
		},
		"a lost one of three while hardly a core answers": {
			cores: 3, host: "h3", want: kbroker.Refused,
			prepare: func(c *cluster, m *Members) { c.lose("h3"); m.Current["h3"] = false; c.down["h2"] = true },
		},
		"a member of the broker whose admission was taken back": {
			cores: 3, host: "h4", prepare: func(_ *cluster, m *Members) { m.Current["h4"] = false },
		},
		"one of four that still runs something": {
			cores: 4, host: "h4", want: kbroker.Refused,
			prepare: func(c *cluster, _ *Members) { c.deploy(service(8)); c.settle() },
		},
		"a lost one of three": {
			cores: 3, host: "h3",
			prepare: func(c *cluster, m *Members) { c.lose("h3"); m.Current["h3"] = false },
		},
		"a lost one of three while another is not current": {
			cores: 3, host: "h3", want: kbroker.Refused,
			prepare: func(c *cluster, m *Members) { c.lose("h3"); m.Current["h2"] = false },
		},
		"a silent one that is not lost yet": {
			cores: 3, host: "h3", want: kbroker.Refused,
			prepare: func(c *cluster, _ *Members) { c.down["h3"] = true; c.silent["h3"] = state.Tuned.Suspect },
		},
		"an empty worker": {
			cores: 3, host: "w1",
			prepare: func(c *cluster, _ *Members) {
				c.view.Hosts["w1"] = kbroker.Host{Name: "w1", Role: kbroker.RoleWorker, State: kbroker.HostReady}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, tc.cores)
			m := Members{Known: true, Writable: true, Replicas: 3, Current: map[kbroker.HostID]bool{}}
			for h := range c.view.Hosts {
				m.Current[h] = true
			}
			if tc.prepare != nil {
				tc.prepare(c, &m)
			}
			d, err := decideRemove(&c.view, kbroker.RemoveRequest{Host: tc.host}, c.facts(m), time.Time{})
			if tc.want != "" {
				if !errors.Is(err, tc.want) || tc.want == kbroker.Refused && kbroker.AsError(err).Hint == "" {
					t.Fatalf("%v, want %s with a hint", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c.apply(d.changes)
			if h := c.view.Hosts[tc.host]; h.State != kbroker.HostRemoved {
				t.Errorf("it is %s", h.State)
			}
			again, err := decideRemove(&c.view, kbroker.RemoveRequest{Host: tc.host}, c.facts(m), time.Time{})
			if err != nil || !again.reply.(kbroker.HostReply).Unchanged {
				t.Errorf("removed again: %+v, %v; want unchanged", again, err)
			}
		})
	}
}

// TestDecideJoinWhileSomethingElseChanges: a core waits, a worker does not.
func TestDecideJoinWhileSomethingElseChanges(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(c *cluster, m *Members)
		waits   string // for
	}{
		"a removed core is still a member of the broker": {func(c *cluster, _ *Members) { c.removed("h3") }, "h3 is being removed"},
		"a removed core has left the broker":             {func(c *cluster, m *Members) { c.removed("h3"); delete(m.Current, "h3") }, ""},
		"a core has leave to go down":                    {func(c *cluster, _ *Members) { c.leave("h2") }, "h2 is in maintenance"},
		"a member of the broker has no record":           {func(_ *cluster, m *Members) { m.Current["h4"] = true }, "h4 is joining"},
		"the broker does not tell how it is":             {func(_ *cluster, m *Members) { m.Stale = "it does not tell" }, "it does not tell"},
	} {
		t.Run(name, func(t *testing.T) {
			c, m := maintained(t, 3)
			tc.prepare(c, m)
			for _, r := range []kbroker.JoinRequest{{Host: "h5", Role: kbroker.RoleCore}, {Host: "w5", Role: kbroker.RoleWorker}} {
				r.Token = c.token(r.Role, nil)
				d, err := decideJoin(&c.view, r, c.facts(*m), "kb-test", time.Time{})
				if err != nil {
					t.Fatal(err)
				}
				reply := d.reply.(kbroker.JoinReply)
				if admitted := tc.waits == "" || r.Role == kbroker.RoleWorker; reply.Admitted != admitted || !admitted && !strings.Contains(reply.Wait, tc.waits) {
					t.Errorf("%s: %+v, want admitted %t, or to wait for %q", r.Role, reply, admitted, tc.waits)
				}
			}
		})
	}
}

func TestJoiningHostBecomesReadyOrIsForgotten(t *testing.T) {
	c := newCluster(t, 1)
	joining := kbroker.Host{Name: "h2", Role: kbroker.RoleCore, State: kbroker.HostJoining}
	c.apply([]state.Change{state.PutHost{Host: joining}})
	w := c.world()
	w.Verdict.Beats = map[kbroker.HostID]kbroker.Heartbeat{"h1": w.Verdict.Beats["h1"], "h2": {Host: "h2"}}
	w.Verdict.Current = map[kbroker.HostID]bool{"h1": true}
	if changes := Plan(w); len(changes) != 0 {
		t.Errorf("heard, but no member of the broker yet: planned %v, want nothing", changes)
	}
	w.Verdict.Current["h2"] = true
	if put, ok := Plan(w)[0].(state.PutHost); !ok || put.Host.State != kbroker.HostReady {
		t.Errorf("heard and a member: %v, want ready", Plan(w))
	}
	delete(w.Verdict.Beats, "h2")
	delete(w.Verdict.Current, "h2")
	w.InState = map[kbroker.HostID]time.Duration{"h2": joinExpires + time.Second}
	if drop, ok := Plan(w)[0].(state.DropHost); !ok || drop.Host != "h2" {
		t.Errorf("admitted and never seen: %v, want it forgotten", Plan(w))
	}
}

// worker is a request of one that was admitted as a generation; 0: it is new.
func (j *joiner) worker(name kbroker.HostID, generation int, user string) kbroker.JoinRequest {
	r := hostAsks(name, kbroker.RoleWorker, nil)
	r.User, r.Generation = user, generation
	if generation > 0 {
		r.ClusterID = "kb-test"
	} else {
		r.Token = j.fresh(kbroker.RoleWorker, "")
	}
	return r
}

// onRecord checks which keys of a host are on record: its own, then those taken back.
func (j *joiner) onRecord(t *testing.T, name kbroker.HostID, user string, revoked ...string) {
	t.Helper()
	if h := j.view.Hosts[name]; h.User != user || !slices.Equal(h.Revoked, revoked) {
		t.Errorf("host %s is on record with key %s, and %v taken back; want %s and %v", name, h.User, h.Revoked, user, revoked)
	}
}

// TestAWorkerAsksForItsCredentialAgain: what is signed is the key on record, and nothing
// is written for it; another key is put there first, and the one before taken back.
func TestAWorkerAsksForItsCredentialAgain(t *testing.T) {
	j := newJoiner(t)
	j.must(j.worker("w1", 0, "U1"))
	decide := func(r kbroker.JoinRequest) decision {
		t.Helper()
		d, err := decideJoin(&j.view, r, j.facts(Members{}), "kb-test", j.now)
		if err != nil || !d.reply.(kbroker.JoinReply).Admitted || d.reply.(kbroker.JoinReply).Generation != firstGeneration {
			t.Fatalf("%+v, %v; want it admitted as what it was", d.reply, err)
		}
		return d
	}
	if d := decide(j.worker("w1", 1, "U1")); len(d.changes) > 0 {
		t.Errorf("with the key on record: %v, want nothing written", d.changes)
	}
	lost := j.worker("w1", 1, "U2")
	d := decide(lost)
	if len(d.changes) != 1 {
		t.Fatalf("with another key: %v, want one record written", d.changes)
	}
	j.onRecord(t, "w1", "U1")
	j.apply(d.changes)
	j.onRecord(t, "w1", "U2", "U1")
	if d := decide(lost); len(d.changes) > 0 { // the answer was lost
		t.Errorf("asked once more: %v, want nothing written", d.changes)
	}
	rescued := j.worker("w1", 1, "U2")
	rescued.ClusterID = "kb-lost"
	if d := decide(rescued); len(d.changes) > 0 {
		t.Errorf("a worker of the cluster that this one was rescued from: %v", d.changes)
	}
	other := j.worker("w1", 1, "U3")
	other.Fingerprint = "another"
	if r, err := j.ask(other); !errors.Is(err, kbroker.Refused) || r.Credential != "" {
		t.Errorf("another host of the name: %+v, %v; want refused", r, err)
	}
	j.onRecord(t, "w1", "U2", "U1")
}

// TestAKeyThatWasTakenBackIsNotSigned: neither a member's, nor that of a host that joins.
func TestAKeyThatWasTakenBackIsNotSigned(t *testing.T) {
	j := newJoiner(t)
	j.must(j.worker("w1", 0, "U1"))
	j.must(j.worker("w1", 1, "U2"))
	j.must(j.worker("w2", 0, "V1"))
	j.view.Revoked = map[string]time.Time{"I1": j.now}
	gone := j.view.Hosts["w2"]
	gone.State = kbroker.HostRemoved
	j.apply([]state.Change{state.PutHost{Host: gone}})
	for name, r := range map[string]kbroker.JoinRequest{
		"a member with the key that it had lost":  j.worker("w1", 1, "U1"),
		"a new admission with the key before":     j.worker("w2", 0, "V1"),
		"another host with the key of a removed":  j.worker("w3", 0, "V1"),
		"another host with one taken back":        j.worker("w3", 0, "U1"),
		"another host with the key of a member":   j.worker("w3", 0, "U2"),
		"a host with the key of an instance":      j.worker("w3", 0, "I1"),
		"a member with the key of another member": j.worker("w1", 1, "V1"),
	} {
		d, err := decideJoin(&j.view, r, j.facts(j.members), "kb-test", j.now)
		if reply, ok := d.reply.(kbroker.JoinReply); err != nil || !ok || !reply.KeyRevoked || reply.Admitted || len(d.changes) > 0 {
			t.Errorf("%s: %+v, %v, %v; want to hear that the key was taken back", name, d.reply, d.changes, err)
		}
	}
	again := j.worker("w2", 0, "V2")
	if r := j.must(again); r.Generation != 2 {
		t.Errorf("with a key of its own it is %+v, want generation 2", r)
	}
	j.onRecord(t, "w2", "V2", "V1")
	again.Token = nil
	j.must(again) // the answer was lost
	j.onRecord(t, "w2", "V2", "V1")
}

// TestAWorkerHearsThatItWasRemoved, also when its name was admitted again since; a host
// that only says that it is the one hears nothing.
func TestAWorkerHearsThatItWasRemoved(t *testing.T) {
	j := newJoiner(t)
	j.must(j.worker("w1", 0, "U1"))
	was := j.worker("w1", 1, "U1")
	if r := j.must(was); r.Removed {
		t.Errorf("a member hears %+v", r)
	}
	h := j.view.Hosts["w1"]
	h.State = kbroker.HostRemoved
	j.apply([]state.Change{state.PutHost{Host: h}})
	lostKey := was
	lostKey.User = "U2"
	for range 2 {
		for _, r := range []kbroker.JoinRequest{was, lostKey} {
			d, err := decideJoin(&j.view, r, j.facts(Members{}), "kb-test", j.now)
			if reply, ok := d.reply.(kbroker.JoinReply); err != nil || !ok || !reply.Removed || reply.Host != "w1" || reply.Generation != 1 || reply.Admitted || len(d.changes) > 0 {
				t.Errorf("a removed worker: %+v, %v, %v; want to hear that generation 1 was removed", d.reply, d.changes, err)
			}
		}
		anew := j.worker("w1", 0, "U3")
		anew.Fingerprint = "anew"
		if h := j.view.Hosts["w1"]; !h.Member() { // the name is used again
			j.must(anew)
		}
	}
	anew := j.worker("w1", 2, "U3")
	anew.Fingerprint = "anew"
	if r := j.must(anew); !r.Admitted || r.Removed || r.Generation != 2 {
		t.Errorf("the host that has the name now: %+v", r)
	}
	j.must(j.worker("w2", 0, "V1"))
	gone := j.view.Hosts["w2"]
	gone.State = kbroker.HostRemoved
	j.apply([]state.Change{state.PutHost{Host: gone}})
	for name, change := range map[string]func(*kbroker.JoinRequest){
		"another key":                  func(r *kbroker.JoinRequest) { r.Fingerprint = "guessed" },
		"a generation that never was":  func(r *kbroker.JoinRequest) { r.Generation = 2 },
		"a name that never was":        func(r *kbroker.JoinRequest) { r.Host = "w9" },
		"no generation, and no token":  func(r *kbroker.JoinRequest) { r.Generation = 0 },
		"a generation that nobody has": func(r *kbroker.JoinRequest) { r.Generation = -1 },
	} {
		r := j.worker("w2", 1, "V1")
		change(&r)
		if reply, err := j.ask(r); !errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), "needs a token") {
			t.Errorf("%s: %+v, %v; want to hear of a token only", name, reply, err)
		}
	}
}

// TestTheKeysOfANameAreBounded.
func TestTheKeysOfANameAreBounded(t *testing.T) {
	j := newJoiner(t)
	j.must(j.worker("w1", 0, "U0"))
	for n := range maxRevoked {
		j.must(j.worker("w1", 1, fmt.Sprintf("U%d", n+1)))
	}
	if _, err := j.ask(j.worker("w1", 1, "one more")); !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == "" {
		t.Errorf("%v, want refused with a hint", err)
	}
	j.must(j.worker("w1", 1, fmt.Sprintf("U%d", maxRevoked))) // the one on record is signed all the same
	h := j.view.Hosts["w1"]
	h.State = kbroker.HostRemoved
	j.apply([]state.Change{state.PutHost{Host: h}})
	if _, err := j.ask(j.worker("w1", 0, "anew")); !errors.Is(err, kbroker.Refused) || !strings.Contains(kbroker.AsError(err).Hint, "another name") {
		t.Errorf("a new admission of the name: %v, want refused with a hint", err)
	}
}
