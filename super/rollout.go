package super

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// appDraft is the plan of one app in one round.
type appDraft struct {
	*draft
	key    state.AppKey
	rec    *kbroker.AppRecord
	demand kbroker.Demand
	lost   map[kbroker.ServiceName][]int // crashes of those that must be replaced

	unfinished bool     // some service does not yet run as wanted
	troubles   []string // what keeps instances of the wanted version from being ready
}

// planService brings one service to its wanted count at its wanted template.
//
// A first version, a scale-up and a replacement start all at once. A changed
// template rolls: at most Update.Parallel new instances are not settled (ready
// for MinHealthy) at a time, and an old one leaves only for a settled new one.
// Where no host has room for a new one beside the old ones, one old one leaves
// first, if others stay.
func (a *appDraft) planService(s kbroker.Service) {
	template, want := kbroker.Template(s), wanted(s, a.demand)
	var current, old []kbroker.Placement
	for _, p := range a.live(a.key, func(p kbroker.Placement) bool { return p.Service == s.Name }) {
		if p.Template != template {
			old = append(old, p)
			continue
		}
		current = append(current, a.relabel(p, s))
	}
	ready, settled := 0, 0
	for _, p := range current {
		if !a.ready(p) {
			a.trouble(p)
			continue
		}
		ready++
		if a.w.ReadyFor[keyOf(p)] >= s.Update.MinHealthy {
			settled++
		}
	}
	failed := a.rec.Rollout.State == kbroker.RolloutFailed
	switch {
	case len(old) == 0:
		a.add(s, a.rec.Version, want-len(current))
		a.shed(current, len(current)-want, "scaled down")
	case failed:
		// The rollout stopped where it was; what is lost comes back as it was.
		a.add(old[0].Spec, old[0].Version, want-settled-len(old))
	default:
		a.roll(s, want, current, old, settled)
	}
	if s.Name != kbroker.AllocatorService && (len(old) > 0 || ready < want) {
		a.unfinished = true
	}
}

// roll takes the next step from old to current.
func (a *appDraft) roll(s kbroker.Service, want int, current, old []kbroker.Placement, settled int) {
	a.shed(current, len(current)-want, "scaled down")
	a.shed(old, len(old)-(want-settled), "replaced by version "+fmt.Sprint(a.rec.Version))
	unsettled := max(len(current)-settled, 0)
	step := min(s.Update.Parallel-unsettled, want-len(current))
	if step <= 0 {
		return
	}
	if placed := a.add(s, a.rec.Version, step); placed > 0 || unsettled > 0 {
		return
	}
	leaving := 0 // on hosts that can confirm it
	for _, key := range a.byApp[a.key] {
		p, ok := a.placements[key]
		if ok && p.Stop && p.Service == s.Name && a.hosts[p.Host].State == kbroker.HostReady {
			leaving++
		}
	}
	if leaving == 0 && len(old)+settled > 1 {
		a.shed(old, 1, "makes room for version "+fmt.Sprint(a.rec.Version))
	}
}

// relabel updates in place what does not concern the running process. A version
// never changes, so that what carries its number carries its spec.
func (a *appDraft) relabel(p kbroker.Placement, s kbroker.Service) kbroker.Placement {
	if p.Version != a.rec.Version {
		p.Version, p.Spec = a.rec.Version, s
		a.put(p)
	}
	return p
}

// add places n more instances and returns how many found a host; the others
// are recorded as unplaced, with the reason.
func (a *appDraft) add(s kbroker.Service, version, n int) (placed int) {
	if n <= 0 {
		return 0
	}
	seats := a.seats(s, a.live(a.key, func(p kbroker.Placement) bool { return p.Service == s.Name }))
	for ; placed < n; placed++ {
		host := seats.take()
		if host == "" {
			refused := seats.refusals()
			a.rec.Unplaced = append(a.rec.Unplaced, kbroker.Unplaced{Service: s.Name, Count: n - placed, Reason: refused})
			a.troubles = append(a.troubles, fmt.Sprintf("no host can take %d more of %s: %s", n-placed, s.Name, refused))
			return placed
		}
		p := kbroker.Placement{
			Tenant: a.key.Tenant, App: a.key.App, Service: s.Name, Host: host, Version: version, Epoch: 1,
			Instance: a.newInstance(s.Name), Template: kbroker.Template(s), Spec: s,
		}
		if crashes := a.lost[s.Name]; len(crashes) > 0 {
			p.Backoff, a.lost[s.Name] = crashes[0], crashes[1:]
		}
		a.put(p)
	}
	return placed
}

