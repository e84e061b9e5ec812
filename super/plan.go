package super

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// joinExpires is how long an admitted core may stay away before its admission is
// taken back, so that it does not keep others out.
const joinExpires = time.Minute

// World is everything that Plan looks at.
type World struct {
	View    *state.View
	Verdict Verdict
	// InState is how long each host has had its recorded state.
	InState map[kbroker.HostID]time.Duration
	// LeaveFor is how long each host has had its leave to go down.
	LeaveFor map[kbroker.HostID]time.Duration
	// ReadyFor is how long the leader has seen each instance ready without a
	// break in the same incarnation.
	ReadyFor map[state.PlacementKey]time.Duration
	// Stalled is how long the leader has seen no progress in an app's rollout.
	Stalled map[state.AppKey]time.Duration
	// SteadyFor is how long each host has been one that takes instances, without
	// a break; ApartFor how long an instance has been marked to be moved apart, and
	// ApartFailed how long ago that took too long.
	SteadyFor   map[kbroker.HostID]time.Duration
	ApartFor    map[state.PlacementKey]time.Duration
	ApartFailed map[serviceKey]time.Duration
	// TriedFor is how long the leader has seen each instance on its host that failed on
	// others before.
	TriedFor map[state.PlacementKey]time.Duration
	// Unowned says, of apps whose rollout is not done, what of their objects nobody serves yet.
	Unowned map[state.AppKey]string
	// Now is the wall clock: for display, and for tokens, which outlive a leader.
	Now time.Time
	// Steps has every service rolled in about so many rounds, however few at a
	// time it asks for: a look ahead has not the time of a rollout. 0: as it asks.
	Steps int
}

// Plan returns the changes that turn what is recorded into what is wanted.
// Pure: no clock, no I/O; the same answer for the same world; sorted. Planning
// a world in which a plan was applied returns nothing.
//
// It never stops an instance because something is absent: only because its app
// says so, because its host was judged lost, or because enough newer ones are
// ready. No host is given more than its free capacity.
func Plan(w World) []state.Change {
	if w.Verdict.Blind {
		return nil
	}
	d := newDraft(w)
	d.judgeHosts()
	d.dropConfirmed()
	for _, k := range slices.SortedFunc(maps.Keys(d.apps), compareApps) {
		d.planApp(k)
	}
	return d.changes()
}

// draft is the world as the plan would leave it.
type draft struct {
	w          World
	hosts      map[kbroker.HostID]kbroker.Host
	apps       map[state.AppKey]kbroker.AppRecord
	placements map[state.PlacementKey]kbroker.Placement
	touched    map[state.PlacementKey]bool // put or dropped by this plan
	reserved   map[kbroker.HostID]usage
	numbers    numbers
	byApp      map[state.AppKey][]state.PlacementKey
	// names that are taken: app "a-b" with service "c" and app "a" with service
	// "b-c" would give their instances the same ones.
	names map[instanceKey]bool
	// movedApart is how many instances are on their way from the host where all of
	// their service were.
	movedApart int
	trying     int // instances that failed elsewhere and are being tried
	// blocked hosts have a record that this build cannot read: nothing of them
	// is changed, and they get nothing new.
	blocked map[kbroker.HostID]bool
}

// instanceKey names an instance, wherever it is.
type instanceKey struct {
	tenant   kbroker.TenantID
	instance kbroker.InstanceID
}

