package super

import (
	"context"
	"fmt"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// lookWithin is how long a status waits for a fresh look at the broker.
const lookWithin = 200 * time.Millisecond

func (d *desk) status(ctx context.Context, v *state.View) kbroker.StatusReply {
	m := d.cfg.Members()
	if d.cfg.Look != nil { // also while nothing is known yet, as of a core that has just started
		looking, cancel := context.WithTimeout(ctx, lookWithin)
		if err := d.cfg.Look(looking); err == nil {
			m = d.cfg.Members()
		}
		cancel()
	}
	ask, led := d.heard.leads(d.cfg.Times.Suspect)
	out := kbroker.StatusReply{
		ClusterID: d.cfg.ClusterID, Core: d.cfg.Host, Replicas: m.Replicas, Writable: m.Writable,
		Apps: len(v.Apps), Alarms: []string{},
	}
	for _, row := range hostRows(v, false, d.sight()) {
		up := row.State == kbroker.HostReady
		out.Hosts++
		if up {
			out.HostsUp++
		}
		if row.Role == kbroker.RoleCore {
			out.Cores++
			if up {
				out.CoresUp++
			}
		}
		if row.State == kbroker.HostLost || row.State == kbroker.HostSuspect {
			out.Alarms = append(out.Alarms, fmt.Sprintf("host %s is %s", row.Name, row.State))
		}
	}
	for k := range v.Apps {
		for _, row := range appRows(v, kbroker.ListRequest{Tenant: k.Tenant, App: k.App}) {
			out.Instances += row.Wanted
			out.Ready += row.Ready
			if row.Rollout == kbroker.RolloutFailed {
				out.Alarms = append(out.Alarms, fmt.Sprintf("app %s: version %d failed: %s", row.App, row.Version, row.Reason))
			}
		}
	}
	out.Alarms = append(out.Alarms, failingAlarms(v)...)
	if led {
		out.Leader = &ask.Leader
		out.Alarms = append(out.Alarms, ask.Alarms...)
	} else {
		out.Alarms = append(out.Alarms, "no super leads; applications run on, changes wait")
	}
	if !m.Writable {
		out.Alarms = append(out.Alarms, "the control store cannot be written; applications run on, changes wait")
	}
	return out
}
