package super

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// The audit trail. A change is in the batch that makes it, as one record more: whoever
// leads appends it to the trail, and the next leader what this one did not. A refusal is
// told by the core that refused, as well as it can.

const (
	// auditEvery is how often a core looks for refusals that are to be told.
	auditEvery = 250 * time.Millisecond
	// maxAudits bounds the records that wait to be written; what is refused beyond it is
	// counted.
	maxAudits = 256
	// droppedEvery is between two records of what was dropped.
	droppedEvery = time.Minute
	// auditAttempt bounds the writing of one, auditEnd that of those left at the end.
	auditAttempt = 5 * time.Second
	auditEnd     = 500 * time.Millisecond
	// auditAgain is the pause before the leader tries again to tell its changes.
	auditAgain = time.Second
)

// auditor tells what this core has refused. Who adds something never waits. Safe for
// concurrent use.
type auditor struct {
	host    kbroker.HostID
	process string
	whose   *whose
	clock   state.Clock
	log     *slog.Logger

	mu       sync.Mutex
	refusals *refusals
	waiting  []kbroker.AuditRecord
	number   uint64
	dropped  int // since that was last told
	toldLost time.Duration
}

func newAuditor(host kbroker.HostID, process string, who *whose, clock state.Clock, log *slog.Logger) *auditor {
	return &auditor{host: host, process: process, whose: who, clock: clock, log: log, refusals: newRefusals(clock())}
}

// refuse takes a refusal; its actor, action, code and message are set.
func (a *auditor) refuse(r kbroker.AuditRecord) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.Outcome = kbroker.AuditRefused
	if r.Time.IsZero() {
		r.Time = time.Now().UTC()
	}
	if r.By == "" {
		r.By = a.by("core")
	}
	a.refusals.add(r.Cleaned(), a.clock())
}

// tell takes what was done and is no change of the control store; it is gathered as
// refusals are.
func (a *auditor) tell(r kbroker.AuditRecord) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.Outcome, r.Time, r.By = kbroker.AuditDone, time.Now().UTC(), a.by("core")
	a.refusals.add(r.Cleaned(), a.clock())
}

// by names a part of this process.
func (a *auditor) by(part string) string { return part + " " + string(a.host) + " " + a.process }

// drop counts refusals that are known to have been, and nothing more.
func (a *auditor) drop(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropped += n
}

// enqueue gives a record its ID; the caller holds mu.
func (a *auditor) enqueue(r kbroker.AuditRecord) {
	if len(a.waiting) >= maxAudits {
		a.dropped += max(1, r.Count)
		return
	}
	a.number++
	r.ID = fmt.Sprintf("%s %s %d", a.host, a.process, a.number)
	a.waiting = append(a.waiting, r)
}

// next is the record to write now; false: there is none. all: also what could wait.
func (a *auditor) next(all bool) (kbroker.AuditRecord, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.refusals.due(a.clock(), all) {
		a.enqueue(r)
	}
	a.dropped += a.refusals.lost()
	if now := a.clock(); a.dropped > 0 && len(a.waiting) < maxAudits && (all || a.toldLost == 0 || now-a.toldLost >= droppedEvery) {
		a.toldLost = now
		n := a.dropped
		a.dropped = 0
		a.enqueue(kbroker.AuditRecord{
			Time: time.Now().UTC(), Actor: kbroker.Caller{Host: a.host, Role: string(kbroker.RoleCore)}, Action: kbroker.AuditDropped,
			Outcome: kbroker.AuditRefused, Count: n, By: a.by("core"), Message: fmt.Sprintf("%d refusals are not told: too many came at once", n),
		})
	}
	if len(a.waiting) == 0 {
		return kbroker.AuditRecord{}, false
	}
	return a.waiting[0], true
}

// written takes the oldest record away.
func (a *auditor) written() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting = append(a.waiting[:0:0], a.waiting[1:]...)
}

// run writes what is added until ctx ends, then what is left, for a moment.
func (a *auditor) run(ctx context.Context, store *state.Store) error {
	tick := time.NewTicker(auditEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		a.write(ctx, store, false)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditEnd)
	defer cancel()
	a.write(last, store, true)
	return nil
}

// write writes records until there is none, or one is not taken: it comes first again.
func (a *auditor) write(ctx context.Context, store *state.Store, all bool) {
	for r, ok := a.next(all); ok && ctx.Err() == nil; r, ok = a.next(all) {
		attempt, cancel := context.WithTimeout(ctx, auditAttempt)
		r.Actor = a.whose.fill(attempt, r.Actor)
		err := store.AppendAudit(attempt, r)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("the audit trail takes no record; it is tried again", "err", err)
			}
			return
		}
		a.written()
	}
}