func newDraft(w World) *draft {
	d := &draft{
		w: w, hosts: maps.Clone(w.View.Hosts), apps: maps.Clone(w.View.Apps),
		placements: maps.Clone(w.View.Placements), reserved: map[kbroker.HostID]usage{}, numbers: numbers{},
		touched: map[state.PlacementKey]bool{},
		byApp:   map[state.AppKey][]state.PlacementKey{}, names: map[instanceKey]bool{},
		blocked: map[kbroker.HostID]bool{},
	}
	for key := range w.View.Unreadable {
		switch k := subjects.ParseKey(key); k.Table {
		case subjects.PlacementTable, subjects.HeadTable, subjects.HostTable:
			d.blocked[k.Host] = true
		}
	}
	if d.hosts == nil {
		d.hosts = map[kbroker.HostID]kbroker.Host{}
	}
	if d.placements == nil {
		d.placements = map[state.PlacementKey]kbroker.Placement{}
	}
	for k, p := range d.placements {
		d.reserved[p.Host] = d.reserved[p.Host].plus(usageOf(p.Spec.Resources))
		if len(p.Spec.Ports) > 0 {
			d.numbers.hold(p, w.View.Statuses[k])
		}
		app := state.AppKey{Tenant: p.Tenant, App: p.App}
		d.byApp[app] = append(d.byApp[app], k)
		d.names[instanceKey{k.Tenant, k.Instance}] = true
		if p.Replace == togetherReason && !p.Stop && !d.blocked[p.Host] {
			d.movedApart++
		}
		if d.undecided(p) {
			d.trying++
		}
	}
	for _, keys := range d.byApp { // so that live finds them almost in order
		slices.SortFunc(keys, func(a, b state.PlacementKey) int { return compareInstances(a.Instance, b.Instance) })
	}
	for k := range w.View.Statuses {
		d.names[instanceKey{k.Tenant, k.Instance}] = true
	}
	return d
}

// put places an instance, or changes one that is placed.
func (d *draft) put(p kbroker.Placement) {
	if d.blocked[p.Host] {
		return
	}
	k := keyOf(p)
	if was, ok := d.placements[k]; ok {
		d.reserved[p.Host] = d.reserved[p.Host].minus(usageOf(was.Spec.Resources))
		d.numbers.leave(was, d.w.View.Statuses[k])
	} else {
		app := state.AppKey{Tenant: p.Tenant, App: p.App}
		d.byApp[app] = append(d.byApp[app], k)
	}
	d.reserved[p.Host] = d.reserved[p.Host].plus(usageOf(p.Spec.Resources))
	d.numbers.hold(p, d.w.View.Statuses[k])
	d.placements[k] = p
	d.touched[k] = true
}

// judgeHosts records the verdict, what heartbeats say of the hosts, and the
// joins and leaves that came to an end.
func (d *draft) judgeHosts() {
	for name, beat := range d.w.Verdict.Beats {
		// A member of the broker without a record: the founder, or a host whose
		// admission was taken back before it appeared.
		if _, known := d.hosts[name]; !known && d.w.Verdict.Current[name] && !d.blocked[name] {
			d.hosts[name] = kbroker.Host{Name: name, Role: beat.Role, State: kbroker.HostReady, Since: d.w.Now, Generation: max(beat.Generation, firstGeneration)}
		}
	}
	for name, host := range d.hosts {
		if d.blocked[name] || !host.Member() {
			continue
		}
		if host.Maintenance != nil && d.w.LeaveFor[name] >= kbroker.MaintenanceLimit {
			host.Maintenance = nil // it lapsed; a new leader would count anew
		}
		beat, heard := d.w.Verdict.Beats[name]
		to := host.State
		switch verdict := d.w.Verdict.States[name]; {
		case host.State == kbroker.HostJoining:
			_, member := d.w.Verdict.Current[name]
			if heard && (host.Role == kbroker.RoleWorker || d.w.Verdict.Current[name]) {
				to = kbroker.HostReady
			} else if !heard && !member && host.Role == kbroker.RoleCore && d.w.InState[name] > joinExpires {
				d.takeBack(host)
				continue
			}
		case verdict == kbroker.HostReady || verdict == kbroker.HostLost:
			to = verdict
		}
		if to != host.State {
			host.State, host.Since = to, d.w.Now
		}
		if heard && to == kbroker.HostReady {
			host.Labels, host.Capacity, host.Client, host.Route, host.Address = beat.Labels, beat.Capacity, beat.Client, beat.Route, beat.Address
			host.CredentialLife = host.SignsFor(beat.CredentialLife)
		}
		d.hosts[name] = host
	}
}

// takeBack ends an admission that was not used. A name that had been removed
// before stays removed: its former host may still be about.
func (d *draft) takeBack(host kbroker.Host) {
	if host.Generation <= firstGeneration {
		delete(d.hosts, host.Name)
		return
	}
	host.State, host.Since = kbroker.HostRemoved, d.w.Now
	d.hosts[host.Name] = host
}

