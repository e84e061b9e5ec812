package super

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxDesk bounds the requests that one core works on at once; further ones
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
	// lookWithin is how long a status waits for a fresh look at the broker.
	lookWithin = 200 * time.Millisecond
)

// desk is what every core does for agents and clients.
type desk struct {
	*Super
	store   *state.Store
	uploads *uploads
	serving *serving
	room    chan struct{}
	// planning is taken by the one plan that this core makes at a time.
	planning chan struct{}
}

func newDesk(s *Super, store *state.Store) *desk {
	return &desk{
		Super: s, store: store, room: make(chan struct{}, maxDesk), planning: make(chan struct{}, 1),
		uploads: newUploads(s.cfg.Dir, store, s.log), serving: newServing(s.cfg.Dir, store),
	}
}

// run answers until ctx ends.
func (d *desk) run(ctx context.Context) error {
	if err := errors.Join(d.uploads.clear(), d.serving.clear()); err != nil {
		return err
	}
	var work gate
	defer work.close()
	answer := func(timeout time.Duration, handle func(ctx context.Context, m *nats.Msg) (any, error)) nats.MsgHandler {
		return func(m *nats.Msg) {
			select {
			case d.room <- struct{}{}:
			default:
				respondError(d.log, m, kbroker.Errorf(kbroker.Overloaded, "core %s works on %d requests", d.cfg.Host, maxDesk))
				return
			}
			work.run(func() {
				defer func() { <-d.room }()
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
		timeout        time.Duration
		handle         func(ctx context.Context, m *nats.Msg) (any, error)
	}{
		{subjects.AllViews, subjects.QueueCore, agentTimeout, d.view},
		{subjects.AllReports, subjects.QueueCore, agentTimeout, d.report},
		{subjects.AllSigns, subjects.QueueCore, agentTimeout, d.sign},
		{subjects.AllLeases, subjects.QueueCore, leaseTimeout, d.lease},
		{subjects.CoreAll(), subjects.QueueCore, transferTimeout, d.api},
		{subjects.Upload(d.cfg.Host, "*", "*"), "", transferTimeout, d.uploads.message},
	} {
		sub, err := d.cfg.Conn.QueueSubscribe(s.subject, s.queue, answer(s.timeout, s.handle))
		if err != nil {
			return fmt.Errorf("subscribe %s: %w", s.subject, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	d.uploads.expire(ctx)
	return nil
}

// gate runs functions beside each other until it is closed. A subscription may
// still deliver a message while it ends, which a WaitGroup alone does not bear.
type gate struct {
	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup
}

func (g *gate) run(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.work.Go(f)
	}
}

// close waits for what runs; nothing runs any more after it.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.work.Wait()
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
	d.identify(&r)
	was := d.known(r)
	var ended []kbroker.Revocation
	if len(r.Ended) > 0 {
		ended = d.ended(r, time.Now().Add(longestLife(d.store.Peek().Hosts, d.cfg.CredentialLife)))
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
		by, ok := subjects.InboxOwner(m.Reply)
		if !ok {
			return nil, kbroker.Errorf(kbroker.Invalid, "nobody has the key of %q, where the answer is to go", m.Reply)
		}
		reply, err := decoded(ctx, m.Data, tenant, func(_ context.Context, tenant kbroker.TenantID, r kbroker.DevelopRequest) (any, error) {
			return d.develop(tenant, r, by)
		})
		if err == nil {
			d.auditor.tell(kbroker.AuditRecord{
				Actor: callerOf(m), Action: verb, Object: objectOf(m), Message: "a credential was signed for a program beside the cluster",
			})
		}
		return reply, err
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
	v, _ := d.read(ctx)
	switch verb {
	case subjects.VerbApps:
		return appRows(v, r), nil
	case subjects.VerbInstances:
		return instanceRows(v, r, d.gone), nil
	case subjects.VerbHosts:
		return hostRows(v, r.All, d.sight()), nil
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

// sign answers an agent that starts what this core knows to be placed on its host. It
// takes no quorum: this core's own copy is enough, as a placement that it does not
// know of yet is asked for again.
func (d *desk) sign(_ context.Context, m *nats.Msg) (any, error) {
	host, ok := subjects.HostOf(m.Subject)
	if !ok {
		return nil, kbroker.Errorf(kbroker.Invalid, "subject %q names no host", m.Subject)
	}
	var r kbroker.SignRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	v := d.store.Peek()
	p, placed := v.Placements[state.PlacementKey{Host: host, Tenant: r.Tenant, Instance: r.Instance}]
	_, revoked := v.Revoked[r.Key]
	switch h, known := v.Hosts[host]; {
	case known && !h.Member():
		return nil, removedError(host)
	case revoked:
		return nil, kbroker.Errorf(kbroker.Refused, "the key of instance %s was taken back", r.Instance)
	case !placed || p.Epoch < r.Epoch:
		return nil, kbroker.Errorf(kbroker.NotFound, "instance %s is not placed on host %s, as far as core %s knows", r.Instance, host, d.cfg.Host)
	case p.Stop || p.Epoch > r.Epoch:
		return nil, kbroker.Errorf(kbroker.Refused, "instance %s is not to run on host %s any more", r.Instance, host)
	}
	return d.signed(p, r)
}

// develop signs for a program that runs beside the cluster, for who has a key.
func (d *desk) develop(tenant kbroker.TenantID, r kbroker.DevelopRequest, by string) (any, error) {
	p := kbroker.Placement{Tenant: tenant, App: r.App, Service: r.Service, Instance: r.Instance, Host: developmentHost}
	p.Spec.Calls = []string{spec.AllServices} // as who runs it may
	var until time.Time
	for _, u := range d.store.Peek().Users {
		if u.Key == by {
			until = u.Expires // what is not on record never ends
		}
	}
	err := errors.Join(kbroker.CheckName("app", string(r.App)), kbroker.CheckName("service", string(r.Service)))
	if err != nil {
		return nil, err
	}
	return d.signed(p, kbroker.SignRequest{Tenant: tenant, Instance: r.Instance, Incarnation: r.Incarnation, Key: r.Key, By: by, Until: until})
}

// developmentHost is in the credentials of programs that run on no host of the
// cluster: no host has this name.
const developmentHost kbroker.HostID = "_"

func (d *desk) signed(p kbroker.Placement, r kbroker.SignRequest) (any, error) {
	if d.cfg.Sign == nil {
		return nil, kbroker.Errorf(kbroker.Unavailable, "core %s signs nothing", d.cfg.Host)
	}
	start, ok := strings.CutPrefix(string(r.Incarnation), string(p.Instance)+".")
	if !ok || start == "" || strings.Contains(start, ".") {
		return nil, kbroker.Errorf(kbroker.Invalid, "%q is not a start of instance %s", r.Incarnation, p.Instance)
	}
	credential, err := d.cfg.Sign(p, r)
	if err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "instance %s: %v", r.Instance, err)
	}
	return kbroker.SignReply{Credential: credential}, nil
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

func respond(log *slog.Logger, m *nats.Msg, reply any) {
	body, err := json.Marshal(reply)
	if err != nil {
		respondError(log, m, fmt.Errorf("marshal reply: %w", err))
		return
	}
	respondMsg(log, m, &nats.Msg{Data: body})
}

func respondError(log *slog.Logger, m *nats.Msg, err error) {
	e := errorOf(err)
	body, mErr := json.Marshal(e)
	if mErr != nil {
		log.Error("cannot marshal an error", "err", mErr)
		return
	}
	respondMsg(log, m, &nats.Msg{Data: body, Header: nats.Header{subjects.HeaderCode: {string(e.Code)}}})
}

func respondMsg(log *slog.Logger, m, reply *nats.Msg) {
	if !subjects.IsInbox(m.Reply) {
		return
	}
	if err := m.RespondMsg(reply); err != nil {
		log.Warn("cannot answer", "subject", m.Subject, "err", err)
	}
}
