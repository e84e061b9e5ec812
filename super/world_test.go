package super

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

const tenant = kbroker.DefaultTenant

// cluster is a small true model of what surrounds Plan: a store that applies
// changes, agents that obey placements, and a clock.
type cluster struct {
	t      testing.TB
	view   state.View
	down   map[kbroker.HostID]bool
	broken map[int]bool // versions whose instances never become ready
	memory *memory
	now    time.Duration
	silent map[kbroker.HostID]time.Duration
	kept   map[state.PlacementKey]bool // ready, whatever is broken
	// together: no host is steady, and nothing is moved apart.
	together bool
	// brokenOn: such an instance never becomes ready; nil: none.
	brokenOn func(kbroker.Placement) bool
	// loops: such an instance is in a crash loop, loopsAfter its start; nil: none.
	loops  func(kbroker.Placement) bool
	warmUp time.Duration // from an instance's start until it is ready
	began  map[state.PlacementKey]time.Duration
}

// keep lets an instance stay ready although its version is broken.
func (c *cluster) keep(k state.PlacementKey) { c.kept[k] = true }

func newCluster(t testing.TB, hosts int) *cluster {
	c := &cluster{
		t: t, down: map[kbroker.HostID]bool{}, broken: map[int]bool{}, memory: newMemory(), now: time.Hour,
		silent: map[kbroker.HostID]time.Duration{}, kept: map[state.PlacementKey]bool{},
		began: map[state.PlacementKey]time.Duration{},
		view: state.View{
			Apps: map[state.AppKey]kbroker.AppRecord{}, Versions: map[state.AppKey]map[int]kbroker.AppVersion{},
			Placements: map[state.PlacementKey]kbroker.Placement{}, Hosts: map[kbroker.HostID]kbroker.Host{},
			Demands: map[state.AppKey]kbroker.Demand{}, Statuses: map[state.PlacementKey]kbroker.Status{},
			Tokens: map[string]kbroker.Token{}, Users: map[state.UserKey]kbroker.User{},
		},
	}
	for i := range hosts {
		name := kbroker.HostID(fmt.Sprintf("h%d", i+1))
		c.view.Hosts[name] = kbroker.Host{
			Name: name, Role: kbroker.RoleCore, State: kbroker.HostReady,
			Labels:   map[string]string{"arch": "amd64", "host": string(name)},
			Capacity: kbroker.Resources{CPU: 2, MemoryBytes: 8 << 30},
		}
	}
	return c
}

func service(count int) kbroker.Service {
	return kbroker.Service{
		Name: "web", Artifact: kbroker.Artifact{SHA256: "one", Arch: "amd64"}, Count: kbroker.Count{Min: count, Max: count},
		Resources: kbroker.Resources{CPU: 0.1, MemoryBytes: 64 << 20}, Spread: "host",
		Update: kbroker.Update{Parallel: 1, MinHealthy: 2 * time.Second, Deadline: time.Minute},
	}
}

// loopsAfter is how long agents take to know a crash loop.
const loopsAfter = 3 * time.Second

var webKey = state.AppKey{Tenant: tenant, App: "shop"}

// deploy makes the services the next version of the app.
func (c *cluster) deploy(services ...kbroker.Service) {
	d := newVersion(&c.view, webKey, kbroker.App{Name: webKey.App, Services: services}, "deploy", time.Time{})
	c.apply(d.changes)
}

// token puts a join token on record, changed by change (nil: as it is), and returns
// it as a host shows it.
func (c *cluster) token(role kbroker.Role, change func(*kbroker.Token)) *kbroker.ShownToken {
	return tokenIn(&c.view, role, change)
}

// tokenIn is token, in any view. It holds from the zero time on.
func tokenIn(v *state.View, role kbroker.Role, change func(*kbroker.Token)) *kbroker.ShownToken {
	shown := &kbroker.ShownToken{ID: strings.ToLower(rand.Text()[:kbroker.TokenIDLen]), Secret: []byte(rand.Text())}
	hash := sha256.Sum256(shown.Secret)
	t := kbroker.Token{ID: shown.ID, Hash: hash[:], Role: role, Expires: time.Time{}.Add(kbroker.TokenTTL)}
	if change != nil {
		change(&t)
	}
	apply(v, []state.Change{state.PutToken{Token: t}})
	return shown
}

// apply is what the store does with a batch.
func (c *cluster) apply(changes []state.Change) { apply(&c.view, changes) }

// world is what the leader would see now.
func (c *cluster) world() World {
	v := c.view
	v.Apps, v.Placements, v.Hosts = maps.Clone(v.Apps), maps.Clone(v.Placements), maps.Clone(v.Hosts)
	v.Statuses = maps.Clone(v.Statuses)
	c.memory.see(&v, c.now)
	h := c.hearing()
	verdict := Judge(&v, h, state.Tuned)
	c.memory.seeVerdict(&v, verdict, c.now)
	if c.together {
		clear(c.memory.steady)
	}
	return World{
		View: &v, Verdict: verdict, InState: h.InState, LeaveFor: h.LeaveFor,
		ReadyFor: c.memory.readyFor(c.now), Stalled: c.memory.stalled(c.now),
		SteadyFor: c.memory.steadyFor(c.now), ApartFor: c.memory.apartFor(c.now), ApartFailed: c.memory.apartFailed(c.now),
		TriedFor: c.memory.triedFor(c.now),
	}
}

