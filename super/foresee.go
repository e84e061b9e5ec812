package super

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

const (
	// maxForeseen bounds the rounds that are looked ahead. Each costs as much as
	// the app has instances.
	maxForeseen = 500
	// foreseenSteps is in how many rounds a service is rolled then; one with more
	// instances than that is rolled several at a time.
	foreseenSteps = 32
	// longReady is how long an instance that is foreseen has been ready: more
	// than any min_healthy.
	longReady = 24 * time.Hour
	// indexBits keeps a check index exact in a JSON number of any language.
	indexBits = 48
)

// unbuilt stands for the digest of a program that is not there yet: no file has
// it, so that the service counts as changed.
var unbuilt = strings.Repeat("0", 64)

const unbuiltText = "program would be built and uploaded"

// decidePlan says what deploying an app would do. Pure. DeadlineExceeded when ctx
// ended before the look ahead did.
func decidePlan(ctx context.Context, v *state.View, verdict Verdict, r kbroker.PlanRequest, now time.Time) (kbroker.PlanReply, error) {
	k := state.AppKey{Tenant: r.Tenant, App: r.App.Name}
	rec, known := v.Apps[k]
	before := v.Versions[k][rec.Version].App
	r.App.Services = slices.Clone(r.App.Services)
	for i := range r.App.Services {
		if a := &r.App.Services[i].Artifact; a.SHA256 == "" && a.Builtin == "" {
			a.SHA256 = unbuilt
		}
	}
	if own := r.App.Own; own != nil && own.Artifact.SHA256 == "" {
		copied := *own
		copied.Artifact.SHA256, r.App.Own = unbuilt, &copied
	}
	d, err := decideDeploy(v, kbroker.DeployRequest{Tenant: r.Tenant, App: r.App}, now)
	if err != nil {
		return kbroker.PlanReply{}, err
	}
	reply := d.reply.(kbroker.DeployReply)
	out := kbroker.PlanReply{
		App: r.App.Name, Version: reply.Version, From: rec.Version, Unchanged: reply.Unchanged, CheckIndex: checkIndex(v, k),
		Services: []kbroker.ServicePlan{}, Warnings: planWarnings(v, verdict, k, known, reply.Unchanged),
	}
	look := foresee(ctx, v, verdict, k, d.changes)
	if ctx.Err() != nil {
		return kbroker.PlanReply{}, kbroker.Errorf(kbroker.DeadlineExceeded, "the plan of app %q was not ready in time: %d rounds of its rollout were looked at", k.App, look.rounds).
			WithHint("try again; `kbroker deploy` does not wait for a plan")
	}
	out.Starts, out.Leaves, out.Unplaced = len(look.start), len(look.leave), look.unplaced
	out.Start, out.Leave = look.start[:min(out.Starts, kbroker.MaxPlanned)], look.leave[:min(out.Leaves, kbroker.MaxPlanned)]
	if !look.settled {
		out.Warnings = append(out.Warnings, fmt.Sprintf("what happens after %d steps was not looked at", maxForeseen))
	}
	for _, s := range r.App.Services {
		if n := wanted(s, v.Demands[k]); look.rolls(s.Name) && n > foreseenSteps && s.Update.Parallel < (n+foreseenSteps-1)/foreseenSteps {
			out.Warnings = append(out.Warnings, fmt.Sprintf(
				"service %s is looked at in strides of %d instances, not %d at a time: what goes to which host may turn out otherwise",
				s.Name, (n+foreseenSteps-1)/foreseenSteps, s.Update.Parallel))
		}
	}
	r.App.Services = keepRestarts(r.App.Services, before)
	for _, diff := range serviceDiffs(before, r.App) {
		out.Services = append(out.Services, servicePlan(diff, look, v.Demands[k], rec.Stopped))
	}
	if p, changes := allocatorPlan(before, r.App, known && !rec.Stopped); changes {
		out.Services = append(out.Services, p)
	}
	return out, nil
}

