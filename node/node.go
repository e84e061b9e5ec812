// Package node is the composition root of a host: it turns a configuration
// into running parts and stops them in order.
//
//	lock the directory -> end an upgrade that was cut off (trial.go) -> serve metrics (metrics.go)
//	-> end a rescue that was cut off (swap.go)
//	-> who am I (membership.json; found or join)
//	  core:   -> broker -> agent (heartbeats at once) and super (when JetStream answers)
//	  worker: -> agent, as a client of the cores
//
// When one part ends, all end: agent and super first, then the broker, then the
// heartbeat. Applications keep running, except on a host that was removed from its cluster.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/state"
)

// Config of a host. Where a field is not given and the data directory knows it
// from an earlier start, the directory's value holds.
type Config struct {
	Dir        string         // data directory; created 0700
	Name       kbroker.HostID // permanent; default: the machine's host name
	Role       kbroker.Role   // default core
	Found      bool           // found a new cluster, if Dir has none yet
	Join       []string       // client addresses (host:port) of cores to join through
	TokenFile  string         // has the join token, which is read when the host is to join; "-": standard input
	Advertise  string         // the IP that other hosts and clients reach this one at
	ClientPort int            // 0: a free one is picked at the first start, then it is kept
	RoutePort  int            // likewise
	Labels     map[string]string
	StockRaft  bool // stock raft timing and the times that go with it
	// CredentialLife is how long the credential of an instance holds that this core
	// signs; 0: an hour.
	CredentialLife time.Duration
	Log            *slog.Logger

	catchUp time.Duration // 0: catchUpWithin; more in tests that share the machine
}

// release is set by the linker: -X github.com/kbroker/kbroker/node.release=v1.2.3
var release string

// Version of this build: what the linker was told, else what the binary's build
// information has.
var Version = version()

func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// Run runs the host until ctx ends, then returns nil; applications keep
// running. Errors: Refused - another agent holds Dir, or the cluster does not
// admit this host, or has removed it: then its applications have been ended;
// Invalid - the configuration contradicts Dir.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	dir, err := agent.Lock(cfg.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := clearKeys(dir.Path); err != nil {
		cfg.Log.Warn("what a crash has left of files with keys is still there", "component", "node", "err", err)
	}
	settleUpgrade(dir.Path, cfg.Log.With("component", "node"))
	counted := openMetrics(dir.Path, cfg.Log.With("component", "node"))
	defer counted.close()
	if done, err := endRescue(dir.Path); err != nil {
		return err
	} else if done != nil {
		cfg.Log.Info("ended a rescue that was cut off", "component", "node", "object", done.Old)
	}
	m, err := establish(ctx, dir.Path, cfg, cfg.Log.With("component", "node"))
	if err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop while it waited to be admitted
		}
		return err
	}
	out, err := m.isOut(ctx, dir.Path)
	if err != nil {
		return err
	}
	if m.Removed || out { // the agent before may have been killed while it did this
		err = m.leave(ctx, dir)
	}
	switch {
	case m.Role == kbroker.RoleWorker && !m.Removed:
		err = runWorker(ctx, cfg, dir, m, counted)
	case m.Role == kbroker.RoleCore && !out:
		err = errors.Join(err, runCore(ctx, cfg, dir, m, counted))
	}
	if errors.Is(err, agent.ErrRemoved) {
		err = m.leave(ctx, dir)
	}
	if m.Removed {
		err = errors.Join(m.errRemoved(), err)
	}
	return err
}

// runWorker runs a host without a broker: a client of the cores. Its connection is made
// anew where nats.go cannot: for another key, or when it was given up.
func runWorker(ctx context.Context, cfg Config, dir *agent.Dir, m *membership, counted *metrics) error {
	log := cfg.Log.With("component", "node")
	for {
		err := runConnected(ctx, cfg, dir, m, counted)
		switch {
		case !errors.Is(err, errConnectAnew) || errors.Is(err, agent.ErrRemoved):
			return err
		case ctx.Err() != nil:
			return nil
		}
		log.Info("connecting to the cores anew; what runs here runs on", "host", m.Host, "err", err)
	}
}

// runConnected is runWorker with one connection.
func runConnected(ctx context.Context, cfg Config, dir *agent.Dir, m *membership, counted *metrics) error {
	key, err := m.shown()
	if err != nil {
		return err
	}
	cores, err := m.target()
	if err != nil {
		return err
	}
	log := cfg.Log.With("component", "node")
	// What runs here is adopted and kept running, whether a core is there or not.
	conn, err := cores.Connect(ctx, "kbroker agent "+string(m.Host), nats.RetryOnFailedConnect(true),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Debug("connection to the cores", "err", err) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	times := state.Tuned
	if cfg.StockRaft {
		times = state.Stock
	}
	a, err := newAgent(cfg, dir, m, conn, times, nil)
	if err != nil {
		return err
	}
	counted.MustRegister(a.Collector())
	defer counted.Unregister(a.Collector())
	nobody := func() []kbroker.HostID { return nil }
	return runAll(ctx, map[string]func(context.Context) error{
		"heartbeat":  a.Beat,
		"agent":      a.Run,
		"membership": func(ctx context.Context) error { return m.follow(ctx, a.Cores, nobody, log) },
		"credential": func(ctx context.Context) error { return m.stay(ctx, conn, key, log) },
		"upgrade":    func(ctx context.Context) error { return onTrial(ctx, dir.Path, a.Missing, log) },
	})
}

// runAll runs all parts until ctx or one of them ends.
func runAll(ctx context.Context, parts map[string]func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(parts))
	for name, run := range parts {
		go func() {
			err := run(ctx)
			if err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
			ended <- err
		}()
	}
	var all error
	for range parts {
		all = errors.Join(all, <-ended)
		cancel()
	}
	return all
}

func newAgent(
	cfg Config, dir *agent.Dir, m *membership, conn *nats.Conn, times state.Times,
	core func(context.Context) kbroker.CoreCheckup,
) (*agent.Agent, error) {
	capacity, err := agent.DetectCapacity()
	if err != nil {
		return nil, fmt.Errorf("detect capacity: %w", err)
	}
	executable, err := agent.Executable()
	if err != nil {
		return nil, err
	}
	roots, err := m.roots()
	if err != nil {
		return nil, err
	}
	labels := agent.DefaultLabels(m.Host, m.Role)
	maps.Copy(labels, cfg.Labels)
	life := time.Duration(0)
	if m.Role != kbroker.RoleWorker {
		life = cmp.Or(cfg.CredentialLife, credentialLife)
	}
	return agent.New(agent.Config{
		Dir: dir, Host: m.Host, Role: m.Role, Generation: m.Generation, Conn: conn, Labels: labels, Capacity: capacity,
		Client: m.Client, Route: m.Route, Address: m.address(cfg.Advertise), Servers: m.servers, CA: roots, Version: Version, Executable: executable,
		Times: times, Core: core, CredentialLife: life, Log: cfg.Log.With("component", "agent"),
	})
}

// Running reports whether an agent holds the data directory, and its pid.
func Running(dir string) (pid int, alive bool, err error) { return agent.Running(dir) }

// Sweep ends every process that was started for the data directory; see
// agent.Sweep.
func Sweep(ctx context.Context, dir string, grace time.Duration) (killed int, err error) {
	return agent.Sweep(ctx, dir, grace)
}

// url makes a server URL of a client address.
func url(addr string) string {
	if strings.Contains(addr, "://") {
		return addr
	}
	return "nats://" + addr
}