// dropConfirmed forgets tombstones whose exit the agent has confirmed, and
// those of hosts that are no longer members.
func (d *draft) dropConfirmed() {
	for k, p := range d.placements {
		status := d.w.View.Statuses[k]
		if p.Stop && !d.blocked[k.Host] && (!d.hosts[k.Host].Member() || status.State == kbroker.StateExited && status.Epoch >= p.Epoch) {
			d.reserved[p.Host] = d.reserved[p.Host].minus(usageOf(p.Spec.Resources))
			d.numbers.leave(p, status)
			delete(d.placements, k)
			d.touched[k] = true
		}
	}
}

// planApp plans one app: its services and its allocator.
func (d *draft) planApp(k state.AppKey) {
	rec := d.apps[k]
	version, ok := d.w.View.Versions[k][rec.Version]
	if !ok {
		return // written with the record, so it is there but unreadable: touch nothing
	}
	rec.Unplaced = nil
	if rec.Stopped {
		for _, p := range d.live(k, nil) {
			d.stop(p, "app stopped")
		}
		d.apps[k] = rec
		return
	}
	waiting := map[kbroker.ServiceName]int{}
	for _, u := range d.apps[k].Unplaced {
		waiting[u.Service] += u.Count
	}
	a := &appDraft{draft: d, key: k, rec: &rec, demand: d.w.View.Demands[k], lost: d.stopLost(k), waiting: waiting}
	good := d.w.View.Versions[k][lastGood(rec)].App
	kept := map[kbroker.ServiceName]bool{}
	for _, s := range append(slices.Clone(version.App.Services), AllocatorSpec(version.App)) {
		kept[s.Name] = true
		before, _ := good.Service(s.Name)
		if s.Name == kbroker.AllocatorService && lastGood(rec) > 0 {
			before = new(AllocatorSpec(good))
		}
		a.planService(s, before)
	}
	for _, s := range good.Services {
		if !kept[s.Name] && rec.Rollout.State != kbroker.RolloutDone {
			a.keep(s)
		}
	}
	a.awaitOwners(version.App)
	a.judgeRollout(version.App)
	if rec.Rollout.State == kbroker.RolloutDone {
		for _, p := range d.live(k, func(p kbroker.Placement) bool { return !kept[p.Service] }) {
			d.stop(p, "service is not in the spec any more")
		}
	}
	d.apps[k] = rec
}

// stopLost stops, on record, what ran on lost hosts, and returns it per service,
// with the crashes in a row that each had behind it.
func (d *draft) stopLost(k state.AppKey) map[kbroker.ServiceName][]kbroker.Placement {
	lost := map[kbroker.ServiceName][]kbroker.Placement{}
	for _, p := range d.live(k, nil) {
		if s := d.hosts[p.Host].State; (s == kbroker.HostLost || s == kbroker.HostRemoved) && !d.blocked[p.Host] {
			d.stop(p, fmt.Sprintf("host %s is %s", p.Host, s))
			if p.Backoff = d.w.View.Statuses[keyOf(p)].Crashes; p.Backoff == 0 {
				p.Failed = nil // it was well
			}
			lost[p.Service] = append(lost[p.Service], p)
		}
	}
	return lost
}

// live returns the app's placements that are not tombstones and pass keep (nil:
// all), oldest first.
func (d *draft) live(k state.AppKey, keep func(kbroker.Placement) bool) []kbroker.Placement {
	out := make([]kbroker.Placement, 0, len(d.byApp[k]))
	for _, key := range d.byApp[k] {
		if p, ok := d.placements[key]; ok && !p.Stop && (keep == nil || keep(p)) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, byAge)
	return out
}

// stop turns a placement into a tombstone.
func (d *draft) stop(p kbroker.Placement, reason string) {
	p.Stop, p.StopReason = true, reason
	p.Epoch++
	d.put(p)
}

// ready reports whether the instance answers: its agent said so and is heard.
func (d *draft) ready(p kbroker.Placement) bool {
	s := d.w.View.Statuses[keyOf(p)]
	return s.State == kbroker.StateReady && s.Epoch == p.Epoch && d.w.Verdict.States[p.Host] == kbroker.HostReady
}