// Refused takes a refusal of another part of this core for the audit trail: its actor,
// action, code, message, and By. It never waits.
func (s *Super) Refused(r kbroker.AuditRecord) { s.auditor.refuse(r) }

// RefusalsDropped counts refusals of which nothing else is known.
func (s *Super) RefusalsDropped(n int) { s.auditor.drop(n) }

// foundation is the first record of a cluster's trail.
func (s *Super) foundation(action, message string) kbroker.AuditRecord {
	return kbroker.AuditRecord{
		ID: action + " " + s.cfg.ClusterID, Time: time.Now().UTC(), Actor: kbroker.Caller{Host: s.cfg.Host, Role: string(kbroker.RoleCore)},
		Action: action, Object: "cluster " + s.cfg.ClusterID, Outcome: kbroker.AuditDone, Message: message, By: s.auditor.by("core"),
	}
}

// telling is how far a leader has come with telling its changes.
type telling struct {
	told    atomic.Uint64 // at least so many are in the trail
	stirred chan struct{} // capacity 1: there may be one more
}

// stir has the changes told now.
func (t *telling) stir() {
	select {
	case t.stirred <- struct{}{}:
	default:
	}
}

// tellToAudit appends changes to the trail as long as ctx holds, those that earlier
// leaders have left among them.
func (t *term) tellToAudit(ctx context.Context) {
	first := t.foundation(kbroker.AuditBegin, "the audit trail begins; the cluster is older")
	for made := false; ctx.Err() == nil; {
		var err error
		if !made {
			attempt, cancel := context.WithTimeout(ctx, auditAttempt)
			err = t.store.EnsureAudit(attempt, first)
			cancel()
			made = err == nil
		}
		if made {
			attempt, cancel := context.WithTimeout(ctx, auditAttempt)
			var told uint64
			if told, err = t.lease.TellChanges(attempt, t.whose.fill); err == nil {
				t.telling.told.Store(told)
			}
			cancel()
		}
		again := (<-chan time.Time)(nil)
		if made = err == nil; !made && ctx.Err() == nil {
			t.log.Warn("changes wait to be told to the audit trail", "err", err)
			again = time.After(auditAgain)
		}
		select {
		case <-ctx.Done():
		case <-t.telling.stirred:
		case <-again:
		}
	}
}

// audited are changes with the record that tells them to the audit trail. Unavailable: so
// many wait to be told that there is no room for one more.
func (t *term) audited(v *state.View, changes []state.Change, r kbroker.AuditRecord) ([]state.Change, error) {
	waiting := v.Told()
	n := uint64(1)
	if len(waiting) > 0 {
		n = waiting[len(waiting)-1].Changes + 1
	}
	if !state.Room(n, t.telling.told.Load()) {
		t.telling.stir()
		return nil, kbroker.Errorf(kbroker.Unavailable, "the audit trail is behind: no change is made that it cannot tell").
			WithHint("`kbroker status` says what the cluster is missing")
	}
	r.ID = fmt.Sprintf("%d.%d", t.lease.Epoch(), n)
	r.Changes, r.OldRevision, r.Time, r.Outcome = n, v.Sequence, time.Now().UTC(), kbroker.AuditDone
	r.By = fmt.Sprintf("%s epoch %d", t.auditor.by("super"), t.lease.Epoch())
	r.Message = changeText(v, changes)
	return append([]state.Change{state.PutAudit{Record: r.Cleaned()}}, changes...), nil
}

// planned are the changes that super makes by itself, with a record of those that take
// back what somebody has asked for: a rollout that failed returns to the version before.
// All else follows from what was asked for, and is told as events. It is done whether the
// trail has room or not.
func (t *term) planned(v *state.View, changes []state.Change) []state.Change {
	for _, c := range changes {
		p, ok := c.(state.PutApp)
		if !ok || p.Record.Version >= v.Apps[state.AppKey{Tenant: p.Record.Tenant, App: p.Record.App}].Version {
			continue
		}
		with, err := t.audited(v, changes, kbroker.AuditRecord{
			Actor: kbroker.Caller{Name: "super", Role: string(kbroker.RoleCore), Host: t.cfg.Host}, Action: "auto_rollback", Object: "app " + string(p.Record.App),
		})
		if err != nil {
			t.log.Error("a rollback is not told to the audit trail", "app", p.Record.App, "err", err)
			return changes
		}
		return with
	}
	return changes
}

