package super

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// gather is how long the leader waits for the cores' words.
	gather = 400 * time.Millisecond
	// stale is the age at which the cores' words count no more.
	stale = 3 * time.Second
	// commandTimeout bounds one write on behalf of a client, roundTimeout a
	// round; a leader without a round for resignAfter gives up.
	commandTimeout = 10 * time.Second
	roundTimeout   = 10 * time.Second
	resignAfter    = 20 * time.Second
	// maxCommands bounds the writes that wait; further ones are Overloaded.
	maxCommands = 256
)

// leader campaigns, and leads while it holds the lease.
type leader struct {
	*Super
	store *state.Store
}

func newLeader(s *Super, store *state.Store) *leader { return &leader{s, store} }

func (l *leader) run(ctx context.Context) error { return l.store.Lead(ctx, l.lead) }

// lead runs rounds until ctx ends with the lease. It gives the lease up when it
// cannot plan: another core may see more.
func (l *leader) lead(ctx context.Context, lease *state.Leader) error {
	log := l.log.With("epoch", lease.Epoch())
	log.Info("leading", "host", l.cfg.Host)
	defer log.Info("not leading any more", "host", l.cfg.Host)

	t := &term{
		leader: l, lease: lease, log: log, memory: newMemory(), sawAt: l.cfg.Clock(), heardAll: make(chan struct{}, 1), again: time.NewTimer(0),
		guesses: newGuesses(l.cfg.Clock()), telling: telling{stirred: make(chan struct{}, 1)},
	}
	defer t.again.Stop()
	t.tell(kbroker.Event{Kind: kbroker.EventLeader, Host: l.cfg.Host, Epoch: lease.Epoch(), Message: fmt.Sprintf("host %s leads", l.cfg.Host)})
	l.counters.tally.Store(&tally{epoch: lease.Epoch()})
	defer l.counters.tally.Store(nil)
	commands := make(chan *nats.Msg, maxCommands)
	for _, asked := range []string{subjects.SuperAll(), subjects.Join, subjects.AllDemands} {
		sub, err := l.cfg.Conn.Subscribe(asked, func(m *nats.Msg) {
			if t.turnAway(m) {
				return
			}
			select {
			case commands <- m:
			default:
				err := kbroker.Errorf(kbroker.Overloaded, "more than %d writes are waiting", maxCommands)
				l.counters.command(err)
				respondError(log, m, err)
			}
		})
		if err != nil {
			return fmt.Errorf("subscribe %s: %w", asked, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}

	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asking.Go(func() { t.askAll(ctx) })
	asking.Go(func() { t.tellToAudit(ctx) })

	changed, stop := l.store.Changed()
	defer stop()
	planned := l.cfg.Clock() // when the last round succeeded
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-commands:
			if !t.commands(ctx, m, commands) {
				continue
			}
		case <-changed:
		case <-t.heardAll: // the slow tick
		case <-t.again.C:
		}
		if err := t.round(ctx); err == nil {
			planned = l.cfg.Clock()
		} else if ctx.Err() == nil {
			l.counters.roundsFailed.Inc()
			log.Warn("round failed; the next one plans again", "err", err)
			if l.cfg.Clock()-planned > resignAfter {
				return fmt.Errorf("no round for %v: %w", resignAfter, err)
			}
		}
	}
}

// term is one time of leading.
type term struct {
	*leader
	lease  *state.Leader
	log    *slog.Logger
	memory *memory
	sawAt  time.Duration // when a majority's words were last there
	minutes
	guesses *guesses // of join tokens
	telling telling

	heardAll chan struct{} // capacity 1: the cores were asked, whoever answered
	again    *time.Timer   // has a round follow

	mu      sync.Mutex
	answers []kbroker.HeardReply
	askedAt time.Duration
	alarms  []string
}

// round reads, judges, plans and commits once.
func (t *term) round(ctx context.Context) error {
	began := time.Now()
	defer func() { t.counters.rounds.Observe(time.Since(began).Seconds()) }()
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	v, err := t.store.View(ctx)
	if err != nil {
		return fmt.Errorf("view: %w", err)
	}
	t.settleDoubt(v)
	w := t.world(v)
	w.Unowned = t.unowned(ctx, v)
	t.counters.stand(t.lease.Epoch(), v, w.Verdict, t.alarming())
	t.tellSuspects(w.Verdict)
	changes := Plan(w)
	if len(changes) == 0 {
		t.revokeGivenUp(ctx, v)
		return nil
	}
	for _, c := range changes {
		t.log.Info("plan", "change", c.String())
	}
	if err := t.commit(ctx, v, t.planned(v, changes)); err != nil {
		return fmt.Errorf("commit %d changes: %w", len(changes), err)
	}
	t.revokeGivenUp(ctx, v)
	return nil
}

// commit writes a batch, and has told what it means.
func (t *term) commit(ctx context.Context, v *state.View, changes []state.Change) error {
	began := time.Now()
	err := t.lease.Commit(ctx, v, changes)
	t.counters.commit(time.Since(began), err)
	t.tellChanges(v, changes, err)
	t.telling.stir()
	return err
}

