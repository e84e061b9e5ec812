package super

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// maxTroubleRows bounds the instances of a service whose trouble is told.
const maxTroubleRows = 50

// whyApp says why an app is as it is: what is wanted and who asked for it, and
// what each host says to one more instance of each service. Pure; without the
// events.
func whyApp(v *state.View, verdict Verdict, k state.AppKey) (*kbroker.WhyApp, error) {
	rec, version, err := lookup(v, k.Tenant, k.App)
	if err != nil {
		return nil, err
	}
	out := &kbroker.WhyApp{
		Row:     appRows(v, kbroker.ListRequest{Tenant: k.Tenant, App: k.App})[0],
		Created: version.Created, Cause: version.Cause, Rollout: rec.Rollout,
		Services: []kbroker.WhyService{}, Events: []kbroker.Event{},
	}
	if out.Policy = cmp.Or(version.App.Policy, kbroker.PolicySpread); version.App.Own != nil {
		out.Policy, out.Instead = kbroker.PolicyOwn, out.Policy
	}
	if demand, ok := v.Demands[k]; ok {
		out.Demand = &demand
	}
	d, ready := newDraft(World{View: v, Verdict: verdict}), 0
	for _, s := range append(slices.Clone(version.App.Services), AllocatorSpec(version.App)) {
		row := kbroker.WhyService{Service: s.Name, Count: s.Count, Troubles: []string{}, Hosts: d.hostFits(k, s)}
		if !rec.Stopped {
			row.Wanted = wanted(s, v.Demands[k])
		}
		for _, p := range d.live(k, func(p kbroker.Placement) bool { return p.Service == s.Name }) {
			row.Placed++
			status := v.Statuses[keyOf(p)]
			if d.ready(p) {
				row.Ready++
				continue
			}
			if len(row.Troubles) == maxTroubleRows {
				continue
			}
			seen := placedRow(v, p, status, verdict.States[p.Host] != kbroker.HostReady)
			row.Troubles = append(row.Troubles, fmt.Sprintf("%s on %s is %s: %s", p.Instance, p.Host, seen.State,
				cmp.Or(seen.Message, silentReason(p, status, verdict))))
		}
		out.Services = append(out.Services, row)
		if s.Name != kbroker.AllocatorService {
			ready += row.Ready
		}
	}
	out.Row.Ready = ready // of hosts that are heard
	return out, nil
}

// whyInstance says what is demanded of an instance and what was reported of it;
// nil when the store knows nothing of it any more. Pure; without the events.
func whyInstance(v *state.View, verdict Verdict, k state.AppKey, instance kbroker.InstanceID) *kbroker.WhyInstance {
	out := &kbroker.WhyInstance{Events: []kbroker.Event{}}
	p, placed := placementOf(v, k.Tenant, instance)
	if placed && p.App == k.App {
		out.Placement = &p
		out.Host = p.Host
		if s, ok := v.Statuses[keyOf(p)]; ok {
			out.Status = &s
		}
	} else {
		for key, s := range v.Statuses {
			if key.Tenant == k.Tenant && key.Instance == instance && s.App == k.App {
				out.Status, out.Host = &s, s.Host
			}
		}
	}
	switch {
	case out.Placement != nil:
		status := v.Statuses[keyOf(p)]
		row := placedRow(v, p, status, verdict.States[p.Host] != kbroker.HostReady)
		out.State, out.Reason = row.State, cmp.Or(row.Message, silentReason(p, status, verdict))
		if p.Stop {
			out.Reason = stoppedReason(p, status, verdict)
		}
	case out.Status != nil:
		row := leftRow(v, *out.Status, verdict.States[out.Host] != kbroker.HostReady)
		out.State, out.Reason = row.State, cmp.Or(row.Message, "it is not placed any more")
	default:
		return nil
	}
	return out
}

// stoppedReason says why an instance leaves or has left, and what that waits
// for.
func stoppedReason(p kbroker.Placement, s kbroker.Status, verdict Verdict) string {
	switch {
	case s.State == kbroker.StateExited && s.Epoch >= p.Epoch:
		return p.StopReason
	case verdict.States[p.Host] != kbroker.HostReady:
		return fmt.Sprintf("%s; host %s will confirm its exit when it is back", p.StopReason, p.Host)
	}
	return p.StopReason + "; its agent has not confirmed its exit yet"
}

// silentReason is why an instance of which its agent said nothing is in its
// state.
func silentReason(p kbroker.Placement, s kbroker.Status, verdict Verdict) string {
	switch {
	case verdict.States[p.Host] != kbroker.HostReady:
		return fmt.Sprintf("host %s is %s", p.Host, cmp.Or(verdict.States[p.Host], "not known"))
	case s.State == "" || s.Epoch < p.Epoch:
		return "its agent has not reported it"
	case p.Replace != "":
		return p.Replace + ": it leaves when a new one has settled"
	case s.State == kbroker.StateReady:
		return "it answers"
	case s.State == kbroker.StateRunning:
		return "its process runs and has not said that it is ready"
	case s.State == kbroker.StateStarting:
		return "its program is fetched or started"
	}
	return "its agent gave no reason"
}
