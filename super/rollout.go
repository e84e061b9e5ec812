package super

import (
	"cmp"
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
	// lost is what this round stopped on lost hosts and has not replaced yet,
	// waiting how many instances found no host in the round before.
	lost    map[kbroker.ServiceName][]kbroker.Placement
	waiting map[kbroker.ServiceName]int

	unfinished bool     // some service does not yet run as wanted
	troubles   []string // what keeps instances of the wanted version from being ready
}

// standing is where one service stands.
type standing struct {
	want    int
	current []kbroker.Placement // of the wanted template, on hosts that may run it
	moving  []kbroker.Placement // likewise, on hosts that drain
	old     []kbroker.Placement // the others
	ready   int                 // of current and moving
	settled int                 // of current: ready for MinHealthy
}

// planService brings one service to its wanted count at its wanted template.
// good is the service as it was when the app was last well, or nil.
//
// A first version, a scale-up and a replacement start all at once. A changed
// template rolls. A failed rollout stays where it stopped: what is lost comes
// back as it was when it was good.
func (a *appDraft) planService(s kbroker.Service, good *kbroker.Service) {
	at := a.stand(s)
	switch failed := a.rec.Rollout.State == kbroker.RolloutFailed; {
	case failed && good != nil && kbroker.Template(*good) != kbroker.Template(s):
		a.callOff(at)
		a.hold(s, *good, at)
	case len(at.old)+len(at.moving)+len(a.lostOther(s)) == 0:
		extra := a.movesApart(s, &at)
		if extra == 0 && at.ready < len(at.current) {
			a.tryElsewhere(s, a.rec.Version, at.want, at.current)
		}
		a.add(s, a.rec.Version, at.want-len(at.current))
		a.shed(at.current, len(at.current)-at.want-extra, "scaled down")
		if extra == 0 {
			a.setApart(s, at.want)
		}
	default:
		a.callOff(at)
		a.roll(s, at)
	}
	if !isBuiltin(s) && (len(at.old) > 0 || at.ready < at.want) {
		a.unfinished = true
	}
}

func (a *appDraft) stand(s kbroker.Service) standing {
	at := standing{want: wanted(s, a.demand)}
	template := kbroker.Template(s)
	for _, p := range a.live(a.key, func(p kbroker.Placement) bool { return p.Service == s.Name }) {
		host, known := a.hosts[p.Host]
		if p.Template != template || p.Replace != "" && p.Replace != togetherReason || known && unfit(host, s) != "" {
			at.old = append(at.old, p)
			continue
		}
		p = a.relabel(p, s)
		moving := a.draining(p)
		if moving {
			at.moving = append(at.moving, p)
		} else {
			at.current = append(at.current, p)
		}
		switch {
		case !a.ready(p):
			a.trouble(p)
			continue
		case !moving && a.settled(p, s):
			at.settled++
		}
		at.ready++
	}
	return at
}

// settled reports whether an instance has been ready for as long as s asks of a
// new one.
func (a *appDraft) settled(p kbroker.Placement, s kbroker.Service) bool {
	return a.ready(p) && a.w.ReadyFor[keyOf(p)] >= s.Update.MinHealthy
}

// lostOther returns the instances of another template that were lost just now:
// if there are any, the service was rolling, even if none of them is left.
func (a *appDraft) lostOther(s kbroker.Service) []kbroker.Placement {
	template := kbroker.Template(s)
	return slices.DeleteFunc(slices.Clone(a.lost[s.Name]), func(p kbroker.Placement) bool { return p.Template == template })
}

// roll takes the next step from old to current, and from hosts that drain to
// others: at most Update.Parallel new instances are not settled at a time, and an
// old one leaves only for a settled new one. Where no host has room for a new one
// beside the old ones, one old one leaves first, if others stay and its leaving
// makes room. An old one that was lost comes back as it was: the new version has
// not proven itself yet.
func (a *appDraft) roll(s kbroker.Service, at standing) {
	a.replace(a.lostOther(s))
	a.shed(at.current, len(at.current)-at.want, "scaled down")
	leaving := slices.Concat(at.old, at.moving)
	a.shed(leaving, len(leaving)-(at.want-at.settled), fmt.Sprintf("replaced by version %d", a.rec.Version))
	unsettled := max(len(at.current)-at.settled, 0)
	step := min(a.parallel(s)-unsettled, at.want-len(at.current))
	placed := a.add(s, a.rec.Version, step)
	short := min(step, a.stride(s)) - placed
	if placed > 0 && short <= 0 || a.leaving(s.Name) || step > 0 && unsettled == 0 && a.makeRoom(s, at, short) {
		return
	}
	if placed == 0 {
		a.force(s, leaving)
	}
}

// parallel is how many instances of a service change at a time.
func (a *appDraft) parallel(s kbroker.Service) int { return max(s.Update.Parallel, a.stride(s)) }

