// Package super is the manager of all processes of the system.
//
// Every core runs a Super. Always, it hears the heartbeats of all hosts and
// answers agents (views, reports) and clients (reads, plans, reasons, events,
// artifacts). One of them at a time holds the super lease and leads: it alone
// takes writes, judges hosts, and turns what is wanted into placements.
//
//	       lease taken                    lease lost or ctx ends
//	waiting -----------> leading: round, round, ... -------------> waiting
//	                       |  view (barriered) + heard (a majority's word)
//	                       |  Judge   -> which hosts are ready, suspect, lost
//	                       |  Plan    -> changes          (pure)
//	                       v  Commit  -> one fenced batch
//
// Invariants: nothing is stopped because something is absent, a stop is a
// record; a round that cannot hear a majority of the cores moves nothing; the
// only writes are batches behind the lease. Events tell what these batches and
// the reports meant: nothing reads them to decide, nothing waits for them. The
// audit trail tells who asked for what, and who was refused: a change that it
// could not tell is not made.
package super

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// Members is what the broker of this core knows of the broker's cores.
type Members struct {
	Known    bool // a meta leader is known
	Current  map[kbroker.HostID]bool
	Replicas int // of the stream with the fewest
	Writable bool
	// Witness: the broker's witness runs beside this core.
	Witness bool
	// Alone has the cores whose store holds a stream that no other replica has,
	// with that stream's name.
	Alone map[kbroker.HostID]string
	// Unsettled says why no core should go down now: a replica is behind or
	// missing, a change of members is under way. Empty: nothing speaks against it.
	Unsettled string
	// Stale says why all this may be old. Empty: it was looked at just now, or
	// nobody asked for that.
	Stale string
}

// Config of a Super.
type Config struct {
	Host      kbroker.HostID
	Process   string // this start of the agent
	Earlier   string // an earlier start of it, see state.Config
	ClusterID string
	Found     bool   // this host founded the cluster: it makes the buckets
	Dir       string // for uploads and for artifacts that it hands out; created
	Conn      *nats.Conn
	Members   func() Members
	// Look has Members look again now, as far as ctx allows; nil: it always has.
	Look func(ctx context.Context) error
	// Admit adds to the answer to a host that is admitted what it will prove itself
	// with; nil: nothing.
	Admit func(kbroker.JoinRequest, *kbroker.JoinReply) error
	// Proved says why a request to join does not prove whose it is; nil: nobody looks.
	// Safe for concurrent use.
	Proved func(kbroker.JoinRequest) error
	// Sign makes the credential of a start of an instance that is placed, for who proves
	// to have its key; nil: there are none. Safe for concurrent use.
	Sign func(kbroker.Placement, kbroker.SignRequest) (string, error)
	// SignUser makes the credential of a user of the record, for who proves to have the
	// key; nil: there are none. Safe for concurrent use.
	SignUser func(kbroker.User, kbroker.UserRequest) (string, error)
	// Develop makes the credential of a program that runs beside the cluster, for who
	// proves to have its key: not for longer than that of who asks, which is of the key
	// asks. nil: there are none. Safe for concurrent use.
	Develop func(r kbroker.DevelopRequest, asks string) (string, error)
	// Signed reads what was signed for a start on a host: the names of it, the key of its
	// user, and when it ends. nil as Sign.
	Signed func(credential string) (of kbroker.InstanceFile, r kbroker.Revocation, err error)
	// CredentialLife is how long what Sign makes holds.
	CredentialLife time.Duration
	// Who says who has a key, and from where, as servers know it; nil: nobody can. Safe
	// for concurrent use.
	Who func(ctx context.Context, key string) (kbroker.Caller, error)
	// Root is the fingerprint of the root that cores prove themselves with, for
	// tokens.
	Root  string
	Times state.Times
	Clock state.Clock // nil: state.Boottime
	Log   *slog.Logger
}

// Super is the part of kbroker_super that runs on one core.
type Super struct {
	cfg   Config
	log   *slog.Logger
	heard *heard
	// figures are what agents have measured last.
	figures *figures
	// journal takes what was decided and what was seen.
	journal *journal
	// auditor takes what was refused.
	auditor  *auditor
	whose    *whose
	counters *counters
	store    atomic.Pointer[state.Store] // nil until the broker answers
}

