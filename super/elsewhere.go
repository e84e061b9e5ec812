package super

import (
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// triedAgain is how long a host is left alone on which an instance, or one that it
	// replaces, was in a crash loop.
	triedAgain = 10 * time.Minute
	// maxTried bounds the hosts on which an instance is tried meanwhile: what is broken
	// on so many is broken itself.
	maxTried = 5
	// failedReason is why such an instance is stopped.
	failedReason = "it is in a crash loop on this host"
)

// tryElsewhere has instances that are in a crash loop tried on another host: they are
// stopped while they wait for their next start, when nothing is lost with them, and
// placed on one that takes the service and on which they have not failed lately. If
// there is none they stay, and their agents go on starting them.
//
// The mark is in the placement (Failed), so that a new leader does not begin again;
// how old it is only a leader knows that has watched it, and another one waits anew.
// No more are tried at a time than are moved apart (apartAtOnce), both together. What
// is rolling is left alone: a version that does not get ready is to fail.
//
// live are of the service s, as it is in that version; what it replaces it replaces
// there too.
func (a *appDraft) tryElsewhere(s kbroker.Service, version, want int, live []kbroker.Placement) {
	if len(live) > want {
		return // those that do not answer are the first to leave
	}
	var seats *seats
	for i, p := range live {
		if a.movedApart+a.trying >= apartAtOnce {
			return
		}
		if !a.loops(p) || a.blocked[p.Host] || p.Replace != "" || p.Template != kbroker.Template(s) {
			continue
		}
		failed := a.failedOn(p)
		if len(failed) >= maxTried {
			continue
		}
		if seats == nil {
			seats = a.seats(s, a.live(a.key, func(q kbroker.Placement) bool { return q.Service == s.Name }))
		}
		to := seats.take(failed...)
		if to == "" {
			continue
		}
		a.stop(p, failedReason)
		p.Backoff, p.Failed = a.w.View.Statuses[keyOf(p)].Crashes, failed
		a.lost[s.Name] = append([]kbroker.Placement{p}, a.lost[s.Name]...) // the next that is placed replaces it
		live[i] = a.place(s, p.Template, version, to)
		a.trying++
	}
}

// loops reports whether the instance's agent, who is heard, said that it is in a crash
// loop and waits for its next start.
func (a *appDraft) loops(p kbroker.Placement) bool {
	return a.failing(p) && a.w.View.Statuses[keyOf(p)].Failing
}

// failedOn are the hosts on which an instance, or what it replaces, has failed lately,
// and last its own.
func (a *appDraft) failedOn(p kbroker.Placement) []kbroker.HostID {
	if a.w.TriedFor[keyOf(p)] >= triedAgain {
		return []kbroker.HostID{p.Host}
	}
	failed := slices.DeleteFunc(slices.Clone(p.Failed), func(h kbroker.HostID) bool { return h == p.Host })
	return append(failed, p.Host)
}

// undecided reports whether an instance is being tried on its host and neither does
// well nor fails there yet. It is for no longer than its service gives a rollout.
func (d *draft) undecided(p kbroker.Placement) bool {
	if len(p.Failed) == 0 || p.Stop || d.blocked[p.Host] {
		return false
	}
	k := keyOf(p)
	s := d.w.View.Statuses[k]
	return d.w.TriedFor[k] < p.Spec.Update.Deadline && !(s.Failing && s.Epoch == p.Epoch) &&
		d.w.ReadyFor[k] < max(p.Spec.Update.MinHealthy, 1)
}