// shed stops n of the instances: those that are not ready first, then those on
// hosts that have the most of them, then the youngest.
func (a *appDraft) shed(from []kbroker.Placement, n int, reason string) {
	if n <= 0 {
		return
	}
	on := map[kbroker.HostID]int{}
	for _, p := range from {
		on[p.Host]++
	}
	left := slices.Clone(from)
	for ; n > 0 && len(left) > 0; n-- {
		worst := 0
		for i, p := range left[1:] {
			q := left[worst]
			switch {
			case a.ready(p) != a.ready(q):
				if !a.ready(p) {
					worst = i + 1
				}
			case on[p.Host] != on[q.Host]:
				if on[p.Host] > on[q.Host] {
					worst = i + 1
				}
			case byAge(p, q) > 0:
				worst = i + 1
			}
		}
		on[left[worst].Host]--
		a.stop(left[worst], reason)
		left = slices.Delete(left, worst, worst+1)
	}
}

// trouble notes why an instance of the wanted version is not ready.
func (a *appDraft) trouble(p kbroker.Placement) {
	s := a.w.View.Statuses[keyOf(p)]
	if s.State == "" || s.Epoch != p.Epoch {
		s.State, s.Message = kbroker.StatePending, "its agent has not reported it"
	}
	text := fmt.Sprintf("%s on %s is %s", p.Instance, p.Host, s.State)
	if s.Message != "" {
		text += ": " + s.Message
	}
	a.troubles = append(a.troubles, text)
}

// maxTroubles bounds the reasons in a rollout's record.
const maxTroubles = 3

// judgeRollout ends a rollout that is done, or that has made no progress for
// its deadline; with auto_rollback the app then returns to the version before.
func (a *appDraft) judgeRollout(app kbroker.App) {
	r := &a.rec.Rollout
	if !a.unfinished {
		r.State = kbroker.RolloutDone
		if r.From <= a.rec.Version { // of a way back, the reason stays
			r.Reason = ""
		}
		return
	}
	deadline, rollback := time.Duration(0), false
	for _, s := range app.Services {
		deadline, rollback = max(deadline, s.Update.Deadline), rollback || s.Update.AutoRollback
	}
	if r.State != kbroker.RolloutRunning || a.w.Stalled[a.key] < deadline {
		return
	}
	why := "no progress for " + deadline.String()
	if n := len(a.troubles); n > 0 {
		why += ": " + strings.Join(a.troubles[:min(n, maxTroubles)], "; ")
		if n > maxTroubles {
			why += fmt.Sprintf(" (and %d more)", n-maxTroubles)
		}
	}
	if rollback && r.From > 0 && r.From < a.rec.Version {
		failed := a.rec.Version
		a.rec.Version = r.From
		*r = kbroker.Rollout{
			State: kbroker.RolloutRunning, From: failed, Started: a.w.Now,
			Reason: fmt.Sprintf("version %d failed and was rolled back: %s", failed, why),
		}
		return
	}
	r.State, r.Reason = kbroker.RolloutFailed, why
}

// wanted is the number of instances: what the allocator demands, within what
// the spec allows; without a demand, the least that it allows.
func wanted(s kbroker.Service, d kbroker.Demand) int {
	n, ok := d.Wanted[s.Name]
	if !ok {
		n = s.Count.Min
	}
	return min(max(n, s.Count.Min), s.Count.Max)
}
