package super

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// sight is what a core sees of liveness when it answers a read.
type sight struct {
	age    func(kbroker.HostID) (time.Duration, kbroker.Heartbeat, bool)
	member func(kbroker.HostID) bool // of the brokers' group, as far as is known
	times  state.Times
	leader kbroker.HostID // who led a moment ago; empty: nobody
}

// maxUnplacedRows bounds the rows for instances that have no host.
const maxUnplacedRows = 100

// instanceRows are the rows of `ps`: what is wanted, what still runs and, with
// All, what has ended. gone says that a host's agent is not there.
func instanceRows(v *state.View, r kbroker.ListRequest, gone func(kbroker.HostID) bool) []kbroker.InstanceRow {
	out := []kbroker.InstanceRow{}
	shows := func(tenant kbroker.TenantID, app kbroker.AppName) bool {
		return tenant == r.Tenant && (r.App == "" || r.App == app)
	}
	for k, p := range v.Placements {
		if !shows(p.Tenant, p.App) {
			continue
		}
		row := placedRow(v, p, v.Statuses[k], gone(p.Host))
		if p.Stop && row.State == kbroker.StateExited && !r.All {
			continue
		}
		out = append(out, row)
	}
	for k, s := range v.Statuses {
		if _, placed := v.Placements[k]; r.All && !placed && shows(s.Tenant, s.App) {
			out = append(out, leftRow(v, s, gone(s.Host)))
		}
	}
	slices.SortFunc(out, func(a, b kbroker.InstanceRow) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Service, b.Service), compareInstances(*a.Instance, *b.Instance), cmp.Compare(*a.Host, *b.Host))
	})
	for _, k := range slices.SortedFunc(maps.Keys(v.Apps), compareApps) {
		if !shows(k.Tenant, k.App) {
			continue
		}
		for _, u := range v.Apps[k].Unplaced {
			for range min(u.Count, maxUnplacedRows) {
				out = append(out, kbroker.InstanceRow{
					Tenant: k.Tenant, App: k.App, Service: u.Service, State: kbroker.StatePending,
					Version: v.Apps[k].Version, Message: u.Reason,
				})
			}
		}
	}
	return out
}

// placedRow joins what is wanted with what was reported of it.
func placedRow(v *state.View, p kbroker.Placement, s kbroker.Status, gone bool) kbroker.InstanceRow {
	if s.State == "" {
		s = kbroker.Status{State: kbroker.StatePending}
	}
	s.Tenant, s.App, s.Service, s.Instance, s.Host, s.Version = p.Tenant, p.App, p.Service, p.Instance, p.Host, p.Version
	shown, away := s.State, absence(v, p.Host)
	switch {
	case shown == kbroker.StateExited && (!p.Stop || s.Epoch < p.Epoch):
		shown = kbroker.StatePending // wanted again, not reported yet
	case gone && s.PID != 0 && v.Hosts[p.Host].Member():
		shown = kbroker.StateUnmanaged
	case away != "" && shown != kbroker.StateExited:
		return unknownRow(s, away)
	case p.Stop && shown != kbroker.StateExited:
		shown = kbroker.StateDraining
	}
	row := statusRow(s, shown)
	if p.Stop && row.Message == "" {
		row.Message = p.StopReason
	}
	if shown == kbroker.StateUnmanaged {
		row.Message = "the agent of host " + string(p.Host) + " is not there; last known: " + string(s.State)
	}
	return row
}

// leftRow is the row of what was reported of an instance that is not placed. It
// goes from its placement when its end is confirmed or its host is removed: what
// was reported of it before is no news then.
func leftRow(v *state.View, s kbroker.Status, gone bool) kbroker.InstanceRow {
	away := absence(v, s.Host)
	switch {
	case s.State == kbroker.StateExited:
	case away != "":
		return unknownRow(s, away)
	case gone:
		return unknownRow(s, "the agent of host "+string(s.Host)+" is not there")
	case s.State != kbroker.StateDraining:
		return unknownRow(s, "it is not placed on host "+string(s.Host)+" any more")
	}
	return statusRow(s, s.State)
}

// absence says why a host's reports are no news, from its record; empty: they
// may be.
func absence(v *state.View, host kbroker.HostID) string {
	switch h, known := v.Hosts[host]; {
	case !known:
		return fmt.Sprintf("host %s is not a member any more", host)
	case h.State == kbroker.HostRemoved:
		return fmt.Sprintf("host %s was removed", host)
	case h.State == kbroker.HostLost:
		return fmt.Sprintf("host %s is lost", host)
	}
	return ""
}

