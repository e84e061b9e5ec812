// Package node is the composition root of a host: it turns a configuration
// into running parts and stops them in order.
//
//	lock the directory -> who am I (membership.json; found or join) -> broker
//	  -> agent (heartbeats at once) and super (when JetStream answers)
//
// When one part ends, all end: agent and super first, then the broker.
// Applications keep running.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/broker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/super"
)

// Config of a host. Where a field is not given and the data directory knows it
// from an earlier start, the directory's value holds.
type Config struct {
	Dir        string         // data directory; created 0700
	Name       kbroker.HostID // permanent; default: the machine's host name
	Role       kbroker.Role   // default core
	Found      bool           // found a new cluster, if Dir has none yet
	Join       []string       // client addresses (host:port) of cores to join through
	Advertise  string         // the IP that other hosts and clients reach this one at
	ClientPort int            // 0: the kernel picks one at the first start, then it is kept
	RoutePort  int            // likewise
	Labels     map[string]string
	StockRaft  bool // stock raft timing and the times that go with it
	Log        *slog.Logger
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
// admit this host; Invalid - the configuration contradicts Dir.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := agent.Lock(cfg.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	m, err := establish(ctx, dir.Path, cfg, cfg.Log.With("component", "node"))
	if err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop while it waited to be admitted
		}
		return err
	}
	b, err := broker.New(broker.Config{
		Host: m.Host, Dir: brokerDir(dir.Path), ClusterID: m.ClusterID,
		ClientAddr: m.Client, RouteAddr: m.Route, Found: m.Founded, Cores: m.Cores,
		StockRaft: cfg.StockRaft, Log: cfg.Log.With("component", "broker"),
	})
	if err != nil {
		return err
	}
	brokerCtx, stopBroker := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBroker()
	brokerEnded := make(chan error, 1)
	var brokerRun sync.WaitGroup
	brokerRun.Go(func() { brokerEnded <- b.Run(brokerCtx) })
	defer brokerRun.Wait()
	defer stopBroker()

	partsCtx, stopParts := context.WithCancel(ctx)
	defer stopParts()
	partsEnded := make(chan error, 1)
	var partsRun sync.WaitGroup
	partsRun.Go(func() { partsEnded <- runParts(partsCtx, cfg, dir, m, b) })
	defer partsRun.Wait()
	defer stopParts()

	select {
	case err := <-partsEnded:
		stopBroker()
		return errors.Join(err, <-brokerEnded)
	case err := <-brokerEnded:
		stopParts()
		if err == nil {
			err = fmt.Errorf("the broker ended")
		}
		return errors.Join(fmt.Errorf("broker: %w", err), <-partsEnded)
	}
}

// runParts runs what lives on the broker: agent and super.
func runParts(ctx context.Context, cfg Config, dir *agent.Dir, m *membership, b *broker.Broker) error {
	select {
	case <-b.Listening():
	case <-ctx.Done():
		return nil
	}
	conn, err := b.Connect(nats.Name("kbroker agent " + string(m.Host)))
	if err != nil {
		return fmt.Errorf("connect to the own broker: %w", err)
	}
	defer conn.Close()
	a, s, err := parts(cfg, dir, m, b, conn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 3)
	for name, run := range map[string]func(context.Context) error{
		"agent": a.Run, "super": s.Run,
		"membership": func(ctx context.Context) error { return m.follow(ctx, s.Cores, cfg.Log.With("component", "node")) },
	} {
		go func() {
			err := run(ctx)
			if err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
			ended <- err
		}()
	}
	first := <-ended
	cancel()
	return errors.Join(first, <-ended, <-ended)
}

func parts(cfg Config, dir *agent.Dir, m *membership, b *broker.Broker, conn *nats.Conn) (*agent.Agent, *super.Super, error) {
	times := state.Tuned
	if !b.RaftTuned() {
		times = state.Stock
	}
	capacity, err := agent.DetectCapacity()
	if err != nil {
		return nil, nil, fmt.Errorf("detect capacity: %w", err)
	}
	executable, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find the own executable: %w", err)
	}
	labels := agent.DefaultLabels(m.Host)
	maps.Copy(labels, cfg.Labels)
	a, err := agent.New(agent.Config{
		Dir: dir, Host: m.Host, Role: m.Role, Conn: conn, Labels: labels, Capacity: capacity,
		Client: m.Client, Route: m.Route, Servers: m.servers, Version: Version, Executable: executable,
		Times: times, Log: cfg.Log.With("component", "agent"),
	})
	if err != nil {
		return nil, nil, err
	}
	s, err := super.New(super.Config{
		Host: m.Host, Process: dir.Process, Earlier: dir.Earlier, ClusterID: m.ClusterID, Found: m.Founded,
		Dir: filepath.Join(dir.Path, "core"), Conn: conn, Times: times, Log: cfg.Log.With("component", "super"),
		Members: func() super.Members {
			seen := b.Members()
			return super.Members{Known: seen.Leader, Current: seen.Current, Replicas: seen.Replicas, Writable: b.Writable()}
		},
		Look: b.Look,
	})
	return a, s, err
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