// changes are the differences between the world and the draft, sorted.
func (d *draft) changes() []state.Change {
	var out []state.Change
	for _, name := range slices.Sorted(maps.Keys(d.hosts)) {
		if was, ok := d.w.View.Hosts[name]; !ok || !reflect.DeepEqual(was, d.hosts[name]) {
			out = append(out, state.PutHost{Host: d.hosts[name]})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.w.View.Hosts)) {
		if _, ok := d.hosts[name]; !ok {
			out = append(out, state.DropHost{Host: name})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(d.apps), compareApps) {
		if !reflect.DeepEqual(d.w.View.Apps[k], d.apps[k]) {
			out = append(out, state.PutApp{Record: d.apps[k]})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(d.touched), comparePlacements) {
		was, before := d.w.View.Placements[k]
		now, after := d.placements[k]
		switch {
		case after && !(before && reflect.DeepEqual(was, now)):
			out = append(out, state.PutPlacement{Placement: now})
		case before && !after:
			out = append(out, state.DropPlacement{Key: k})
		}
	}
	return slices.Concat(out, forgotten(d.w.View, d.w.Now), forgottenUsers(d.w.View, d.w.Now))
}

func keyOf(p kbroker.Placement) state.PlacementKey {
	return state.PlacementKey{Host: p.Host, Tenant: p.Tenant, Instance: p.Instance}
}

func compareApps(a, b state.AppKey) int {
	return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.App, b.App))
}

func comparePlacements(a, b state.PlacementKey) int {
	return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Tenant, b.Tenant), compareInstances(a.Instance, b.Instance))
}

// compareInstances orders instances of one service by age: their names end in a
// number that only grows.
func compareInstances(a, b kbroker.InstanceID) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

func byAge(a, b kbroker.Placement) int { return compareInstances(a.Instance, b.Instance) }

func sortedHosts(v *state.View) []kbroker.Host {
	return slices.SortedFunc(maps.Values(v.Hosts), func(a, b kbroker.Host) int { return cmp.Compare(a.Name, b.Name) })
}

// What the program of an app's own policy is held to where its host can: others run there,
// too.
const (
	ownMemoryBytes      = 64 << 20
	ownMemoryLimitBytes = 256 << 20
	ownCPULimit         = 1
	ownPIDs             = 256
)

// AllocatorSpec is the service that every app has beside its own: the app's
// allocator, one active and one standby. Its program is the built-in one, or that of the
// app's own policy.
func AllocatorSpec(app kbroker.App) kbroker.Service {
	s := kbroker.Service{
		Name:      kbroker.AllocatorService,
		Artifact:  kbroker.Artifact{Builtin: kbroker.BuiltinAllocator},
		Count:     kbroker.Count{Min: 2, Max: 2},
		Resources: kbroker.Resources{CPU: 0.02, MemoryBytes: 32 << 20},
		Health:    kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthSDK, Interval: time.Second}},
		Update:    kbroker.Update{Parallel: 1, MinHealthy: time.Second, Deadline: 2 * time.Minute},
		Stop:      kbroker.Stop{Signal: "SIGTERM", Grace: 5 * time.Second},
		Spread:    "host",
	}
	if own := app.Own; own != nil {
		s.Build, s.Run, s.Artifact = own.Build, own.Run, own.Artifact
		s.Resources.MemoryBytes, s.Resources.MemoryLimitBytes = ownMemoryBytes, ownMemoryLimitBytes
		s.Resources.CPULimit, s.Resources.PIDs = ownCPULimit, ownPIDs
	}
	return s
}

// isBuiltin reports whether a service is the allocator that every app has: no rollout waits
// for it.
func isBuiltin(s kbroker.Service) bool {
	return s.Name == kbroker.AllocatorService && s.Artifact.Builtin != ""
}

// newInstance names the app's next instance.
func (a *appDraft) newInstance(service kbroker.ServiceName) kbroker.InstanceID {
	for {
		a.rec.NextInstance++
		id := kbroker.InstanceID(fmt.Sprintf("%s-%s-%d", a.key.App, service, a.rec.NextInstance))
		if k := (instanceKey{a.key.Tenant, id}); !a.names[k] {
			a.names[k] = true
			return id
		}
	}
}
