package super

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// insideTimeout bounds the question to an agent, who may have to start something.
const insideTimeout = 10 * time.Second

// inside passes on what somebody asks for inside of an instance, to the agent of its host:
// only cores may ask that. The servers let only those roles ask here that may. It is in
// the audit trail before the agent is asked, and asked once.
func (d *desk) inside(ctx context.Context, m *nats.Msg, verb string, tenant kbroker.TenantID) (any, error) {
	instance, what, err := askedInside(m, verb)
	if err != nil {
		return nil, err
	}
	v, _ := d.read(ctx)
	p, ok := placementOf(v, tenant, instance)
	if !ok {
		return nil, kbroker.Errorf(kbroker.NotFound, "there is no instance %q", instance).WithHint("`kbroker ps` lists them")
	}
	if h := v.Hosts[p.Host]; d.gone(p.Host) {
		return nil, kbroker.Errorf(kbroker.Unavailable, "host %s of instance %s is not heard (it is on record as %s)", p.Host, instance, h.State)
	}
	if err := d.auditor.record(ctx, d.store, kbroker.AuditRecord{
		Actor: callerOf(m), Action: verb, Object: "instance " + string(instance), Message: what + " on host " + string(p.Host),
	}); err != nil {
		return nil, kbroker.Errorf(kbroker.Unavailable, "the audit trail takes no record, so nothing is done inside of instance %s: %v", instance, err)
	}
	ctx, cancel := context.WithTimeout(ctx, insideTimeout)
	defer cancel()
	reply, err := d.cfg.Conn.RequestWithContext(ctx, subjects.Host(p.Host, verb, tenant), m.Data)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, kbroker.Errorf(kbroker.Unavailable, "the agent of host %s is not there", p.Host)
	case err != nil:
		e := kbroker.Errorf(kbroker.Unavailable, "the agent of host %s does not answer: %v", p.Host, err)
		e.Executed = kbroker.ExecutedUnknown
		return nil, e
	}
	reply.Reply = ""
	return &nats.Msg{Data: reply.Data, Header: reply.Header}, nil
}

// askedInside checks a request, and says in words what it is for. Of a command only its
// name is told: arguments may be secrets.
func askedInside(m *nats.Msg, verb string) (kbroker.InstanceID, string, error) {
	unreadable := func(err error) error { return kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err) }
	if verb == subjects.VerbSignal {
		var r kbroker.SignalRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return "", "", unreadable(err)
		}
		to := "its process"
		if r.All {
			to = "all its processes"
		}
		return r.Instance, fmt.Sprintf("sends %s to %s", r.Signal, to), errors.Join(r.Check(), namedInstance(r.Instance))
	}
	var r kbroker.ExecRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return "", "", unreadable(err)
	}
	if err := errors.Join(r.Check(), namedInstance(r.Instance)); err != nil {
		return "", "", err
	}
	// What is written goes where who asks may listen, and nowhere else.
	asks, known := subjects.InboxOwner(m.Reply)
	if hears, ok := subjects.InboxOwner(r.Answers); !known || !ok || hears != asks {
		return "", "", kbroker.Errorf(kbroker.Invalid, "the output is wanted on %q, which is no inbox of who asks", r.Answers)
	}
	return r.Instance, "runs " + r.Command[0], nil
}

func namedInstance(i kbroker.InstanceID) error {
	if i == "" {
		return kbroker.Errorf(kbroker.Invalid, "no instance is named")
	}
	return checkAsked("", i)
}

// record writes what is about to be done, and is no change of the control store. An error:
// it must not be done.
func (a *auditor) record(ctx context.Context, store *state.Store, r kbroker.AuditRecord) error {
	ctx, cancel := context.WithTimeout(ctx, auditAttempt)
	defer cancel()
	r.Actor = a.whose.fill(ctx, r.Actor)
	r.Outcome, r.Time, r.By = kbroker.AuditDone, time.Now().UTC(), a.by("core")
	r.ID = a.nextID()
	return store.AppendAudit(ctx, r)
}

// nextID names a record.
func (a *auditor) nextID() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.number++
	return fmt.Sprintf("%s %s %d", a.host, a.process, a.number)
}
