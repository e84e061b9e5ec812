package super

import (
	"fmt"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// steadyAfter is how long a host must have taken instances, without a break,
	// before what runs well elsewhere is moved to it: one that comes and goes moves
	// nothing.
	steadyAfter = 30 * time.Second
	// apartAtOnce bounds the instances of all apps that are moved apart at a time:
	// a host that joins is not flooded. None keeps its turn for longer than its
	// service gives a rollout (Update.Deadline).
	apartAtOnce = 4
	// apartAgain is how long a service is left alone whose new instance did not
	// get ready.
	apartAgain = 10 * time.Minute
	// togetherReason is why such an instance is replaced.
	togetherReason = "all instances of the service were on one host"
)

// serviceKey names a service of an app.
type serviceKey struct {
	tenant  kbroker.TenantID
	app     kbroker.AppName
	service kbroker.ServiceName
}

func serviceOf(p kbroker.Placement) serviceKey { return serviceKey{p.Tenant, p.App, p.Service} }

// setApart has one instance of a service replaced on another host if all of them
// are on one: with that host the service would be gone, until its instances are
// placed again, and where the host is the founder of two nobody else could place
// them. So it is when the second host has joined or come back. One is moved, no
// more: how the load is spread is the allocator's to say.
//
// The youngest is marked, and one more placed on the other host. The marked one
// counts as wanted until the new one has settled: whatever else is to be done with
// the service goes on beside this.
func (a *appDraft) setApart(s kbroker.Service, want int) {
	if want < 2 || s.Spread == "none" || a.rec.Rollout.State != kbroker.RolloutDone || a.movedApart >= apartAtOnce {
		return
	}
	key := serviceKey{a.key.Tenant, a.key.App, s.Name}
	if ago, failed := a.w.ApartFailed[key]; failed && ago < apartAgain {
		return
	}
	live := a.live(a.key, func(p kbroker.Placement) bool { return p.Service == s.Name })
	if len(live) != want || a.blocked[live[0].Host] {
		return
	}
	for _, p := range live {
		if p.Host != live[0].Host || p.Replace != "" || !a.settled(p, s) {
			return
		}
	}
	var failed []kbroker.HostID // where one of them, or what it replaces, did not do well lately
	for _, p := range live {
		failed = append(failed, a.failedOn(p)...)
	}
	to := a.seats(s, live).take(failed...)
	if to == "" || a.w.SteadyFor[to] < steadyAfter {
		return
	}
	youngest := live[len(live)-1]
	youngest.Replace = togetherReason
	a.put(youngest)
	a.movedApart++
	a.place(s, youngest.Template, a.rec.Version, to)
}

// movesApart goes on with the move of a marked instance, or calls it off, and
// returns how many instances the service has beyond those that it wants
// meanwhile. It takes what it stops out of at.
func (a *appDraft) movesApart(s kbroker.Service, at *standing) (extra int) {
	i := slices.IndexFunc(at.current, func(p kbroker.Placement) bool { return p.Replace == togetherReason })
	if i < 0 {
		return 0
	}
	marked, next := at.current[i], len(at.current)-1 // the new one is the youngest
	others := at.settled
	if a.settled(marked, s) {
		others--
	}
	switch {
	case at.want < 2 || len(at.current) != at.want+1: // it was scaled, or the new one is gone
		a.callOff(*at)
	case others >= at.want:
		a.stop(marked, togetherReason)
		at.current = slices.Delete(at.current, i, i+1)
	case a.w.ApartFor[keyOf(marked)] >= s.Update.Deadline:
		a.callOff(*at)
		if p := at.current[next]; !a.settled(p, s) {
			a.stop(p, fmt.Sprintf("it did not get ready within %v", s.Update.Deadline))
			at.current = slices.Delete(at.current, next, next+1)
		}
	default:
		return 1
	}
	return 0
}

// callOff lets marked instances stay, in at too.
func (a *appDraft) callOff(at standing) {
	for _, some := range [][]kbroker.Placement{at.current, at.moving, at.old} {
		for i, p := range some {
			if p.Replace == togetherReason && !a.blocked[p.Host] {
				some[i].Replace = ""
				a.put(some[i])
			}
		}
	}
}
