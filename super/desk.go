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

const (
	// maxDesk bounds the requests of each room that one core works on at once; further ones
	// are Overloaded and go to another core.
	maxDesk = 128
	// agentTimeout bounds the work on a view or a report.
	agentTimeout = 5 * time.Second
	// transferTimeout bounds the work on one piece of an artifact: the first
	// unpacks it, the last stores it.
	transferTimeout = time.Minute
	// readBarrier is how long a read for people waits for its barrier; then it
	// answers with what this core knows, before the client, who gives a core one
	// second, has stopped to listen.
	readBarrier = 600 * time.Millisecond
	// planWithin bounds a plan, and planWait how much of it is spent on waiting for
	// another one: a plan looks far ahead, which takes a processor.
	planWithin = 2800 * time.Millisecond
	planWait   = 1500 * time.Millisecond
)

// desk is what every core does for agents and clients.
type desk struct {
	*Super
	store   *state.Store
	uploads *uploads
	serving *serving
	keepers *keepers
	// room is for agents and allocators, owners for what the owners of objects write, their
	// leases too, and readers for what they read, which after a loss of hosts is much; topics
	// for the events of apps, clients for all else: transfers are slow, and so may be the store.
	room, owners, readers, topics, clients chan struct{}
	// planning is taken by the one plan that this core makes at a time.
	planning chan struct{}
}

func newDesk(s *Super, store *state.Store) *desk {
	return &desk{
		Super: s, store: store, room: make(chan struct{}, maxDesk), owners: make(chan struct{}, maxDesk), readers: make(chan struct{}, maxDesk),
		topics: make(chan struct{}, maxDesk), clients: make(chan struct{}, maxDesk),
		planning: make(chan struct{}, 1),
		uploads:  newUploads(s.cfg.Dir, store, s.log), serving: newServing(s.cfg.Dir, store), keepers: newKeepers(s.cfg.Conn, s.cfg.Host),
	}
}

