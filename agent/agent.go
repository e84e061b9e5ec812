// Package agent is one host's loop: it compares what the cluster wants of the
// host with what runs there, and starts, stops, adopts, watches and reports.
//
// It talks to the cores over plain NATS messages only, the same on a core as on
// a worker: it asks for its host's view, hears that something changed, reports
// statuses, and says each second that it is there.
//
// Invariants:
//
//   - an incomplete view (its placements do not hash to its head) is never acted
//     on; nothing is stopped because it is absent, except from a complete view;
//   - a process runs when its start is on disk, and not before (spawn.Holds says where
//     that cannot be); what runs is adopted before anything is started;
//   - a process is known by boot, pid and start time, and held by a pidfd; a pid
//     whose process is another one by now is never signalled;
//   - the end of an agent, however it comes, ends no instance: instances write
//     to files, and the next agent finds them.
//
// One goroutine, the loop of Run, owns all instances; everything slow (fetching,
// forking, watching, asking, reporting) happens in others, which post events.
//
// Layout of a data directory:
//
//	agent.lock, agent.json              who holds it
//	alive                               touched while its agent reaches the disk
//	view.json                           the last complete view
//	artifacts/<sha256>                  programs and archives, verified; .tree: what is unpacked of one
//	over/<public key>                   credentials of starts that are over, until they were taken back
//	instances/<tenant>/<instance>/      record.json, output.log; of its user: work/, tmp/, run/ (instance.json, <start>.creds, alive)
//
// What is damaged of it is put aside (NAME.damaged-N) and made anew: records from the
// environment of what runs, the view from the cluster, programs from their artifacts.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/artifact"
	"github.com/kbroker/kbroker/agent/output"
	"github.com/kbroker/kbroker/state"
)

// firstViewWait is how long a new agent waits for the cluster's word before it
// starts again, from the last view, what has ended: that may be superseded.
const firstViewWait = 3 * time.Second

// pruneEvery is how often the artifact cache is brought back to its bound.
const pruneEvery = time.Minute

// loopback is the address of a host that nobody else reaches.
const loopback = "127.0.0.1"

// Config of an Agent. Dir, Host and Conn are required.
type Config struct {
	Dir  *Dir
	Host kbroker.HostID
	Role kbroker.Role
	// Generation is what the cluster admitted the host as.
	Generation int
	// Conn stays the caller's. It should reconnect for ever: without it nothing
	// new is started, and what runs is kept running.
	Conn     *nats.Conn
	Labels   map[string]string
	Capacity kbroker.Resources
	// Client and Route are the addresses of a core's broker, for heartbeats.
	Client, Route string
	// Address is where others reach what listens on this host; empty: 127.0.0.1.
	Address string
	// CredentialLife is how long what this core signs for instances holds; 0 on a worker.
	CredentialLife time.Duration
	// Servers returns the URLs that instances connect to, this host's first;
	// those that the cores tell are added. nil: only those.
	Servers func() []string
	// CA are the cluster's roots, in PEM, for the instances; empty: none.
	CA      string
	Version string
	// Core tells what the broker of this core sees, within ctx; nil on a worker.
	Core func(ctx context.Context) kbroker.CoreCheckup
	// Executable is this binary: builtin programs run as `Executable builtin
	// NAME`.
	Executable string
	Times      state.Times  // zero: state.Tuned
	Log        *slog.Logger // nil: nothing is logged
}

func (c *Config) validate() error {
	switch {
	case c.Dir == nil:
		return kbroker.Errorf(kbroker.Invalid, "an agent needs a data directory")
	case c.Conn == nil:
		return kbroker.Errorf(kbroker.Invalid, "an agent needs a connection")
	}
	return kbroker.CheckName("host", string(c.Host))
}

// ErrRemoved ends Beat when the cluster has removed this host. What it runs is
// still there then, and has to go: Sweep.
var ErrRemoved = errors.New("this host was removed from the cluster")

