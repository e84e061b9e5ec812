package super

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// lookBeforeChange is how long the leader waits for a fresh look at the broker before
// it lets the cores change.
const lookBeforeChange = 1500 * time.Millisecond

// facts are what the leader knows of the hosts besides their records.
type facts struct {
	Members
	verdict Verdict
	// leaveFor is how long each host has had its leave to go down, as far as this
	// leader knows: a new one counts anew.
	leaveFor map[kbroker.HostID]time.Duration
}

// facts are what is known now; the broker may be another one meanwhile.
func (t *term) facts(v *state.View) facts {
	w := t.world(v)
	return facts{t.cfg.Members(), w.Verdict, t.memory.leaveFor(t.cfg.Clock())}
}

// look returns the facts after a look at the broker that began now. Where it
// did not end in time, they say so.
func (t *term) look(ctx context.Context, v *state.View) facts {
	var err error
	if t.cfg.Look != nil {
		looking, cancel := context.WithTimeout(ctx, lookBeforeChange)
		err = t.cfg.Look(looking)
		cancel()
	}
	f := t.facts(v)
	if err != nil {
		f.Stale = fmt.Sprintf("the broker does not tell within %v how it is", lookBeforeChange)
	}
	return f
}

// The cores of the cluster change one at a time: one joins, or one is removed,
// or one has leave to go down. Each of these begins with a record, and has ended
// when the record says so and the broker has followed. A removal has not as long
// as the broker still counts on the core: its own process has ended by then.

// joining is a core other than except that was admitted and is not a member of
// the broker yet, or is one that has no record.
func (f facts) joining(v *state.View, except kbroker.HostID) kbroker.HostID {
	for _, h := range sortedHosts(v) {
		if h.Name != except && h.Role == kbroker.RoleCore && h.State == kbroker.HostJoining {
			return h.Name
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.Current)) {
		if _, known := v.Hosts[name]; !known && name != except {
			return name
		}
	}
	return ""
}

// expelling is a core other than except that was removed while the broker still
// has it.
func (f facts) expelling(v *state.View, except kbroker.HostID) kbroker.HostID {
	for _, name := range slices.Sorted(maps.Keys(f.Current)) {
		if v.Hosts[name].State == kbroker.HostRemoved && name != except {
			return name
		}
	}
	return ""
}

// onLeave is a host other than except that has leave to go down, and for how
// much longer.
func (f facts) onLeave(v *state.View, except kbroker.HostID) (host kbroker.HostID, left time.Duration) {
	for _, h := range sortedHosts(v) {
		if left := kbroker.MaintenanceLimit - f.leaveFor[h.Name]; h.Maintenance != nil && left > 0 && h.Name != except {
			return h.Name, left
		}
	}
	return "", 0
}

// change is the change of cores that keeps another one, of host except, from
// beginning; empty: there is none, as far as anybody can tell.
func (f facts) change(v *state.View, except kbroker.HostID) string {
	why := f.arrival(v, except)
	if gone := f.expelling(v, except); why == "" && gone != "" {
		why = fmt.Sprintf("core %s is being removed", gone)
	}
	return why
}

// arrival is change without removals: those of cores that are gone help each
// other on.
func (f facts) arrival(v *state.View, except kbroker.HostID) string {
	joining := f.joining(v, except)
	leaving, left := f.onLeave(v, except)
	switch {
	case f.Stale != "":
		return f.Stale
	case !f.Known:
		return "the broker has no leader"
	case joining != "":
		return fmt.Sprintf("core %s is joining", joining)
	case leaving != "":
		return fmt.Sprintf("host %s is in maintenance for another %v at most", leaving, left.Round(time.Second))
	}
	return ""
}

// gone reports whether a host that was there is not any more, by the word of a
// majority now: it is lost, or as silent as one that is. One that is heard again
// is there.
func (f facts) gone(h kbroker.Host) bool {
	return !f.verdict.Blind && h.State != kbroker.HostJoining &&
		(f.verdict.States[h.Name] == kbroker.HostLost || f.verdict.Dead[h.Name])
}