// servicePlan is what becomes of one service.
func servicePlan(diff serviceDiff, look outlook, demand kbroker.Demand, stopped bool) kbroker.ServicePlan {
	p := kbroker.ServicePlan{Service: diff.name, Change: diff.change, Changes: append([]string{}, diff.words...)}
	if diff.change != kbroker.ServiceNew && !stopped {
		p.Before = wanted(diff.before, demand)
	}
	if diff.change != kbroker.ServiceRemoved {
		p.After = wanted(diff.after, demand)
	}
	if diff.change == kbroker.ServiceNew && diff.after.Artifact.SHA256 == unbuilt {
		p.Changes = append(p.Changes, unbuiltText)
	}
	of := func(p kbroker.PlannedInstance) bool { return p.Service == diff.name }
	starts, leaves := slices.ContainsFunc(look.start, of), slices.ContainsFunc(look.leave, of)
	switch {
	case starts && leaves:
		p.Mode = kbroker.ModeRolling
	case starts:
		p.Mode = kbroker.ModeStart
	case leaves:
		p.Mode = kbroker.ModeStop
	case diff.change == kbroker.ServiceChanged && kbroker.Template(diff.before) != kbroker.Template(diff.after):
		p.Mode = kbroker.ModeRolling
	case diff.change == kbroker.ServiceChanged:
		p.Mode = kbroker.ModeInPlace
	}
	return p
}

// allocatorPlan is what becomes of the allocator of an app; false: nothing. Which hosts its
// instances start on is not told.
func allocatorPlan(before, after kbroker.App, runs bool) (kbroker.ServicePlan, bool) {
	words := allocatorWords(before, after)
	was, is := AllocatorSpec(before), AllocatorSpec(after)
	p := kbroker.ServicePlan{
		Service: kbroker.AllocatorService, Change: kbroker.ServiceChanged, Changes: words, Before: was.Count.Min, After: is.Count.Min, Mode: kbroker.ModeInPlace,
	}
	switch {
	case !runs:
		p.Before, p.Mode = 0, kbroker.ModeStart
	case kbroker.Template(was) != kbroker.Template(is):
		p.Mode = kbroker.ModeRolling
	}
	return p, len(words) > 0
}

// planWarnings is what a person should know before a deploy.
func planWarnings(v *state.View, verdict Verdict, k state.AppKey, known, unchanged bool) []string {
	out := []string{}
	rec := v.Apps[k]
	switch {
	case !known:
	case rec.Stopped:
		out = append(out, "the app is stopped; this would start it")
	case rec.Rollout.State == kbroker.RolloutRunning && !unchanged:
		out = append(out, fmt.Sprintf("version %d is still on its way; this would overtake it", rec.Version))
	case rec.Rollout.State == kbroker.RolloutFailed:
		out = append(out, fmt.Sprintf("version %d failed: %s", rec.Version, rec.Rollout.Reason))
	}
	for _, h := range sortedHosts(v) {
		if s := verdict.States[h.Name]; s == kbroker.HostLost || s == kbroker.HostSuspect {
			out = append(out, fmt.Sprintf("host %s is %s: nothing is placed on it", h.Name, s))
		}
	}
	return out
}

// outlook is what would become of an app's instances.
type outlook struct {
	start, leave []kbroker.PlannedInstance
	unplaced     []kbroker.UnplacedPlan
	settled      bool // nothing more would happen
	rounds       int  // that were looked at
}

// rolls reports whether instances of the service are replaced.
func (o outlook) rolls(service kbroker.ServiceName) bool {
	of := func(p kbroker.PlannedInstance) bool { return p.Service == service }
	return slices.ContainsFunc(o.start, of) && slices.ContainsFunc(o.leave, of)
}

// foresee plans an app again and again on a copy of the view in which the
// changes were made, every instance on a host that is ready becomes ready and
// every stop there is confirmed; it ends early with ctx. What super does by itself
// when all has settled, to set instances apart, is not foreseen; nor who of several that
// are replaced at a time gets room first, where all wait for it. Pure.
func foresee(ctx context.Context, v *state.View, verdict Verdict, k state.AppKey, changes []state.Change) outlook {
	return foreseeIn(ctx, v, verdict, k, changes, foreseenSteps)
}