// stride is the least that changes at a time: one, or more in a look ahead.
func (a *appDraft) stride(s kbroker.Service) int {
	if a.w.Steps == 0 {
		return 1
	}
	return max(1, (wanted(s, a.demand)+a.w.Steps-1)/a.w.Steps)
}

// makeRoom stops an old instance that others can spare, where that lets a new one
// in: at most n, of each host one. The last one that answers stays, unless there is no
// other way: where it has the port that the new one must have, on all hosts.
func (a *appDraft) makeRoom(s kbroker.Service, at standing, n int) bool {
	answering := at.settled
	for _, p := range at.old {
		if a.ready(p) {
			answering++
		}
	}
	seats := a.seats(s, nil)
	slices.SortStableFunc(at.old, func(p, q kbroker.Placement) int { return cmp.Compare(a.worth(p), a.worth(q)) })
	made := map[kbroker.HostID]bool{}
	for _, p := range at.old {
		if len(made) == n || made[p.Host] || !seats.frees(p) || answering <= 1 && !a.failing(p) && !seats.onlyByLeaving() {
			continue
		}
		if a.ready(p) {
			answering--
		}
		a.stop(p, cmp.Or(p.Replace, fmt.Sprintf("makes room for version %d", a.rec.Version)))
		made[p.Host] = true
	}
	return len(made) > 0
}

// force stops instances on hosts that are drained by force, as many as may
// change at a time, if no other host has room for one of s. What else the
// service waits for does not matter then.
func (a *appDraft) force(s kbroker.Service, leaving []kbroker.Placement) {
	left := a.parallel(s)
	for _, p := range leaving {
		if drain := a.hosts[p.Host].Drain; drain == nil || !drain.Force || left == 0 {
			continue
		}
		if a.seats(s, nil).take() != "" {
			return
		}
		a.stop(p, fmt.Sprintf("host %s is drained by force, and no other has room", p.Host))
		left--
	}
}

// draining reports whether the instance's host is to become empty.
func (a *appDraft) draining(p kbroker.Placement) bool { return a.hosts[p.Host].Drain != nil }

// failing reports whether the instance's agent, who is heard, said that it has
// crashed. That nothing was reported says nothing.
func (a *appDraft) failing(p kbroker.Placement) bool {
	s := a.w.View.Statuses[keyOf(p)]
	return s.State == kbroker.StateBackoff && s.Epoch == p.Epoch && a.w.Verdict.States[p.Host] == kbroker.HostReady
}

// worth orders instances by what is lost with them: least that of one that does
// not answer, most that of one of the version that the app was last well with.
func (a *appDraft) worth(p kbroker.Placement) int {
	switch {
	case !a.ready(p):
		return 0
	case p.Version != lastGood(*a.rec):
		return 1
	}
	return 2
}

// leaving reports whether instances of the service are on their way out, on
// hosts that can confirm it.
func (a *appDraft) leaving(service kbroker.ServiceName) bool {
	return slices.ContainsFunc(a.byApp[a.key], func(k state.PlacementKey) bool {
		p, ok := a.placements[k]
		return ok && p.Stop && p.Service == service && a.hosts[p.Host].State == kbroker.HostReady
	})
}

// hold keeps a failed rollout where it stopped: what is missing comes as it was
// when the app was well, old instances beyond the wanted count leave, and so do
// failing ones beyond what a rollout has at a time. Where nothing old ran, as
// after a stop, nothing old is started. What is on hosts that drain is replaced
// as it was when the app was well, too.
func (a *appDraft) hold(s, good kbroker.Service, at standing) {
	var failing, stay []kbroker.Placement
	for _, p := range at.current {
		if a.failing(p) {
			failing = append(failing, p)
		}
	}
	leave, settled := at.moving, 0
	for _, p := range at.old {
		switch {
		case a.draining(p):
			leave = append(leave, p)
			continue
		case a.settled(p, good):
			settled++
		}
		stay = append(stay, p)
	}
	working, placed := len(at.current)-len(failing), 0
	if len(stay)+len(leave) > 0 || a.missed(s.Name) {
		missing := at.want - len(stay) - len(leave) - working
		moved := min(len(leave), at.want-len(stay)-working, max(0, a.parallel(good)-(len(stay)-settled)))
		placed = a.add(good, lastGood(*a.rec), max(0, missing)+max(0, moved))
	}
	a.tryElsewhere(good, lastGood(*a.rec), at.want, stay)
	a.shed(leave, len(leave)-max(0, at.want-settled-working), "")
	a.shed(stay, len(stay)-at.want, "scaled down")
	a.shed(failing, len(failing)-a.parallel(s), fmt.Sprintf("version %d failed", a.rec.Version))
	if placed == 0 && !a.leaving(s.Name) {
		a.force(good, leave)
	}
}