// run answers until ctx ends.
func (d *desk) run(ctx context.Context) error {
	if err := errors.Join(d.uploads.clear(), d.serving.clear()); err != nil {
		return err
	}
	var work gate
	defer work.close()
	answer := func(room chan struct{}, timeout time.Duration, handle func(ctx context.Context, m *nats.Msg) (any, error)) nats.MsgHandler {
		return func(m *nats.Msg) {
			select {
			case room <- struct{}{}:
			default:
				respondError(d.log, m, kbroker.Errorf(kbroker.Overloaded, "core %s works on %d requests", d.cfg.Host, maxDesk))
				return
			}
			work.run(func() {
				defer func() { <-room }()
				ctx, cancel := context.WithTimeout(ctx, timeout)
				defer cancel()
				reply, err := handle(ctx, m)
				if err != nil {
					d.auditRefused(m, err)
					respondError(d.log, m, err)
				} else if raw, ok := reply.(*nats.Msg); ok {
					respondMsg(d.log, m, raw)
				} else {
					respond(d.log, m, reply)
				}
			})
		}
	}
	for _, s := range []struct {
		subject, queue string
		room           chan struct{}
		timeout        time.Duration
		handle         func(ctx context.Context, m *nats.Msg) (any, error)
	}{
		{subjects.AllViews, subjects.QueueCore, d.room, agentTimeout, d.view},
		{subjects.AllReports, subjects.QueueCore, d.room, agentTimeout, d.report},
		{subjects.AllSigns, subjects.QueueCore, d.room, agentTimeout, d.sign},
		{subjects.AllLeases, subjects.QueueCore, d.room, leaseTimeout, d.lease},
		{subjects.AllOwnOf(subjects.VerbOwnWrite), subjects.QueueCore, d.owners, ownTimeout, d.ownership(d.ownWrite)},
		{subjects.AllOwnOf(subjects.VerbOwnRead), subjects.QueueCore, d.readers, ownTimeout, d.ownership(d.ownRead)},
		{subjects.AllTopicAsks, subjects.QueueCore, d.topics, ownTimeout, d.topic},
		{subjects.AllEndpoints, subjects.QueueCore, d.clients, agentTimeout, d.endpoints},
		{subjects.CoreAll(), subjects.QueueCore, d.clients, transferTimeout, d.api},
		{subjects.Upload(d.cfg.Host, "*", "*"), "", d.clients, transferTimeout, d.uploads.message},
	} {
		sub, err := d.cfg.Conn.QueueSubscribe(s.subject, s.queue, answer(s.room, s.timeout, s.handle))
		if err != nil {
			return fmt.Errorf("subscribe %s: %w", s.subject, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	kept, err := d.cfg.Conn.Subscribe(subjects.AllKept(d.cfg.Host), d.keepers.heard)
	if err != nil {
		return fmt.Errorf("subscribe to what owners of objects say: %w", err)
	}
	defer func() { _ = kept.Unsubscribe() }()
	d.uploads.expire(ctx)
	return nil
}

func (d *desk) view(ctx context.Context, m *nats.Msg) (any, error) {
	host, ok := subjects.HostOf(m.Subject)
	if !ok {
		return nil, kbroker.Errorf(kbroker.Invalid, "no host in subject %q", m.Subject)
	}
	var r kbroker.ViewRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	if d.removed(host, r.Generation) {
		return nil, removedError(host)
	}
	return d.store.HostView(ctx, host)
}

func (d *desk) report(ctx context.Context, m *nats.Msg) (any, error) {
	var r kbroker.ReportRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable report: %v", err)
	}
	if host, ok := subjects.HostOf(m.Subject); !ok || host != r.Host {
		return nil, kbroker.Errorf(kbroker.Refused, "host %s reports on subject %q", r.Host, m.Subject)
	}
	if d.removed(r.Host, r.Generation) {
		return nil, removedError(r.Host)
	}
	// It may say one that it was never given, which would silence the name for good.
	r.Generation = min(r.Generation, d.store.Host(r.Host).Generation)
	d.identify(&r)
	was := d.known(r)
	var ended []kbroker.Revocation
	if len(r.Ended) > 0 {
		var starts []kbroker.InstanceFile
		ended, starts = d.ended(r, time.Now().Add(longestLife(d.store.Peek().Hosts, d.cfg.CredentialLife)))
		d.tellReaped(starts)
	}
	reply, err := d.store.Report(ctx, r, ended...)
	if err == nil && reply.Accepted || errors.Is(err, kbroker.Unavailable) {
		d.tellReport(r, was)
	}
	return reply, err
}

// api answers the reads of clients, instances and allocators.
func (d *desk) api(ctx context.Context, m *nats.Msg) (any, error) {
	verb, tenant, ok := subjects.ParseAPI(m.Subject)
	if !ok {
		return nil, kbroker.Errorf(kbroker.Invalid, "subject %q is not one of a core's", m.Subject)
	}
	if err := knownTenant(tenant); err != nil {
		return nil, err
	}
	switch verb {
	case subjects.VerbArtifactBegin:
		return d.uploads.begin(ctx, tenant, d.cfg.Host, m.Data)
	case subjects.VerbArtifactGet:
		return d.serving.get(ctx, tenant, m.Data)
	case subjects.VerbPlan:
		return decoded(ctx, m.Data, tenant, d.plan)
	case subjects.VerbEvents:
		return decoded(ctx, m.Data, tenant, d.events)
	case subjects.VerbDevelop:
		asks, ok := subjects.InboxOwner(m.Reply)
		if !ok {
			return nil, kbroker.Errorf(kbroker.Invalid, "nobody has the key of %q, where the answer is to go", m.Reply)
		}
		reply, err := decoded(ctx, m.Data, tenant, func(_ context.Context, tenant kbroker.TenantID, r kbroker.DevelopRequest) (any, error) {
			return d.develop(tenant, r, asks)
		})
		if err == nil {
			d.auditor.tell(kbroker.AuditRecord{
				Actor: callerOf(m), Action: verb, Object: objectOf(m), Message: "a credential was signed for a program beside the cluster",
			})
		}
		return reply, err
	case subjects.VerbExec, subjects.VerbSignal:
		return d.inside(ctx, m, verb, tenant)
	case subjects.VerbObjects:
		return decoded(ctx, m.Data, tenant, d.objects)
	case subjects.VerbAllocator:
		return decoded(ctx, m.Data, tenant, d.allocator)
	case subjects.VerbObjectOwners:
		return decoded(ctx, m.Data, tenant, d.objectOwners)
	case subjects.VerbObject, subjects.VerbObjectState:
		return decoded(ctx, m.Data, tenant, d.object(verb == subjects.VerbObjectState))
	case subjects.VerbObjectAct:
		return d.objectAct(ctx, m, tenant)
	case subjects.VerbWhy:
		return decoded(ctx, m.Data, tenant, d.why)
	case subjects.VerbAudit:
		return decoded(ctx, m.Data, tenant, d.audit)
	}
	var r kbroker.ListRequest
	if len(m.Data) > 0 {
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
	}
	r.Tenant = tenant
	if verb == subjects.VerbFigures {
		return d.look(r), nil
	}
	v, _ := d.read(ctx)
	switch verb {
	case subjects.VerbApps:
		return appRows(v, r), nil
	case subjects.VerbInstances:
		return d.measuredInstances(v, r), nil
	case subjects.VerbHosts:
		return d.measuredHosts(v, r.All), nil
	case subjects.VerbStatus:
		return d.status(ctx, v), nil
	case subjects.VerbTokens:
		return tokenRows(v, time.Now().UTC()), nil
	case subjects.VerbUsers:
		return userRows(v, r, time.Now().UTC()), nil
	case subjects.VerbHistory:
		return historyRows(v, state.AppKey{Tenant: tenant, App: r.App})
	case subjects.VerbVersion:
		_, version, err := lookup(v, tenant, r.App)
		return version, err
	case subjects.VerbPlacement:
		var k kbroker.PlacementRequest
		if err := json.Unmarshal(m.Data, &k); err != nil {
			return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
		p, ok := v.Placements[state.PlacementKey{Host: k.Host, Tenant: tenant, Instance: k.Instance}]
		if !ok {
			return nil, kbroker.Errorf(kbroker.NotFound, "instance %s is not placed on host %s", k.Instance, k.Host)
		}
		p.Spec = kbroker.Service{} // whoever asks may be another instance
		return p, nil
	}
	return nil, kbroker.Errorf(kbroker.Invalid, "a core does not know %q", verb)
}

// read is a barriered view, or what this core knows when the store cannot be
// written: people must be able to look at a cluster that has lost its majority.
// current says which.
func (d *desk) read(ctx context.Context) (v *state.View, current bool) {
	ctx, cancel := context.WithTimeout(ctx, readBarrier)
	defer cancel()
	if v, err := d.store.View(ctx); err == nil {
		return v, true
	}
	return d.store.Peek(), false
}

// gone reports whether a host's agent is not there: what it reported is old.
func (d *desk) gone(host kbroker.HostID) bool {
	age, _, _ := d.heard.age(host)
	return age >= d.cfg.Times.Suspect
}

// sight is what this core hears and knows of liveness.
func (d *desk) sight() sight {
	ask, _ := d.heard.leads(d.cfg.Times.Suspect)
	m := d.cfg.Members()
	member := func(h kbroker.HostID) bool { _, in := m.Current[h]; return in || !m.Known }
	return sight{age: d.heard.age, member: member, times: d.cfg.Times, leader: ask.Leader}
}
