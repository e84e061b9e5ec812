package super

import (
	"fmt"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// lostWindow is how long a lost host counts against the share of hosts that
// may be re-placed.
const lostWindow = 10 * time.Minute

// Hearing is what the leader knows of the hosts' liveness in one round.
type Hearing struct {
	// Answers are the cores' words, gathered lately.
	Answers []kbroker.HeardReply
	// InState is how long each host has had its recorded state, as far as this
	// leader knows; a state that it found counts from then.
	InState map[kbroker.HostID]time.Duration
}

// Verdict is the judgement on all hosts.
type Verdict struct {
	// States has ready, suspect or lost for every host that is not joining.
	States map[kbroker.HostID]kbroker.HostState
	// Blind: no majority of the cores answers, so nothing may be planned.
	Blind bool
	// Frozen says why no further host is declared lost; empty: re-placement is
	// on. Healthy hosts go on being planned.
	Frozen string
	// Alarms are for people.
	Alarms []string
	// Beats are the latest heartbeats.
	Beats map[kbroker.HostID]kbroker.Heartbeat
	// Current are the broker members that some core sees current.
	Current map[kbroker.HostID]bool
}

// Judge decides which hosts are ready, suspect or lost. Pure.
//
// A host is lost when no core of a majority has heard it for Times.Lost.
// Without a majority's answers nobody's state changes. Lost hosts of the last
// ten minutes and hosts that are suspect now may together be at most
// max(1, hosts/3); beyond that no further host is lost and an alarm says so.
func Judge(v *state.View, h Hearing, t state.Times) Verdict {
	out := Verdict{
		States: map[kbroker.HostID]kbroker.HostState{}, Beats: map[kbroker.HostID]kbroker.Heartbeat{},
		Current: map[kbroker.HostID]bool{},
	}
	youngest := map[kbroker.HostID]time.Duration{}
	for _, a := range h.Answers {
		for host, age := range a.Age {
			if best, ok := youngest[host]; !ok || age < best {
				youngest[host], out.Beats[host] = age, a.Beat[host]
			}
		}
		for host, current := range a.Current {
			out.Current[host] = out.Current[host] || current
		}
	}
	cores, hosts := 0, 0
	for _, host := range v.Hosts {
		if host.State == kbroker.HostJoining {
			continue
		}
		hosts++
		if host.Role == kbroker.RoleCore {
			cores++
		}
	}
	if len(h.Answers) < cores/2+1 {
		for name, host := range v.Hosts {
			if host.State != kbroker.HostJoining {
				out.States[name] = host.State
			}
		}
		out.Blind, out.Frozen = true, fmt.Sprintf("only %d of %d cores answer", len(h.Answers), cores)
		out.Alarms = append(out.Alarms, out.Frozen+"; hosts are not judged and nothing is planned")
		return out
	}
	var dead []kbroker.HostID // not heard for the bound, not lost yet
	counted := 0              // against the share
	for _, host := range sortedHosts(v) {
		if host.State == kbroker.HostJoining {
			continue
		}
		age, ever := youngest[host.Name]
		if !ever {
			age = shortestLooking(h.Answers)
		}
		switch {
		case host.State == kbroker.HostLost && !(ever && age < t.Suspect):
			out.States[host.Name] = kbroker.HostLost
			if h.InState[host.Name] < lostWindow {
				counted++
			}
		case age < t.Suspect:
			out.States[host.Name] = kbroker.HostReady
		default:
			out.States[host.Name] = kbroker.HostSuspect
			counted++
			if age >= t.Lost {
				dead = append(dead, host.Name)
			}
		}
	}
	if share := max(1, hosts/3); counted > share {
		if len(dead) > 0 {
			out.Frozen = fmt.Sprintf("%d of %d hosts are lost or suspect, at most %d are re-placed", counted, hosts, share)
			out.Alarms = append(out.Alarms, out.Frozen+"; bring hosts back")
		}
		return out
	}
	for _, name := range dead {
		out.States[name] = kbroker.HostLost
	}
	return out
}

// shortestLooking bounds the age of a host that no core has heard: each knows
// only that it was silent while it listened, and a leader that began a moment
// ago must not call everybody lost.
func shortestLooking(answers []kbroker.HeardReply) time.Duration {
	best := answers[0].Looking
	for _, a := range answers[1:] {
		best = min(best, a.Looking)
	}
	return best
}
