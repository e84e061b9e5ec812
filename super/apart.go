package super

import (
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// provenAfter is how long a host must have been ready before what runs well
	// elsewhere is moved to it: one that comes and goes moves nothing.
	provenAfter = 30 * time.Second
	// apartAtOnce bounds the instances of all apps that are moved apart at a time:
	// a host that joins is not flooded.
	apartAtOnce = 4
	// togetherReason is why such an instance is replaced.
	togetherReason = "all instances of the service were on one host"
)

// setApart has one instance of a service replaced on another host if all of them
// are on one: with that host the service would be gone, until its instances are
// placed again, and where the host is the founder of two nobody else could place
// them. So it is when the second host has joined or come back. One is moved, no
// more: how the load is spread is the allocator's to say.
func (a *appDraft) setApart(s kbroker.Service, at standing) {
	if at.want < 2 || len(at.current) != at.want || at.settled != at.want ||
		s.Spread == "none" || a.rec.Rollout.State != kbroker.RolloutDone || a.movedApart >= apartAtOnce {
		return
	}
	for _, p := range at.current {
		if p.Host != at.current[0].Host {
			return
		}
	}
	to := a.seats(s, at.current).take()
	if to == "" || to == at.current[0].Host || a.w.InState[to] < provenAfter {
		return
	}
	youngest := at.current[len(at.current)-1]
	youngest.Replace = togetherReason
	a.put(youngest)
	a.movedApart++
	a.reserved[to] = a.reserved[to].plus(usageOf(s.Resources))
}

// takeBackApart lets an instance stay that is to be replaced on another host only
// because all were on one, while its replacement is not placed and no other host
// can take it any more.
func (a *appDraft) takeBackApart(s kbroker.Service) {
	live := a.live(a.key, func(p kbroker.Placement) bool { return p.Service == s.Name })
	for _, p := range live {
		if p.Replace != togetherReason || slices.ContainsFunc(live, func(o kbroker.Placement) bool { return o.Host != p.Host }) {
			continue
		}
		if to := a.seats(s, live).take(); to == "" || to == p.Host {
			p.Replace = ""
			a.put(p)
			a.movedApart--
		}
	}
}