// changeText says what changes mean, in one line.
func changeText(v *state.View, changes []state.Change) string {
	var words []string
	for _, e := range eventsOf(v, changes) {
		words = append(words, e.Message)
	}
	for _, c := range changes {
		switch c.(type) {
		case state.PutToken, state.DropToken:
			words = append(words, c.String())
		}
	}
	if len(words) == 0 {
		for _, c := range changes {
			words = append(words, c.String())
		}
	}
	return strings.Join(words, "; ")
}

// request is the record of a request, without its outcome.
func (t *term) request(m *nats.Msg) kbroker.AuditRecord {
	return kbroker.AuditRecord{Actor: callerOf(m), Action: actionOf(m), Object: objectOf(m)}
}

// verbs are those that a record may name: everything else is the word of who sends it.
var verbs = map[string]bool{
	subjects.VerbDeploy: true, subjects.VerbScale: true, subjects.VerbStop: true, subjects.VerbJoin: true, subjects.VerbDrain: true,
	subjects.VerbRemove: true, subjects.VerbRollback: true, subjects.VerbRestart: true, subjects.VerbMaintain: true, subjects.VerbToken: true,
	subjects.VerbRevoke: true, subjects.VerbDemand: true, subjects.VerbApps: true, subjects.VerbInstances: true, subjects.VerbHosts: true,
	subjects.VerbStatus: true, subjects.VerbVersion: true, subjects.VerbPlacement: true, subjects.VerbArtifactBegin: true,
	subjects.VerbArtifactGet: true, subjects.VerbHistory: true, subjects.VerbPlan: true, subjects.VerbEvents: true, subjects.VerbWhy: true,
	subjects.VerbDevelop: true, subjects.VerbTokens: true, subjects.VerbAudit: true, subjects.VerbUser: true, subjects.VerbUserRevoke: true,
	subjects.VerbUsers: true, subjects.VerbExec: true, subjects.VerbSignal: true, subjects.VerbFigures: true, subjects.VerbAllocator: true,
	subjects.VerbObjects: true, subjects.VerbObjectOwners: true, subjects.VerbObject: true, subjects.VerbObjectState: true, subjects.VerbObjectAct: true,
}

// actionOf is what a request asks for, in the words of the command line.
func actionOf(m *nats.Msg) string {
	verb, _, ok := subjects.ParseAPI(m.Subject)
	switch {
	case ok && (verb == subjects.VerbToken || verb == subjects.VerbUser):
		return "create" // the object says what
	case ok && verb == subjects.VerbUserRevoke:
		return subjects.VerbRevoke
	case ok && verbs[verb]:
		return verb
	case ok:
		return "unknown"
	}
	if _, _, ok := subjects.ParseLease(m.Subject); ok {
		return "lease"
	}
	if _, _, _, _, ok := subjects.ParseOwn(m.Subject); ok {
		return "own"
	}
	return subjects.AgentVerb(m.Subject)
}

// definite reports whether an answer is one for the audit trail: a definite no. That there
// is no leader, or no answer in time, is none.
func definite(err error) bool {
	return err != nil && !errors.Is(err, kbroker.Unavailable) && !errors.Is(err, kbroker.NoLeader) && !errors.Is(err, kbroker.DeadlineExceeded)
}

// auditRefused tells that a request to the leader was refused.
func (t *term) auditRefused(m *nats.Msg, err error) {
	if !definite(err) {
		return
	}
	r := t.request(m)
	e := errorOf(err)
	r.Code, r.Message = e.Code, e.Message
	r.By = fmt.Sprintf("%s epoch %d", t.auditor.by("super"), t.lease.Epoch())
	t.auditor.refuse(r)
}

// auditRefused tells that a request to this core was not allowed. That something is not
// there, or is asked for wrongly, is nothing that a read is refused; a program that is not
// what its digest says is.
func (d *desk) auditRefused(m *nats.Msg, err error) {
	if tenant, ok := subjects.UploadTenant(m.Subject); ok && errors.Is(err, kbroker.Invalid) {
		e := errorOf(err)
		d.auditor.refuse(kbroker.AuditRecord{Actor: kbroker.Caller{Tenant: tenant}, Action: subjects.VerbArtifactBegin, Object: "artifact", Code: e.Code, Message: e.Message})
		return
	}
	if !errors.Is(err, kbroker.Refused) {
		return
	}
	e := errorOf(err)
	d.auditor.refuse(kbroker.AuditRecord{Actor: callerOf(m), Action: actionOf(m), Object: objectOf(m), Code: e.Code, Message: e.Message})
}