// hearing is what the cores that are up say of the hosts.
func (c *cluster) hearing() Hearing {
	answer := kbroker.HeardReply{Looking: time.Hour, Age: map[kbroker.HostID]time.Duration{}, Beat: map[kbroker.HostID]kbroker.Heartbeat{}}
	for name, h := range c.view.Hosts {
		answer.Age[name] = c.silent[name]
		answer.Beat[name] = kbroker.Heartbeat{Host: name, Labels: h.Labels, Capacity: h.Capacity, Client: h.Client, Route: h.Route, Address: h.Address}
	}
	h := Hearing{InState: c.memory.inState(c.now), LeaveFor: c.memory.leaveFor(c.now)}
	for name := range c.view.Hosts {
		if !c.down[name] {
			a := answer
			a.Core = name
			h.Answers = append(h.Answers, a)
		}
	}
	return h
}

// facts are what the leader knows, with what the broker says.
func (c *cluster) facts(m Members) facts {
	w := c.world()
	return facts{m, w.Verdict, c.memory.leaveFor(c.now)}
}

// leave gives a host leave to go down; from here on the leader counts.
func (c *cluster) leave(host kbroker.HostID) {
	h := c.view.Hosts[host]
	h.Maintenance = &kbroker.Maintenance{Holder: "another"}
	c.view.Hosts[host] = h
	c.world()
}

// dead takes hosts away for longer than any may be silent, all at once; a worker
// w1 is one of the hosts then. The broker does not see its cores current.
func (c *cluster) dead(m *Members, hosts ...kbroker.HostID) {
	c.view.Hosts["w1"] = kbroker.Host{Name: "w1", Role: kbroker.RoleWorker, State: kbroker.HostReady}
	for _, h := range hosts {
		c.down[h], c.silent[h] = true, state.Tuned.Lost
		if c.view.Hosts[h].Role == kbroker.RoleCore {
			m.Current[h] = false
		}
	}
}

// removed is what the store has of a host that was taken out of the cluster.
func (c *cluster) removed(host kbroker.HostID) {
	h := c.view.Hosts[host]
	h.State, h.Drain, h.Maintenance = kbroker.HostRemoved, nil, nil
	c.view.Hosts[host] = h
}

// agents let every agent that is up do what its placements say.
func (c *cluster) agents() {
	for k, p := range c.view.Placements {
		if c.down[k.Host] {
			continue
		}
		s := kbroker.Status{
			Tenant: p.Tenant, App: p.App, Service: p.Service, Instance: p.Instance, Host: p.Host,
			Version: p.Version, Epoch: p.Epoch, PID: 1, State: kbroker.StateReady,
			Incarnation: kbroker.Incarnation(string(p.Instance) + ".0000000000000000"),
		}
		if _, runs := c.began[k]; !runs {
			c.began[k] = c.now
		}
		switch {
		case p.Stop:
			s.State, s.PID = kbroker.StateExited, 0
		case c.now-c.began[k] < c.warmUp:
			s.State = kbroker.StateStarting
		case c.broken[p.Version] && !c.kept[k], c.brokenOn != nil && c.brokenOn(p):
			s.State, s.Message = kbroker.StateBackoff, "exit code 1"
		case c.loops != nil && c.loops(p):
			s.State, s.Crashes, s.Message = kbroker.StateBackoff, p.Backoff+1, "exit code 1"
			if c.now-c.began[k] >= loopsAfter {
				s.Crashes, s.Failing, s.Message = p.Backoff+5, true, "crash loop: exit code 1"
			}
		}
		c.view.Statuses[k] = s
	}
}

// round plans once, applies the plan and returns it.
func (c *cluster) round() []state.Change {
	changes := Plan(c.world())
	c.apply(changes)
	return changes
}

// step is a second of life: agents act, the leader plans.
func (c *cluster) step() []state.Change {
	c.agents()
	c.now += time.Second
	for name := range c.view.Hosts {
		if c.down[name] {
			c.silent[name] += time.Second
		} else {
			c.silent[name] = 0
		}
	}
	return c.round()
}

// lose takes a host away and waits until it is declared lost.
func (c *cluster) lose(host kbroker.HostID) {
	c.t.Helper()
	c.down[host] = true
	for steps := 0; c.view.Hosts[host].State != kbroker.HostLost; steps++ {
		if steps > 60 {
			c.t.Fatalf("host %s is not lost after a minute", host)
		}
		c.step()
	}
}

// settle steps until nothing changes for the longest of the small times.
func (c *cluster) settle() {
	c.t.Helper()
	for quiet, steps := 0, 0; quiet < 8; steps++ {
		if steps > 1000 {
			c.t.Fatalf("not settled after %d seconds; last placements: %v", steps, c.live())
		}
		quiet++
		if len(c.step()) > 0 {
			quiet = 0
		}
	}
}

// live are the instances of the services (allocators not counted) per host
// that are not tombstones.
func (c *cluster) live() map[kbroker.HostID][]kbroker.Placement {
	out := map[kbroker.HostID][]kbroker.Placement{}
	for _, p := range c.view.Placements {
		if !p.Stop && p.Service != kbroker.AllocatorService {
			out[p.Host] = append(out[p.Host], p)
		}
	}
	return out
}

// names are the live instances of a host, in order.
func (c *cluster) names(host kbroker.HostID) string {
	var names []kbroker.InstanceID
	for _, p := range c.live()[host] {
		names = append(names, p.Instance)
	}
	slices.Sort(names)
	return fmt.Sprint(names)
}

func (c *cluster) count() (n int) {
	for _, ps := range c.live() {
		n += len(ps)
	}
	return n
}

// readyCount counts instances that answer.
func (c *cluster) readyCount() (n int) {
	for k, p := range c.view.Placements {
		s := c.view.Statuses[k]
		if p.Service != kbroker.AllocatorService && !c.down[k.Host] && s.State == kbroker.StateReady && !p.Stop {
			n++
		}
	}
	return n
}
