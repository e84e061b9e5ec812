package super

import (
	"context"
	"fmt"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// maintain looks at the broker, where a host is to go down, and decides.
func (t *term) maintain(ctx context.Context, v *state.View, r kbroker.MaintainRequest, now time.Time) (decision, error) {
	if r.Done {
		return decideMaintain(v, r, t.facts(v), now)
	}
	return decideMaintain(v, r, t.look(ctx, v), now)
}

// decideMaintain gives one host at a time the leave to go down, or takes it
// back. A core gets it while all others are there and caught up, the streams are
// settled and the store takes writes; a worker, which stores nothing, whenever no
// other host has it.
func decideMaintain(v *state.View, r kbroker.MaintainRequest, f facts, now time.Time) (decision, error) {
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
	besides := kbroker.HostID("")
	if mine {
		besides = h.Name
	}
	if o, left := f.onLeave(v, besides); o != "" {
		return decision{}, inMaintenance(o, left)
	}
	reply := kbroker.MaintainReply{Unchanged: mine}
	if h.Role == kbroker.RoleCore {
		cores, err := coreMayLeave(v, h, f)
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
	h.Maintenance = &kbroker.Maintenance{Holder: r.Holder, Since: now, Silent: min(max(r.Silent, 0), kbroker.MaintenanceLimit)}
	return decision{[]state.Change{state.PutHost{Host: h}}, reply}, nil
}

// coreMayLeave says why a core must not go down now, or nil, and how many cores
// there are.
func coreMayLeave(v *state.View, h kbroker.Host, f facts) (cores int, err error) {
	refuse := func(why string, args ...any) error {
		return kbroker.Errorf(kbroker.Refused, "core %s must not go down now: %s", h.Name, fmt.Sprintf(why, args...)).
			WithHint("kbroker doctor says what mends it")
	}
	if h.State == kbroker.HostJoining {
		return 0, refuse("it is joining")
	}
	if why := f.change(v, h.Name); why != "" {
		return 0, refuse("%s", why)
	}
	for _, o := range sortedHosts(v) {
		if !o.Member() || o.Role != kbroker.RoleCore {
			continue
		}
		cores++
		switch {
		case o.Name == h.Name:
		case f.verdict.States[o.Name] != kbroker.HostReady:
			return 0, refuse("core %s is %s", o.Name, f.verdict.States[o.Name])
		case !f.Current[o.Name]:
			return 0, refuse("core %s has not caught up", o.Name)
		}
	}
	switch {
	case f.Unsettled != "":
		return 0, refuse("%s", f.Unsettled)
	case !f.Writable:
		return 0, refuse("the control store does not take writes")
	}
	return cores, nil
}

// inMaintenance refuses a second change while a host may go down.
func inMaintenance(host kbroker.HostID, left time.Duration) error {
	return kbroker.Errorf(kbroker.Refused, "host %s is in maintenance", host).
		WithHint("one host at a time: try again when it is done; a maintenance that nobody ends lapses, this one in %v", left.Round(time.Second))
}
