package super

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

const (
	// whyAppEvents and whyInstanceEvents bound the events of an answer.
	whyAppEvents      = 20
	whyInstanceEvents = 200
)

// decoded reads a request of the tenant and has it answered.
func decoded[R, A any](ctx context.Context, body []byte, tenant kbroker.TenantID, handle func(context.Context, kbroker.TenantID, R) (A, error)) (any, error) {
	var r R
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	return handle(ctx, tenant, r)
}

// verdict is what this core thinks of the hosts: what is recorded, and whom it
// has not heard lately.
func (d *desk) verdict(v *state.View) Verdict {
	out := Verdict{States: map[kbroker.HostID]kbroker.HostState{}}
	for name, h := range v.Hosts {
		switch {
		case h.State == kbroker.HostJoining:
		case h.State == kbroker.HostReady && d.gone(name):
			out.States[name] = kbroker.HostSuspect
		default:
			out.States[name] = h.State
		}
	}
	return out
}

func (d *desk) plan(ctx context.Context, tenant kbroker.TenantID, r kbroker.PlanRequest) (kbroker.PlanReply, error) {
	r.Tenant = tenant
	ctx, cancel := context.WithTimeout(ctx, planWithin)
	defer cancel()
	done, err := d.oneAtATime(ctx)
	if err != nil {
		return kbroker.PlanReply{}, err
	}
	defer done()
	v, current := d.read(ctx)
	reply, err := decidePlan(ctx, v, d.verdict(v), r, time.Now().UTC())
	if err == nil && !current {
		reply.Warnings = append(reply.Warnings, "the control store cannot be written; this rests on what core "+string(d.cfg.Host)+" knew last")
	}
	return reply, err
}

// oneAtATime waits until no other plan is being made; done lets the next one
// begin. Overloaded when that takes too long.
func (d *desk) oneAtATime(ctx context.Context) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, planWait)
	defer cancel()
	select {
	case d.planning <- struct{}{}:
		return func() { <-d.planning }, nil
	case <-ctx.Done():
		return nil, kbroker.Errorf(kbroker.Overloaded, "core %s is busy with other plans", d.cfg.Host).
			WithHint("try again in a moment: a core makes one plan at a time")
	}
}

func (d *desk) events(ctx context.Context, tenant kbroker.TenantID, r kbroker.EventsRequest) (kbroker.EventsReply, error) {
	r.Tenant = tenant
	if err := checkAsked(r.App, r.Instance); err != nil {
		return kbroker.EventsReply{}, err
	}
	return d.store.Events(ctx, r)
}

// audit answers with a page of the audit trail, which is that of the whole cluster.
func (d *desk) audit(ctx context.Context, _ kbroker.TenantID, r kbroker.AuditRequest) (kbroker.AuditReply, error) {
	return d.store.Audit(ctx, r)
}

func (d *desk) why(ctx context.Context, tenant kbroker.TenantID, r kbroker.WhyRequest) (kbroker.WhyReply, error) {
	if err := checkAsked(r.App, r.Instance); err != nil {
		return kbroker.WhyReply{}, err
	}
	v, current := d.read(ctx)
	k := state.AppKey{Tenant: tenant, App: r.App}
	out := kbroker.WhyReply{Basis: d.basis(v, current)}
	if r.Instance == "" {
		var err error
		if out.App, err = whyApp(v, d.verdict(v), k); err != nil {
			return out, err
		}
		out.App.Events = d.eventsFor(ctx, &out.Basis, kbroker.EventsRequest{Tenant: tenant, App: r.App, Limit: whyAppEvents})
		return out, nil
	}
	events := d.eventsFor(ctx, &out.Basis, kbroker.EventsRequest{Tenant: tenant, App: r.App, Instance: r.Instance, Limit: whyInstanceEvents})
	out.Instance = whyInstance(v, d.verdict(v), k, r.Instance)
	if out.Instance == nil {
		if len(events) == 0 {
			return out, kbroker.Errorf(kbroker.NotFound, "app %q has no instance %q, and nothing is known of an earlier one", r.App, r.Instance).
				WithHint("`kbroker ps %s --all` lists them", r.App)
		}
		out.Instance = &kbroker.WhyInstance{State: kbroker.StateExited, Reason: "it is gone; what is left of it are its events"}
		for _, e := range events {
			if e.Host != "" {
				out.Instance.Host = e.Host
			}
		}
	}
	if out.Instance.Placement == nil {
		out.Instance.Reason = lastDecision(events, out.Instance.Reason)
	}
	out.Instance.Events = events
	return out, nil
}

// lastDecision is why an instance that is not placed any more was stopped, or
// what is said without an event of that.
func lastDecision(events []kbroker.Event, otherwise string) string {
	for _, e := range slices.Backward(events) {
		if e.Kind == kbroker.EventStopped || e.Kind == kbroker.EventMoved {
			return e.Message
		}
	}
	return otherwise
}

// basis is what an answer rests on.
func (d *desk) basis(v *state.View, current bool) kbroker.Basis {
	b := kbroker.Basis{Core: d.cfg.Host, Current: current, Revision: v.Sequence, Notes: []string{}}
	if !current {
		b.Notes = append(b.Notes, "the control store cannot be written: this is what core "+string(d.cfg.Host)+" knew last")
	}
	if ask, led := d.heard.leads(d.cfg.Times.Suspect); led {
		b.Leader = &ask.Leader
	} else {
		b.Notes = append(b.Notes, "no super leads: what runs goes on, nothing is placed or replaced until one does")
	}
	return b
}

// eventsFor are events for an answer that is worth giving without them.
func (d *desk) eventsFor(ctx context.Context, b *kbroker.Basis, r kbroker.EventsRequest) []kbroker.Event {
	reply, err := d.store.Events(ctx, r)
	if err != nil {
		b.Notes = append(b.Notes, fmt.Sprintf("the events cannot be read: %v", err))
		return []kbroker.Event{}
	}
	return reply.Events
}

// known is what was last reported of the instances that a report is about.
func (d *desk) known(r kbroker.ReportRequest) []kbroker.Status {
	out := make([]kbroker.Status, len(r.Statuses))
	for i, s := range r.Statuses {
		out[i], _ = d.store.Status(state.PlacementKey{Host: s.Host, Tenant: s.Tenant, Instance: s.Instance})
	}
	return out
}

// tellReport has the events of a report stored. One whose outcome is not known
// is sent again, and its events then are the same.
func (d *desk) tellReport(r kbroker.ReportRequest, was []kbroker.Status) {
	for i, s := range r.Statuses {
		demanded, _ := d.store.Placement(state.PlacementKey{Host: s.Host, Tenant: s.Tenant, Instance: s.Instance})
		d.journal.add("agent "+string(r.Host), statusEvents(was[i], s, demanded)...)
	}
}

// maxInstanceName bounds the name of an instance: two names and a number.
const maxInstanceName = 2*kbroker.MaxNameBytes + 24

// checkAsked refuses names that are no single token of a subject; empty ones are
// not asked for.
func checkAsked(app kbroker.AppName, instance kbroker.InstanceID) error {
	if app != "" {
		if err := kbroker.CheckName("app", string(app)); err != nil {
			return err
		}
	}
	if len(instance) > maxInstanceName || strings.ContainsAny(string(instance), ".*> \t\r\n") {
		return kbroker.Errorf(kbroker.Invalid, "%q is not the name of an instance", instance).WithHint("`kbroker ps` lists them")
	}
	return nil
}