// foreseeIn is foresee in so many steps per service; 0: as many as a rollout has.
func foreseeIn(ctx context.Context, v *state.View, verdict Verdict, k state.AppKey, changes []state.Change, steps int) outlook {
	w := World{View: alone(v, k), Verdict: verdict, ReadyFor: map[state.PlacementKey]time.Duration{}, Steps: steps}
	w.Verdict.Blind = false
	out := outlook{start: []kbroker.PlannedInstance{}, leave: []kbroker.PlannedInstance{}, unplaced: []kbroker.UnplacedPlan{}}
	apply(w.View, changes)
	obey(w)
	for !out.settled && out.rounds < maxForeseen && ctx.Err() == nil {
		out.rounds++
		planned := Plan(w)
		for _, c := range planned {
			if put, ok := c.(state.PutPlacement); ok {
				out.note(w.View, put.Placement)
			}
		}
		apply(w.View, planned)
		switch quiet := !obey(w) && len(planned) == 0; {
		case quiet && w.Steps > 0:
			w.Steps = 0 // what strides cannot do, steps may
		case quiet:
			out.settled = true
		}
	}
	d := newDraft(w)
	for _, u := range d.apps[k].Unplaced {
		s, ok := serviceSpec(w.View, k, u.Service)
		if !ok {
			continue
		}
		out.unplaced = append(out.unplaced, kbroker.UnplacedPlan{Service: u.Service, Count: u.Count, Hosts: d.hostFits(k, s)})
	}
	return out
}

// note keeps what a placement does to an instance of a service.
func (o *outlook) note(before *state.View, p kbroker.Placement) {
	if p.Service == kbroker.AllocatorService {
		return
	}
	was, placed := before.Placements[keyOf(p)]
	one := kbroker.PlannedInstance{Service: p.Service, Instance: p.Instance, Host: p.Host, Version: p.Version}
	switch {
	case p.Stop && placed && !was.Stop:
		one.Version, one.Reason = was.Version, p.StopReason
		o.leave = append(o.leave, one)
	case !p.Stop && !placed:
		o.start = append(o.start, one)
	}
}

// serviceSpec is a service of the wanted version, or the allocator.
func serviceSpec(v *state.View, k state.AppKey, name kbroker.ServiceName) (kbroker.Service, bool) {
	app := v.Versions[k][v.Apps[k].Version].App
	if name == kbroker.AllocatorService {
		return AllocatorSpec(app), true
	}
	s, ok := app.Service(name)
	if !ok {
		return kbroker.Service{}, false
	}
	return *s, true
}

// alone is a view of one app, which is the caller's to change: what all others
// reserve on a host is one placement there that nobody plans.
func alone(v *state.View, k state.AppKey) *state.View {
	out := &state.View{
		Sequence: v.Sequence, Hosts: maps.Clone(v.Hosts), Unreadable: v.Unreadable,
		Apps: map[state.AppKey]kbroker.AppRecord{}, Versions: map[state.AppKey]map[int]kbroker.AppVersion{},
		Placements: map[state.PlacementKey]kbroker.Placement{}, Demands: map[state.AppKey]kbroker.Demand{},
		Statuses: map[state.PlacementKey]kbroker.Status{},
	}
	if rec, ok := v.Apps[k]; ok {
		out.Apps[k], out.Versions[k] = rec, maps.Clone(v.Versions[k])
	}
	if demand, ok := v.Demands[k]; ok {
		out.Demands[k] = demand
	}
	others := map[kbroker.HostID]usage{}
	for key, p := range v.Placements {
		switch {
		case p.Tenant == k.Tenant && p.App == k.App:
			out.Placements[key] = p
			out.Statuses[key] = v.Statuses[key]
		case !p.Stop: // what leaves has left by then
			others[p.Host] = others[p.Host].plus(usageOf(p.Spec.Resources))
		}
	}
	for host, used := range others {
		p := kbroker.Placement{Host: host, Instance: "others"}
		p.Spec.Resources = kbroker.Resources{CPU: float64(used.milliCPU) / 1000, MemoryBytes: used.memoryBytes}
		out.Placements[keyOf(p)] = p
	}
	return out
}