// world is a view together with what this leader remembers and has heard.
func (t *term) world(v *state.View) World {
	now := t.cfg.Clock()
	t.memory.see(v, now)
	h := Hearing{Answers: t.lately(now), InState: t.memory.inState(now), LeaveFor: t.memory.leaveFor(now)}
	verdict := Judge(v, h, t.cfg.Times)
	t.memory.seeVerdict(v, verdict, now)
	if verdict.Blind {
		t.memory.blind(now)
	} else {
		t.sawAt = now
	}
	alarms := verdict.Alarms
	if verdict.Blind && now-t.sawAt < stale {
		alarms = nil // a core that has just become one has not been asked yet
	}
	t.mu.Lock()
	t.alarms = alarms
	t.mu.Unlock()
	return World{
		View: v, Verdict: verdict, InState: h.InState, LeaveFor: h.LeaveFor,
		ReadyFor: t.memory.readyFor(now), Stalled: t.memory.stalled(now),
		SteadyFor: t.memory.steadyFor(now), ApartFor: t.memory.apartFor(now), ApartFailed: t.memory.apartFailed(now),
		TriedFor: t.memory.triedFor(now), Now: time.Now().UTC(),
	}
}

// alarming is how many alarms the last look at the world gave.
func (t *term) alarming() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.alarms)
}

// lately returns the cores' words unless they are stale.
func (t *term) lately(now time.Duration) []kbroker.HeardReply {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now-t.askedAt > stale {
		return nil
	}
	return t.answers
}

// askAll asks every core, each second, whom it has heard, and has a round follow;
// the question names the leader, so that cores know who leads.
func (t *term) askAll(ctx context.Context) {
	tick := time.NewTicker(t.cfg.Times.Heartbeat)
	defer tick.Stop()
	for {
		t.ask(ctx)
		select {
		case t.heardAll <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (t *term) ask(ctx context.Context) {
	asked := t.cfg.Clock()
	t.mu.Lock()
	question := heardAsk{Leader: t.cfg.Host, Epoch: t.lease.Epoch(), Alarms: t.alarms}
	t.mu.Unlock()
	cores := 0
	for _, h := range t.store.Hosts() {
		if h.Core() {
			cores++
		}
	}
	inbox := t.cfg.Conn.NewRespInbox()
	sub, err := t.cfg.Conn.SubscribeSync(inbox)
	if err != nil {
		t.log.Warn("cannot ask the cores", "err", err)
		return
	}
	defer func() { _ = sub.Unsubscribe() }()
	body, err := json.Marshal(question)
	if err == nil {
		err = t.cfg.Conn.PublishRequest(subjects.Heard, inbox, body)
	}
	if err != nil {
		t.log.Warn("cannot ask the cores", "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, gather)
	defer cancel()
	byCore := map[kbroker.HostID]kbroker.HeardReply{}
	for len(byCore) < max(cores, 1) {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			break // time is up: those who answered count
		}
		var r kbroker.HeardReply
		if err := json.Unmarshal(m.Data, &r); err == nil && r.Core != "" {
			byCore[r.Core] = r
		}
	}
	answers := make([]kbroker.HeardReply, 0, len(byCore))
	for _, r := range byCore {
		answers = append(answers, r)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.answers, t.askedAt = answers, asked
}

// commands does the write m and those that wait behind it, and reports whether
// anything was written. Writes that change nothing share one view.
func (t *term) commands(ctx context.Context, m *nats.Msg, waiting <-chan *nats.Msg) (written bool) {
	var v *state.View
	for range maxCommands {
		changed, err := t.command(ctx, m, &v)
		t.counters.command(err)
		if err != nil {
			t.tellRefused(m, err)
			t.tellJoinRefused(m, err)
			t.auditRefused(m, err)
			respondError(t.log, m, err)
		}
		if changed {
			written, v = true, nil
		}
		select {
		case m = <-waiting:
		default:
			return written
		}
	}
	return written
}

// conflictRetries bounds how often a write is planned again because the world
// moved between its view and its batch.
const conflictRetries = 5

// command does one write for a client and answers it. v is the view to decide
// by; nil: it takes one, and leaves it for the next.
func (t *term) command(ctx context.Context, m *nats.Msg, v **state.View) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	verb, tenant, ok := subjects.ParseAPI(m.Subject)
	if !ok {
		return false, kbroker.Errorf(kbroker.Invalid, "subject %q is not one of super's", m.Subject)
	}
	_, app, demand := subjects.ParseDemand(m.Subject)
	switch {
	case (verb == subjects.VerbDemand) != demand:
		return false, kbroker.Errorf(kbroker.Invalid, "subject %q is not one of super's", m.Subject)
	case demand:
		var r kbroker.DemandRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return false, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
		if r.Demand.App != app { // whose allocator it is, the server has checked
			return false, kbroker.Errorf(kbroker.Refused, "the allocator of app %s may not speak for app %q", app, r.Demand.App)
		}
	}
	for range conflictRetries {
		if *v == nil {
			if *v, err = t.store.View(ctx); err != nil {
				return false, err
			}
		}
		var d decision
		if d, err = t.decide(ctx, *v, verb, tenant, m.Data); err != nil {
			return false, err
		}
		if len(d.changes) == 0 {
			respond(t.log, m, d.reply)
			return false, nil
		}
		for _, c := range d.changes {
			t.log.Info(verb, "change", c.String())
		}
		var changes []state.Change
		if changes, err = t.audited(*v, d.changes, t.request(m)); err == nil {
			err = t.commit(ctx, *v, changes)
		}
		switch {
		case err == nil:
			respond(t.log, m, d.reply)
			return true, nil
		case errors.Is(err, kbroker.Refused): // the lease, not the request
			return false, kbroker.Errorf(kbroker.NoLeader, "host %s lost the lead: %v", t.cfg.Host, err)
		case !errors.Is(err, kbroker.Conflict):
			return true, err // the outcome may be unknown
		}
		*v = nil
	}
	return false, err
}
