// Command bench measures requests, replies and connections of the SDK against those of
// other ways to do the same and of an earlier commit, in separate processes on clusters
// of three hosts.
//
//	runner --up--> kbroker: three hosts, a folder and ports of its own
//	   |--up-----> the earlier kbroker, likewise, if there is one
//	   |---------> responders: for each side one process per host
//	   '---------> callers: one process per round; rounds of our side and of
//	               the others take turns, so that what else happens on the
//	               machine touches all alike
//
// The last line that it prints is one JSON object: what our side did per second divided
// by what another did, by load. README.md says how to read the rest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kbroker/kbroker/bench/child"
)

func main() {
	switch args := os.Args[1:]; {
	case child.Is(args):
		os.Exit(child.Main(args[0], everybody()...))
	case len(args) == 1 && args[0] == objectsRole:
		serveObjects()
		return
	case len(args) == 2 && args[0] == natsServerRole:
		if err := serveNATS(args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := runAll(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if ctx.Err() != nil {
		err = errors.New("interrupted") // whatever else failed, failed for that
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings are what the flags say.
type settings struct {
	bin, before string
	servers     []string
	objects     bool
	stores      []string
	million     bool
	count       int // of objects
	activate    int // of them
	ups         int
	plan        Plan // without sides
}

func parse(args []string) (s settings, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&s.bin, "bin", "", "the kbroker program that the cluster is made of")
	f.StringVar(&s.before, "before", "", "compare with the earlier commit in this `folder`, in which bin/kbroker and bin/bench were built")
	servers := f.String("servers", "", "measure on these `URLs`, comma-separated, instead of a cluster of its own")
	callers := f.String("callers", "1,16,128", "concurrent callers, comma-separated; empty: no requests")
	sizes := f.String("sizes", "128,1024", "payload sizes of requests in bytes, comma-separated")
	connects := f.String("connects", "1,16", "connections made at once, comma-separated; empty: none")
	objects := f.String("objects", "", "measure these of objects instead, comma-separated: update, read, cold, idle; or million alone: many of them")
	f.IntVar(&s.count, "count", 1_000_000, "of -objects million, how many are stored")
	f.IntVar(&s.activate, "activate", 100_000, "of -objects million, how many are activated")
	stores := f.String("stores", "kv,postgres,redis", "what updates of objects are compared with, comma-separated")
	f.IntVar(&s.ups, "ups", 0, "how often a cluster is started for the time that it takes")
	f.IntVar(&s.plan.Rounds, "rounds", 5, "rounds of each side, of which medians are taken")
	f.DurationVar(&s.plan.Length, "time", 2*time.Second, "length of a round")
	f.DurationVar(&s.plan.WarmUp, "warmup", 500*time.Millisecond, "load before each round that is not measured")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if *servers != "" {
		s.servers = strings.Split(*servers, ",")
	}
	switch {
	case f.NArg() > 0:
		return s, fmt.Errorf("%q is no flag", f.Arg(0))
	case (s.bin == "") == (s.servers == nil):
		return s, errors.New("exactly one of -bin and -servers is needed")
	case s.bin == "" && (s.before != "" || s.ups > 0):
		return s, errors.New("-before and -ups need -bin: they start clusters")
	case s.ups < 0:
		return s, fmt.Errorf("-ups is %d, want 0 or more", s.ups)
	}
	if s.objects = *objects != ""; s.objects {
		if s.bin == "" {
			return s, errors.New("-objects needs -bin: it starts a cluster")
		}
		s.stores = strings.Split(*stores, ",")
		if *stores == "" {
			s.stores = nil
		}
		if s.million = *objects == whatMillion; s.million {
			if s.count < 1 || s.activate < 1 {
				return s, fmt.Errorf("-count %d, -activate %d, want 1 or more", s.count, s.activate)
			}
			return s, nil
		}
		s.plan.Loads, err = objectLoads(*callers, *objects)
		return s, err
	}
	s.plan.Loads, err = loadsOf(*callers, *sizes, *connects)
	if err == nil && len(s.plan.Loads) == 0 && s.ups == 0 {
		err = errors.New("-callers, -connects and -ups leave nothing to measure")
	}
	return s, err
}

// loadsOf are requests of all sizes by all numbers of callers, then connections with a
// plain one each.
func loadsOf(callers, sizes, connects string) ([]Load, error) {
	requests, err := numbers(callers)
	if err != nil {
		return nil, fmt.Errorf("-callers: %w", err)
	}
	payloads, err := numbers(sizes)
	if err != nil {
		return nil, fmt.Errorf("-sizes: %w", err)
	}
	connections, err := numbers(connects)
	if err != nil {
		return nil, fmt.Errorf("-connects: %w", err)
	}
	var loads []Load
	for _, bytes := range payloads {
		for _, n := range requests {
			loads = append(loads, Load{whatRequest, n, bytes})
		}
	}
	for _, n := range connections {
		loads = append(loads, Load{whatConnect, n, plainBytes})
	}
	return loads, nil
}

// numbers reads a list; an empty one has none.
func numbers(list string) ([]int, error) {
	var out []int
	if list == "" {
		return nil, nil
	}
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%q is not a number", s)
		}
		out = append(out, n)
	}
	return out, nil
}

func runAll(ctx context.Context, args []string, out, progress io.Writer) error {
	s, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.million {
		return s.measureMillion(ctx, out, progress)
	}
	builds := []build{{own.Name(), s.bin}}
	if s.before != "" {
		builds = append(builds, build{nameBefore, filepath.Join(s.before, "bin", "kbroker")})
	}
	ups, err := measureUp(ctx, builds, s.ups, progress)
	if err != nil {
		return err
	}
	var results []Result
	if len(s.plan.Loads) > 0 {
		measure := s.measureLoads
		if s.objects {
			measure = s.measureObjects
		}
		if results, err = measure(ctx, progress); err != nil {
			return err
		}
	}
	return Print(out, ups, results)
}

// measureLoads starts the clusters, measures, and takes them down.
func (s settings) measureLoads(ctx context.Context, progress io.Writer) (results []Result, err error) {
	now := Cluster{Servers: s.servers}
	if s.bin == "" {
		now.Environ = inherited()
	} else {
		fmt.Fprintln(progress, "starting three hosts")
		c, failed := startCluster(ctx, s.bin)
		if failed != nil {
			return nil, failed
		}
		defer func() { err = errors.Join(err, c.close()) }()
		now = c.Cluster
	}
	p := s.plan
	p.Sides = sidesOn(now)
	if s.before != "" {
		fmt.Fprintln(progress, "starting three hosts of", s.before)
		c, failed := startCluster(ctx, filepath.Join(s.before, "bin", "kbroker"))
		if failed != nil {
			return nil, failed
		}
		defer func() { err = errors.Join(err, c.close()) }()
		program, failed := filepath.Abs(filepath.Join(s.before, "bin", "bench"))
		if failed != nil {
			return nil, failed
		}
		p.Sides = append(p.Sides, sideBefore(program, c.Cluster))
	}
	return Run(ctx, p, progress)
}

// inherited is what the environment says of the cluster of -servers.
func inherited() []string {
	var environ []string
	for _, name := range []string{envCA, envCreds} {
		if v := os.Getenv(name); v != "" {
			environ = append(environ, name+"="+v)
		}
	}
	return environ
}