// unknownRow is the row of an instance of which nobody knows what it does.
func unknownRow(s kbroker.Status, why string) kbroker.InstanceRow {
	last := s.State
	s.PID = 0 // of a process that may be gone
	row := statusRow(s, kbroker.StateUnknown)
	row.Message = fmt.Sprintf("%s; last known: %s", why, last)
	return row
}

func statusRow(s kbroker.Status, shown kbroker.InstanceState) kbroker.InstanceRow {
	row := kbroker.InstanceRow{
		Tenant: s.Tenant, App: s.App, Service: s.Service, Instance: &s.Instance, Host: &s.Host,
		State: shown, Restarts: s.Restarts, Version: s.Version, Exit: s.Exit, Message: s.Message,
		Failing: s.Failing, Ports: s.Ports, Unenforced: s.Unenforced,
	}
	if s.PID > 0 {
		row.PID = &s.PID
	}
	if !s.StartedAt.IsZero() {
		at := s.StartedAt.UTC()
		row.StartedAt = &at
	}
	return row
}

// hostRows are the rows of `hosts`; all: those of removed hosts too.
func hostRows(v *state.View, all bool, see sight) []kbroker.HostRow {
	out := []kbroker.HostRow{}
	for _, h := range sortedHosts(v) {
		if !h.Member() && !all {
			continue
		}
		row := kbroker.HostRow{
			Name: h.Name, Role: h.Role, State: h.State, Super: h.Name == see.leader,
			Capacity: h.Capacity, Labels: h.Labels, Client: h.Client, Drain: h.Drain, Maintenance: h.Maintenance,
		}
		row.Out = !h.Member() && !see.member(h.Name)
		if row.Labels == nil {
			row.Labels = map[string]string{}
		}
		age, beat, ever := see.age(h.Name)
		if ever {
			ago := age.Seconds()
			row.HeardAgo, row.Version = &ago, beat.Version
			if beat.PID > 0 {
				row.PID = &beat.PID
			}
		}
		switch {
		case h.State == kbroker.HostReady && age >= see.times.Suspect:
			row.State = kbroker.HostSuspect
		case h.State == kbroker.HostReady && h.Drain != nil:
			row.State = kbroker.HostDraining
		}
		if age >= see.times.Suspect {
			row.PID = nil // that process is not there
		}
		var used usage
		for _, p := range v.On(h.Name) {
			if p.Stop {
				row.Leaving++
			} else {
				row.Instances++
				used = used.plus(usageOf(p.Spec.Resources))
			}
		}
		row.Reserved = kbroker.Resources{CPU: float64(used.milliCPU) / 1000, MemoryBytes: used.memoryBytes}
		out = append(out, row)
	}
	return out
}

// appRows are the rows of `apps`.
func appRows(v *state.View, r kbroker.ListRequest) []kbroker.AppRow {
	out := []kbroker.AppRow{}
	ready := readyByTemplate(v)
	for _, k := range slices.SortedFunc(maps.Keys(v.Apps), compareApps) {
		if k.Tenant != r.Tenant || r.App != "" && r.App != k.App {
			continue
		}
		rec := v.Apps[k]
		row := kbroker.AppRow{
			Tenant: k.Tenant, App: k.App, Version: rec.Version, Stopped: rec.Stopped, Services: []string{},
			Rollout: rec.Rollout.State, Reason: rec.Rollout.Reason, Unplaced: rec.Unplaced,
		}
		app := v.Versions[k][rec.Version].App
		for _, s := range app.Services {
			row.Services = append(row.Services, string(s.Name))
			row.Ready += ready[templateKey{k, s.Name, kbroker.Template(s)}]
			if !rec.Stopped {
				row.Wanted += wanted(s, v.Demands[k])
			}
		}
		out = append(out, row)
	}
	return out
}

// templateKey is one way in which a service is run.
type templateKey struct {
	app      state.AppKey
	service  kbroker.ServiceName
	template string
}

// readyByTemplate counts the instances that answer.
func readyByTemplate(v *state.View) map[templateKey]int {
	out := map[templateKey]int{}
	for k, p := range v.Placements {
		if s := v.Statuses[k]; !p.Stop && s.State == kbroker.StateReady && s.Epoch == p.Epoch {
			out[templateKey{state.AppKey{Tenant: p.Tenant, App: p.App}, p.Service, p.Template}]++
		}
	}
	return out
}
