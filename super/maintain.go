package super

import (
	"context"
	"fmt"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// lookBeforeLeave is how long the leader waits for a fresh look at the broker
// before it lets a host go down.
const lookBeforeLeave = 1500 * time.Millisecond

// maintain looks at the broker and decides.
func (t *term) maintain(ctx context.Context, v *state.View, r kbroker.MaintainRequest, now time.Time) (decision, error) {
	w := t.world(v)
	var stale error
	if t.cfg.Look != nil && !r.Done {
		looking, cancel := context.WithTimeout(ctx, lookBeforeLeave)
		stale = t.cfg.Look(looking)
		cancel()
	}
	m := t.cfg.Members()
	if stale != nil && m.Unsettled == "" {
		m.Unsettled = fmt.Sprintf("the broker does not tell within %v how its streams are", lookBeforeLeave)
	}
	return decideMaintain(v, r, m, w.Verdict, t.memory.leaveFor(t.cfg.Clock()), now)
}

// decideMaintain gives one host at a time the leave to go down, or takes it
// back. A core gets it while all others are there and caught up, the streams are
// settled and the store takes writes; a worker, which stores nothing, whenever no
// other host has it. leaveFor is how long each host has had its leave, as far as
// this leader knows.
func decideMaintain(
	v *state.View, r kbroker.MaintainRequest, m Members, verdict Verdict,
	leaveFor map[kbroker.HostID]time.Duration, now time.Time,
) (decision, error) {
	h, err := member(v, r.Host)
	if err != nil {
		return decision{}, err
	}
	if r.Holder == "" {
		return decision{}, kbroker.Errorf(kbroker.Invalid, "who asks for the maintenance of host %s does not say who it is", r.Host)
	}
	mine := h.Maintenance != nil && h.Maintenance.Holder == r.Holder
	if r.Done {
		if !mine {
			return decision{reply: kbroker.MaintainReply{Unchanged: true}}, nil
		}
		h.Maintenance = nil
		return decision{[]state.Change{state.PutHost{Host: h}}, kbroker.MaintainReply{}}, nil
	}
	for _, o := range sortedHosts(v) {
		if left := kbroker.MaintenanceLimit - leaveFor[o.Name]; o.Maintenance != nil && left > 0 && !(mine && o.Name == h.Name) {
			return decision{}, kbroker.Errorf(kbroker.Refused, "host %s is in maintenance", o.Name).
				WithHint("one host at a time: try again when it is done; a maintenance that nobody ends lapses, this one in %v", left.Round(time.Second))
		}
	}
	reply := kbroker.MaintainReply{Unchanged: mine}
	if h.Role == kbroker.RoleCore {
		cores, err := coreMayLeave(v, h, m, verdict)
		if err != nil {
			return decision{}, err
		}
		if cores < safeCores {
			reply.Warning = fmt.Sprintf("the cluster has %d of the %d cores that it takes to go on without one: deploys and other changes wait until %s is back; what runs goes on", cores, safeCores, h.Name)
		}
	}
	if mine {
		return decision{reply: reply}, nil
	}
	h.Maintenance = &kbroker.Maintenance{Holder: r.Holder, Since: now}
	return decision{[]state.Change{state.PutHost{Host: h}}, reply}, nil
}

// coreMayLeave says why a core must not go down now, or nil, and how many cores
// there are.
func coreMayLeave(v *state.View, h kbroker.Host, m Members, verdict Verdict) (cores int, err error) {
	refuse := func(why string, args ...any) error {
		return kbroker.Errorf(kbroker.Refused, "core %s must not go down now: %s", h.Name, fmt.Sprintf(why, args...)).
			WithHint("kbroker doctor says what mends it")
	}
	if !m.Known {
		return 0, refuse("the broker has no leader")
	}
	for _, o := range sortedHosts(v) {
		if !o.Member() || o.Role != kbroker.RoleCore {
			continue
		}
		cores++
		switch {
		case o.State == kbroker.HostJoining:
			return 0, refuse("core %s is joining", o.Name)
		case o.Name == h.Name:
		case verdict.States[o.Name] != kbroker.HostReady:
			return 0, refuse("core %s is %s", o.Name, verdict.States[o.Name])
		case !m.Current[o.Name]:
			return 0, refuse("core %s has not caught up", o.Name)
		}
	}
	switch {
	case m.Unsettled != "":
		return 0, refuse("%s", m.Unsettled)
	case !m.Writable:
		return 0, refuse("the control store does not take writes")
	}
	return cores, nil
}
