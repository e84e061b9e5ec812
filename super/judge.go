package super

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// lostWindow is how long a lost host counts against the share of hosts that
// may be re-placed.
const lostWindow = 10 * time.Minute

// restartSilence is how long a host that has leave to go down may be silent
// before it is judged as any other. Its applications run on meanwhile. A core
// stops within 10 s (its clients leave, then it is cut off), its next program is
// heard within a second of its start: three times that, as a machine that
// restarts is busy. One whose new program is on trial may ask for more.
const restartSilence = 30 * time.Second

// Hearing is what the leader knows of the hosts' liveness in one round.
type Hearing struct {
	// Answers are the cores' words, gathered lately.
	Answers []kbroker.HeardReply
	// InState is how long each host has had its recorded state, as far as this
	// leader knows; a state that it found counts from then.
	InState map[kbroker.HostID]time.Duration
	// LeaveFor is how long each host has had its leave to go down, likewise.
	LeaveFor map[kbroker.HostID]time.Duration
}

// Verdict is the judgement on all hosts.
type Verdict struct {
	// States has ready, suspect or lost for every member that has been seen.
	States map[kbroker.HostID]kbroker.HostState
	// Dead are hosts that a majority has not heard for as long as makes a host
	// lost, but that are more than may be given up without an operator. None
	// while Blind.
	Dead map[kbroker.HostID]bool
	// Blind: the cores that answer have no majority of the broker's votes, so
	// nothing may be planned.
	Blind bool
	// Alarms are for people: also why hosts that are silent are not declared
	// lost. Healthy hosts go on being planned then.
	Alarms []string
	// Beats are the latest heartbeats of the hosts that are heard now.
	Beats map[kbroker.HostID]kbroker.Heartbeat
	// Current has the members of the broker; true: some core sees it current.
	Current map[kbroker.HostID]bool
}

// Judge decides which hosts are ready, suspect or lost. Pure.
//
// A majority is one of the broker's votes: one per core and one for the witness,
// counted with the core that it runs beside. So of two cores the founder alone
// judges, as it alone can write. Where the count is wrong for a moment, because the
// witness is on its way out, the write that would follow from it still needs the
// broker's majority.
//
// A host is lost when no core of a majority has heard it for Times.Lost, one that
// has leave to go down for restartSilence or what it asked for: until then that one is suspect, and
// counts against nothing. A core that is deaf is none of that majority, but whom it
// has heard is alive.
// Without a majority's answers nobody's state changes. Lost hosts of the last
// ten minutes and hosts that are suspect now may together be at most
// max(1, hosts/3); beyond that no further host is lost and an alarm says so.
func Judge(v *state.View, h Hearing, t state.Times) Verdict {
	out := Verdict{
		States: map[kbroker.HostID]kbroker.HostState{}, Beats: map[kbroker.HostID]kbroker.Heartbeat{},
		Current: map[kbroker.HostID]bool{},
	}
	votes, hosts := 0, 0
	for _, host := range v.Hosts {
		if judged(host) {
			hosts++
		}
		if host.Core() {
			votes++
		}
	}
	cores, given, judges := votes, 0, 0
	answers := slices.DeleteFunc(slices.Clone(h.Answers), func(a kbroker.HeardReply) bool {
		return cores > 0 && !v.Hosts[a.Core].Core()
	})
	for _, a := range answers {
		share := 1
		if a.Witness {
			votes++
			share++
		}
		if !a.Deaf {
			judges++
			given += share
		}
	}
	out.listen(answers, t)
	if given < votes/2+1 {
		for name, host := range v.Hosts {
			if judged(host) {
				out.States[name] = host.State
			}
		}
		out.Blind = true
		out.Alarms = append(out.Alarms, fmt.Sprintf("only %d of %d cores can say who is there; hosts are not judged and nothing is planned", judges, cores))
		return out
	}
	var dead []kbroker.HostID // not heard for the bound, not lost yet
	counted := 0              // against the share
	for _, host := range sortedHosts(v) {
		if !judged(host) {
			continue
		}
		age, bound := silence(answers, host.Name), t.Lost
		restarts := host.Maintenance != nil && h.LeaveFor[host.Name] < kbroker.MaintenanceLimit
		if restarts {
			bound = max(bound, restartSilence, host.Maintenance.Silent)
		}
		_, heard := out.Beats[host.Name]
		switch {
		case host.State == kbroker.HostLost && !heard:
			out.States[host.Name] = kbroker.HostLost
			if h.InState[host.Name] < lostWindow {
				counted++
			}
		case age < t.Suspect:
			out.States[host.Name] = kbroker.HostReady
		default:
			out.States[host.Name] = kbroker.HostSuspect
			if !restarts || age >= bound {
				counted++
			}
			if age >= bound {
				dead = append(dead, host.Name)
			}
		}
	}
	if share := max(1, hosts/3); counted > share {
		if len(dead) > 0 {
			out.Dead = map[kbroker.HostID]bool{}
			var names []string
			for _, name := range dead {
				out.Dead[name] = true
				names = append(names, "kbroker remove "+string(name))
			}
			out.Alarms = append(out.Alarms, fmt.Sprintf(
				"%d of %d hosts are lost or suspect, at most %d are re-placed; bring hosts back, and take out those that are gone for good: %s",
				counted, hosts, share, strings.Join(names[:min(len(names), maxRefusals)], ", ")))
		}
		return out
	}
	for _, name := range dead {
		out.States[name] = kbroker.HostLost
	}
	return out
}

// judged reports whether a host's silence means anything: it has been seen, and
// was not removed.
func judged(h kbroker.Host) bool { return h.Member() && h.State != kbroker.HostJoining }

// listen takes the heartbeats and the members that the answers name.
func (v *Verdict) listen(answers []kbroker.HeardReply, t state.Times) {
	youngest := map[kbroker.HostID]time.Duration{}
	for _, a := range answers {
		for host, age := range a.Age {
			if host == a.Core {
				age = 0 // it answers: a clock that jumped over a suspend does not make it silent
			}
			if best, ok := youngest[host]; age < t.Suspect && (!ok || age < best) {
				youngest[host], v.Beats[host] = age, a.Beat[host]
			}
		}
		for host, current := range a.Current {
			v.Current[host] = v.Current[host] || current
		}
	}
}

// silence is how long no core that answers has heard the host. A core that has
// never heard it knows only that it was silent while it listened: one that
// began a moment ago must not call anybody lost.
func silence(answers []kbroker.HeardReply, host kbroker.HostID) time.Duration {
	best := time.Duration(math.MaxInt64)
	for _, a := range answers {
		age, ever := a.Age[host]
		switch {
		case a.Core == host:
			age = 0
		case !ever && a.Deaf:
			continue
		case !ever:
			age = a.Looking
		}
		best = min(best, age)
	}
	return best
}