// New returns a Super; Run does everything.
func New(cfg Config) (*Super, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = state.Boottime
	}
	if cfg.Host == "" || cfg.Conn == nil || cfg.Dir == "" || cfg.Members == nil {
		return nil, fmt.Errorf("super needs a host, a connection, a directory and the broker's members")
	}
	if cfg.Times == (state.Times{}) {
		cfg.Times = state.Tuned
	}
	who := &whose{ask: cfg.Who, clock: cfg.Clock}
	return &Super{
		whose: who,
		cfg:   cfg, log: cfg.Log, counters: newCounters(), heard: newHeard(cfg.Host, cfg.Clock, cfg.Times.Suspect), figures: newFigures(cfg.Clock), journal: newJournal(cfg.Host, cfg.Process, cfg.Log),
		auditor: newAuditor(cfg.Host, cfg.Process, who, cfg.Clock, cfg.Log),
	}, nil
}

// openRetry is the pause between attempts to open a store that has no leader yet.
const openRetry = 100 * time.Millisecond

// Run hears, answers and campaigns until ctx ends, then returns nil.
// Heartbeats are heard from the first moment, before the store can be opened.
func (s *Super) Run(ctx context.Context) error { return s.run(ctx, true) }

// Answer is Run of a core that never leads: it answers agents, instances and allocators by
// what is stored, and nothing is planned. A cluster inside a test writes its own plan.
func (s *Super) Answer(ctx context.Context) error { return s.run(ctx, false) }

func (s *Super) run(ctx context.Context, leads bool) error {
	stop, err := s.hear()
	if err != nil {
		return err
	}
	defer stop()
	store, err := s.open(ctx)
	if err != nil || store == nil {
		return err
	}
	s.store.Store(store)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	errs := make(chan error, 5)
	run := func(name string, part func(context.Context) error) {
		all.Go(func() {
			if err := part(ctx); err != nil {
				errs <- fmt.Errorf("%s: %w", name, err)
			}
			cancel()
		})
	}
	run("store", store.Run)
	run("journal", func(ctx context.Context) error { return s.journal.run(ctx, store) })
	run("audit", func(ctx context.Context) error { return s.auditor.run(ctx, store) })
	run("desk", newDesk(s, store).run)
	if leads {
		run("leader", func(ctx context.Context) error { return newLeader(s, store).run(ctx) })
	}
	all.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// open returns the store, or nil when ctx ended before the broker could.
func (s *Super) open(ctx context.Context) (*state.Store, error) {
	var last string
	for {
		store, err := s.tryOpen(ctx)
		if err == nil {
			return store, nil
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		if err.Error() != last {
			last = err.Error()
			s.log.Info("waiting for the control store", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(openRetry):
		}
	}
}

func (s *Super) tryOpen(ctx context.Context) (*state.Store, error) {
	if s.cfg.Found {
		if err := state.FoundAudit(ctx, s.cfg.Conn, s.foundation(kbroker.AuditFound, "the cluster was founded")); err != nil {
			return nil, err
		}
		if err := state.Found(ctx, s.cfg.Conn); err != nil {
			return nil, err
		}
	}
	return state.Open(ctx, state.Config{
		Conn: s.cfg.Conn, Host: s.cfg.Host, Process: s.cfg.Process, Earlier: s.cfg.Earlier,
		Times: s.cfg.Times, Clock: s.cfg.Clock, Log: s.log.With("part", "store"),
	})
}

// Cores are the members of the cluster that run a broker, as the store has
// them; nil until it is open.
func (s *Super) Cores() []kbroker.CoreAddr {
	store := s.store.Load()
	if store == nil {
		return nil
	}
	var out []kbroker.CoreAddr
	for _, h := range store.Hosts() {
		if h.Core() && h.Client != "" {
			out = append(out, kbroker.CoreAddr{Host: h.Name, Client: h.Client, Route: h.Route})
		}
	}
	return out
}

// Removed are the hosts that were taken out of the cluster; nil until the store
// is open.
func (s *Super) Removed() []kbroker.HostID {
	store := s.store.Load()
	if store == nil {
		return nil
	}
	var out []kbroker.HostID
	for _, h := range store.Hosts() {
		if !h.Member() {
			out = append(out, h.Name)
		}
	}
	return out
}
