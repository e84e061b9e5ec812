// Command bench measures requests and replies of the SDK against those of other
// ways to do the same, in separate processes on one cluster of three hosts.
//
//	runner --up--> kbroker: three hosts, a folder and ports of its own
//	   |---------> responders: for each peer one process per host
//	   '---------> callers: one process per round; rounds of the SDK and of
//	               the peers take turns, so that what else happens on the
//	               machine touches all alike
//
// The last line that it prints is one JSON object: the SDK's requests per
// second divided by the peer's, by load. README.md says how to read the rest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if isChild(os.Args[1:]) {
		os.Exit(childMain(os.Args[1]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := runAll(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func runAll(ctx context.Context) (err error) {
	bin := flag.String("bin", "", "the kbroker program that the cluster is made of")
	servers := flag.String("servers", "", "measure on these `URLs`, comma-separated, instead of a cluster of its own")
	callers := flag.String("callers", "1,16,128", "concurrent callers, comma-separated")
	sizes := flag.String("sizes", "128,1024", "payload sizes in bytes, comma-separated")
	rounds := flag.Int("rounds", 5, "rounds of each side, of which medians are taken")
	length := flag.Duration("time", 2*time.Second, "length of a round")
	warmUp := flag.Duration("warmup", 500*time.Millisecond, "load before each round that is not measured")
	flag.Parse()
	p := Plan{Rounds: *rounds, WarmUp: *warmUp, Length: *length}
	if p.Callers, err = numbers(*callers); err != nil {
		return fmt.Errorf("-callers: %w", err)
	}
	if p.Sizes, err = numbers(*sizes); err != nil {
		return fmt.Errorf("-sizes: %w", err)
	}
	switch {
	case (*bin == "") == (*servers == ""):
		return errors.New("exactly one of -bin and -servers is needed")
	case *servers != "":
		p.Servers = strings.Split(*servers, ",")
	default:
		fmt.Fprintln(os.Stderr, "starting three hosts")
		c, err := startCluster(ctx, *bin)
		if err != nil {
			return err
		}
		p.Servers = c.servers
		defer func() { err = errors.Join(err, c.close()) }()
	}
	all, err := Run(ctx, p, os.Stderr)
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted") // whatever else failed, failed for that
	case err != nil:
		return err
	}
	return Print(os.Stdout, all)
}

func numbers(list string) ([]int, error) {
	var out []int
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%q is not a number", s)
		}
		out = append(out, n)
	}
	return out, nil
}