// keep keeps a service that the wanted version no longer has as it was, until
// that version is done.
func (a *appDraft) keep(good kbroker.Service) {
	live := a.live(a.key, func(p kbroker.Placement) bool { return p.Service == good.Name })
	if len(live) > 0 || a.missed(good.Name) {
		at := standing{want: wanted(good, a.demand), old: live}
		a.callOff(at)
		a.hold(good, good, at)
	}
}

// missed reports whether instances of the service were lost just now, or found
// no host in the round before.
func (a *appDraft) missed(service kbroker.ServiceName) bool {
	return len(a.lost[service]) > 0 || a.waiting[service] > 0
}

// replace places again, as it was, what lost hosts ran.
func (a *appDraft) replace(lost []kbroker.Placement) {
	for _, p := range lost {
		a.add(p.Spec, p.Version, 1)
	}
}

// lastGood is the version that an app was last well with; 0: none.
func lastGood(rec kbroker.AppRecord) int {
	switch r := rec.Rollout; {
	case r.State == kbroker.RolloutDone || r.From > rec.Version: // the way back leads to a good one
		return rec.Version
	default:
		return r.From
	}
}

// relabel updates in place what does not concern the running process. A version
// never changes, so that what carries its number carries its spec.
func (a *appDraft) relabel(p kbroker.Placement, s kbroker.Service) kbroker.Placement {
	if p.Version != a.rec.Version {
		p.Version, p.Spec, p.WriteSchemas = a.rec.Version, s, writesOf(a.rec, s)
		a.put(p)
	}
	return p
}

// add places n more instances and returns how many found a host; the others
// are recorded as unplaced, with the reason. They are spread among those that
// stay: what is to be replaced leaves in an order of its own.
func (a *appDraft) add(s kbroker.Service, version, n int) (placed int) {
	if n <= 0 {
		return 0
	}
	template := kbroker.Template(s)
	seats := a.seats(s, a.live(a.key, func(p kbroker.Placement) bool {
		return p.Service == s.Name && p.Template == template && p.Replace == ""
	}))
	for ; placed < n; placed++ {
		host := seats.take()
		if host == "" {
			refused := seats.refusals()
			a.rec.Unplaced = append(a.rec.Unplaced, kbroker.Unplaced{Service: s.Name, Count: n - placed, Reason: refused})
			a.troubles = append(a.troubles, fmt.Sprintf("no host can take %d more of %s: %s", n-placed, s.Name, refused))
			return placed
		}
		a.place(s, template, version, host)
	}
	return placed
}

// place places a new instance on a host that has room.
func (a *appDraft) place(s kbroker.Service, template string, version int, host kbroker.HostID) kbroker.Placement {
	p := kbroker.Placement{
		Tenant: a.key.Tenant, App: a.key.App, Service: s.Name, Host: host, Version: version, Epoch: 1,
		Instance: a.newInstance(s.Name), Template: template, Spec: s,
	}
	if len(s.Objects) > 0 {
		p.ObjectStreams, p.WriteSchemas = a.rec.ObjectStreams, writesOf(a.rec, s)
	}
	if lost := a.lost[s.Name]; len(lost) > 0 {
		p.Backoff, p.Failed, a.lost[s.Name] = lost[0].Backoff, lost[0].Failed, lost[1:]
	}
	a.put(p)
	return p
}

// shed stops n of the instances: those that are worth least first, then those on
// hosts that drain, then those that hold least, as the app's allocator says, then those
// on hosts that have the most of them, then the youngest. Of one on a host that drains, that is the reason.
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
			case a.worth(p) != a.worth(q):
				if a.worth(p) < a.worth(q) {
					worst = i + 1
				}
			case a.draining(p) != a.draining(q):
				if a.draining(p) {
					worst = i + 1
				}
			case a.demand.Holds[p.Instance] != a.demand.Holds[q.Instance]:
				if a.demand.Holds[p.Instance] < a.demand.Holds[q.Instance] {
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
		a.shedOne(left[worst], reason)
		left = slices.Delete(left, worst, worst+1)
	}
}

func (a *appDraft) shedOne(p kbroker.Placement, reason string) {
	reason = cmp.Or(p.Replace, reason)
	if a.draining(p) {
		reason = fmt.Sprintf("host %s is draining", p.Host)
	}
	a.stop(p, reason)
}

// trouble notes why an instance of the wanted version is not ready.
func (a *appDraft) trouble(p kbroker.Placement) {
	s := a.w.View.Statuses[keyOf(p)]
	if s.State == "" || s.Epoch != p.Epoch {
		s.State, s.Message = kbroker.StatePending, "its agent has not reported it"
	}
	text := fmt.Sprintf("%s on %s (%s)", p.Instance, p.Host, s.State)
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
		before := a.w.View.Versions[a.key][r.From].App
		if err := cmp.Or(unread(*a.rec, before), misplaced(a.w.View, a.key, before)); err != nil {
			r.State, r.Reason = kbroker.RolloutFailed, why+"; not rolled back: "+err.Error()
			return
		}
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