// Agent runs a host's instances. Run and Beat may be called once each, side by
// side.
type Agent struct {
	cfg  Config
	log  *slog.Logger
	boot string
	// contain's users belong to the loop.
	contain containment

	heart    *heart
	viewer   *viewer
	reporter *reporter
	cache    *artifact.Cache
	outputs  *output.Files
	pinger   *pinger
	gates    gates
	own      ownPulse
	janitor  *janitor
	checker  *checker
	counters *counters
	sampler  *sampler
	settler  *settler
	ports    *portBook
	scanner  scanner
	slots    chan struct{}

	// events are applied by the loop, one at a time.
	events chan func()
	work   sync.WaitGroup // everything that the loop has started

	// The fields below belong to the loop.
	instances map[kbroker.StatusKey]*instance
	view      kbroker.ViewReply
	proven    bool          // the view was received since the connection was last made
	patience  time.Duration // boottime; until then only a proven view starts anything
}

// New prepares an agent; nothing runs before Run.
func New(cfg Config) (*Agent, error) {
	if err := supported(); err != nil {
		return nil, err
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Times == (state.Times{}) {
		cfg.Times = state.Tuned
	}
	cfg.Address = cmp.Or(cfg.Address, loopback)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	contain, err := newContainment(cfg.Dir.Path, boot, cfg.Log)
	if err != nil {
		return nil, err
	}
	cfg.Labels = maps.Clone(cfg.Labels)
	if cfg.Labels == nil {
		cfg.Labels = map[string]string{}
	}
	maps.Copy(cfg.Labels, contain.labels())
	counters := newCounters()
	a := &Agent{
		cfg: cfg, log: cfg.Log, boot: boot, contain: contain, counters: counters, ports: newPortBook(),
		viewer:    &viewer{host: cfg.Host, generation: cfg.Generation, dir: cfg.Dir, conn: cfg.Conn, log: cfg.Log, look: make(chan struct{}, 1)},
		reporter:  newReporter(cfg, counters),
		cache:     newCache(cfg),
		outputs:   newOutputs(cfg),
		pinger:    newPinger(cfg),
		sampler:   newSampler(cfg),
		settler:   newSettler(cfg),
		gates:     newGates(),
		slots:     make(chan struct{}, startsPerCPU*runtime.NumCPU()),
		events:    make(chan func()),
		instances: make(map[kbroker.StatusKey]*instance),
	}
	a.heart = newHeart(cfg, a.viewer.stir)
	a.janitor = &janitor{dir: cfg.Dir, groups: contain.groups, scanner: &a.scanner, log: cfg.Log}
	a.checker = &checker{cfg: cfg, log: cfg.Log, scanner: &a.scanner, census: a.census, unsaid: a.reporter.unsaid}
	return a, nil
}

// Cores are those that the cluster has, as last heard from one; nil before. Safe
// for concurrent use.
func (a *Agent) Cores() []kbroker.CoreAddr { return a.heart.known() }

// Beat says each second that this host is there, until ctx ends, then returns
// nil; ErrRemoved when the cluster has removed it. It waits for nothing, and so
// begins before Run; it ends after Run where the host needs time to stop, for a
// host that is silent meanwhile is judged lost.
func (a *Agent) Beat(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := a.heart.run(ctx, func() { cancel(ErrRemoved) }); err != nil {
		return err
	}
	if context.Cause(ctx) == ErrRemoved {
		return ErrRemoved
	}
	return nil
}

// Run works until parent ends, then returns nil; the instances run on, for the
// next agent to adopt. Any other return is a failure that a retry in here would
// not cure: the data directory cannot be read.
func (a *Agent) Run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer func() { _ = a.contain.groups.Remove() }() // while an instance runs it is not empty, and stays
	defer a.work.Wait()
	defer cancel(nil)
	part := func(name string, run func(context.Context) error) {
		a.work.Go(func() {
			if err := run(ctx); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	if err := prepareProcess(); err != nil {
		return err
	}
	deaf, err := a.pinger.hear()
	if err != nil {
		return err
	}
	defer deaf()
	a.patience = state.Boottime() + firstViewWait
	a.view = a.viewer.load()
	a.heart.holds(a.view.Head.Revision)
	if err := a.load(); err != nil {
		return fmt.Errorf("adopt what runs: %w", err)
	}
	for _, k := range a.keys() {
		a.resume(ctx, a.instances[k])
	}
	part("reports", a.reporter.run)
	part("output", a.outputs.Run)
	part("logs", a.serveLogs)
	part("checkup", a.checker.run)
	part("inside", a.newInsider().run)
	part("figures", a.sampler.run)
	part("settle", a.settler.run)
	part("pulse", func(ctx context.Context) error { a.own.run(ctx, a.cfg.Dir.Path); return nil })
	part("janitor", func(ctx context.Context) error { return a.janitor.run(ctx, a.census, state.Boottime) })
	held := a.view.Head.Revision
	part("view", func(ctx context.Context) error {
		return a.viewer.run(ctx, held,
			func(v kbroker.ViewReply) { a.post(ctx, func() { a.accept(v) }) },
			func() { a.post(ctx, func() { a.proven = false }) })
	})
	a.loop(ctx)
	if parent.Err() != nil {
		return nil
	}
	return context.Cause(ctx) // a part has failed
}

// loop applies events and brings the host to its view until ctx ends.
func (a *Agent) loop(ctx context.Context) {
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case apply := <-a.events:
			apply()
		case <-wake.C:
		case <-prune.C:
			if err := a.cache.Prune(a.named()); err != nil {
				a.log.Warn("the artifact cache stays too large", "err", err)
			}
		}
		if next := a.reconcile(ctx); next > 0 {
			wake.Reset(max(0, next-state.Boottime()))
		} else {
			wake.Stop()
		}
	}
}

// post has the loop apply an event; false when ctx ended before.
func (a *Agent) post(ctx context.Context, apply func()) bool {
	select {
	case <-ctx.Done():
		return false
	case a.events <- apply:
		return true
	}
}

// accept takes a complete view.
func (a *Agent) accept(v kbroker.ViewReply) {
	if !a.proven {
		a.reporter.all() // whoever lost what while we were not connected
	}
	a.view, a.proven = v, true
	a.heart.holds(v.Head.Revision)
}

// reconcile does what the plan says and reports what has changed. It returns
// when to do so again at the latest, 0 for never.
func (a *Agent) reconcile(ctx context.Context) time.Duration {
	now := state.Boottime()
	seen := make([]have, 0, len(a.instances))
	for _, i := range a.instances {
		h := i.have()
		if !a.proven {
			h.NextStart = max(h.NextStart, a.patience)
		}
		seen = append(seen, h)
	}
	actions, wake := plan(a.view.Placements, a.proven, seen, now)
	for _, act := range actions {
		inst := a.instances[act.Key]
		if inst == nil {
			inst = &instance{key: act.Key}
			a.instances[act.Key] = inst
		}
		a.act(ctx, inst, act, now)
	}
	for _, i := range a.instances {
		if i.speaks() {
			a.reporter.set(i.status(a.cfg.Host))
		}
	}
	a.sampler.runs(a.instances)
	return wake
}

// census tells the janitor who is known.
func (a *Agent) census(ctx context.Context) (census, bool) {
	answer := make(chan census, 1)
	ok := a.post(ctx, func() {
		c := census{proven: a.proven, known: make(map[kbroker.Incarnation]bool), pids: make(map[int]bool)}
		for _, i := range a.instances {
			if i.record.Incarnation != "" && i.runs() {
				c.known[i.record.Incarnation] = true
			}
			if i.process != nil {
				c.pids[i.process.id.PID] = true
			}
		}
		answer <- c
	})
	if !ok {
		return census{}, false
	}
	return <-answer, true
}

// named are the artifacts that something on this host may be started from.
func (a *Agent) named() map[string]bool {
	named := make(map[string]bool)
	for _, p := range a.view.Placements {
		named[p.Spec.Artifact.SHA256] = true
	}
	for _, i := range a.instances {
		named[i.placement.Spec.Artifact.SHA256] = true
		named[i.record.Placement.Spec.Artifact.SHA256] = true
	}
	return named
}

func (a *Agent) keys() []kbroker.StatusKey {
	return slices.SortedFunc(maps.Keys(a.instances), func(x, y kbroker.StatusKey) int {
		return cmp.Or(cmp.Compare(x.Tenant, y.Tenant), cmp.Compare(x.Instance, y.Instance))
	})
}