// apply does to a view what the store does with a batch.
func apply(v *state.View, changes []state.Change) {
	for _, change := range changes {
		switch c := change.(type) {
		case state.PutApp:
			v.Apps[state.AppKey{Tenant: c.Record.Tenant, App: c.Record.App}] = c.Record
		case state.PutVersion:
			k := state.AppKey{Tenant: c.Version.Tenant, App: c.Version.App.Name}
			if v.Versions[k] == nil {
				v.Versions[k] = map[int]kbroker.AppVersion{}
			}
			v.Versions[k][c.Version.Version] = c.Version
		case state.PutPlacement:
			v.Placements[keyOf(c.Placement)] = c.Placement
		case state.DropPlacement:
			delete(v.Placements, c.Key)
		case state.PutHost:
			v.Hosts[c.Host.Name] = c.Host
		case state.DropHost:
			delete(v.Hosts, c.Host)
		case state.PutDemand:
			v.Demands[state.AppKey{Tenant: c.Demand.Tenant, App: c.Demand.App}] = c.Demand
		case state.PutToken:
			v.Tokens[c.Token.ID] = c.Token
		case state.DropToken:
			delete(v.Tokens, c.ID)
		case state.PutUser:
			v.Users[state.UserKey{Tenant: c.User.Tenant, Name: c.User.Name}] = c.User
		case state.DropUser:
			delete(v.Users, c.Key)
		}
	}
}

// obey lets the agents of ready hosts do what their placements say, and
// reports whether that was anything.
func obey(w World) (changed bool) {
	for k, p := range w.View.Placements {
		if p.App == "" || w.Verdict.States[k.Host] != kbroker.HostReady {
			continue
		}
		to := kbroker.StateReady
		if p.Stop {
			to = kbroker.StateExited
		}
		if s := w.View.Statuses[k]; s.State != to || s.Epoch != p.Epoch {
			w.View.Statuses[k], changed = kbroker.Status{State: to, Epoch: p.Epoch}, true
		}
		w.ReadyFor[k] = longReady
	}
	return changed
}

// checkIndex is a number for what is wanted of an app and where it is placed.
// It is the same as long as those are, and another one when either changed.
func checkIndex(v *state.View, k state.AppKey) uint64 {
	h := fnv.New64a()
	rec := v.Apps[k]
	fmt.Fprintln(h, k.Tenant, k.App, rec.Version, rec.Latest, rec.Stopped, rec.Rollout.State, rec.Rollout.From, rec.Rollout.Started.UnixNano())
	demand := v.Demands[k].Wanted
	for _, s := range slices.Sorted(maps.Keys(demand)) {
		fmt.Fprintln(h, s, demand[s])
	}
	var on []kbroker.Placement
	for _, p := range v.Placements {
		if p.Tenant == k.Tenant && p.App == k.App && !p.Stop { // a stop that is confirmed goes by itself
			on = append(on, p)
		}
	}
	slices.SortFunc(on, func(a, b kbroker.Placement) int { return comparePlacements(keyOf(a), keyOf(b)) })
	for _, p := range on {
		fmt.Fprintln(h, p.Host, p.Instance, p.Version, p.Epoch, p.Template, p.Replace)
	}
	return max(1, h.Sum64()>>(64-indexBits))
}

// unmoved refuses a deploy of a plan that was made of another state of the app.
// 0: no plan.
func unmoved(v *state.View, k state.AppKey, index uint64) error {
	if index == 0 || index == checkIndex(v, k) {
		return nil
	}
	return kbroker.Errorf(kbroker.Refused, "app %q has changed since that plan was made", k.App).
		WithHint("plan again: `kbroker plan FILE` shows what would change now, with a new check index")
}
