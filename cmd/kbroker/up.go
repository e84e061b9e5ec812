package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/node"
)

const (
	// upTimeout bounds `up`, the demonstration included, upPerHost is what each
	// host adds: cores join one after the other.
	upTimeout = 60 * time.Second
	upPerHost = 2 * time.Second
	// upPoll is the pause between looks at the hosts, upAsk how long one look
	// may take.
	upPoll = 100 * time.Millisecond
	upAsk  = 2 * time.Second
	// maxLocalHosts bounds the hosts of one machine.
	maxLocalHosts = 200
	// defaultCores is how many hosts are cores before the others are workers.
	defaultCores = 3
	// replicasFrom is the number of cores from which the control store has
	// that many replicas.
	replicasFrom = 3
)

// upOutput is what `up -o json` prints.
type upOutput struct {
	Dir     string            `json:"dir"`
	Started []kbroker.HostID  `json:"started"` // the agents that were dead
	Hosts   []kbroker.HostRow `json:"hosts"`
	Answer  json.RawMessage   `json:"answer,omitempty"` // of the demonstration
}

func (c *cli) upCommand() *cobra.Command {
	var hosts, cores int
	var dir string
	var demo bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster on this machine",
		Long: `Start a cluster on this machine: real agents as real processes, on loopback. Run
again it starts only the agents that are dead; what was deployed comes back.
Without --hosts: as many hosts as the cluster has, one for a new one. The first
three (--cores) are cores, the others workers.`,
		Example: `  kbroker up --hosts 3 --demo
  kbroker up --hosts 5
  kbroker up --dir /tmp/cluster`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.onThisMachine(); err != nil {
				return err
			}
			if err := checkSize(cmd.Flags().Changed("hosts"), hosts, cores); err != nil {
				return err
			}
			if !cmd.Flags().Changed("hosts") {
				hosts = 0
			}
			ctx, cancel := c.within(cmd.Context(), upTimeout+time.Duration(hosts)*upPerHost)
			defer cancel()
			return c.up(ctx, dir, hosts, cores, demo)
		},
	}
	f := cmd.Flags()
	f.IntVar(&hosts, "hosts", 1, "number of hosts")
	f.IntVar(&cores, "cores", defaultCores, "number of hosts that are cores: 1, 3 or 5; the others are workers")
	f.StringVar(&dir, "dir", "", "directory of the cluster (default: KBROKER_DIR, else .kbroker here)")
	f.BoolVar(&demo, "demo", false, "deploy the service hello, which this binary carries, and call it")
	must(cmd.MarkFlagDirname("dir"))
	return cmd
}

// checkSize refuses sizes that no cluster of this machine has.
func checkSize(given bool, hosts, cores int) error {
	switch {
	case given && hosts < 1:
		return kbroker.Errorf(kbroker.Invalid, "--hosts is %d, want 1 or more", hosts).
			WithHint("kbroker down ends a cluster; kbroker remove HOST takes one host out of it")
	case hosts > maxLocalHosts:
		return kbroker.Errorf(kbroker.Invalid, "--hosts is %d, at most %d run on one machine", hosts, maxLocalHosts)
	case cores != 1 && cores != 3 && cores != 5:
		return kbroker.Errorf(kbroker.Invalid, "--cores is %d, want 1, 3 or 5", cores).
			WithHint("an even number of cores is no safer than one core less; other hosts are workers")
	}
	return nil
}

// up starts the dead agents of the cluster in dir, waits until all its hosts
// are ready, and says what to try.
func (c *cli) up(ctx context.Context, flag string, hosts, cores int, demo bool) error {
	dir, err := localDir(flag)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return kbroker.Errorf(kbroker.Invalid, "cannot make %s: %v", dir, reason(err))
	}
	unlock, err := c.lockLocal(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	local, err := loadLocal(dir)
	if err != nil {
		return err
	}
	notices, err := local.noteGone()
	if err != nil {
		return err
	}
	for _, n := range notices {
		c.say("%s", n)
	}
	c.server = dir // from here on this cluster is meant, whatever else names one
	if err := c.noteRemoved(ctx, local); err != nil {
		return err
	}
	if hosts == 0 {
		hosts = max(1, len(local.members()))
	}
	if have := len(local.members()); hosts < have {
		return kbroker.Errorf(kbroker.Invalid, "the cluster in %s has %d hosts, not %d", dir, have, hosts).
			WithHint("leave --hosts out, or end it with kbroker down --delete first")
	}
	if err := local.grow(hosts, cores); err != nil {
		return err
	}
	if err := local.forgetTokens(); err != nil { // those of an up that was killed
		return err
	}
	started, err := c.startDead(ctx, local, nil)
	var rows []kbroker.HostRow
	if err == nil {
		rows, err = c.awaitReady(ctx, local, started)
	}
	if gone := local.forgetTokens(); err == nil {
		err = gone
	}
	if err != nil {
		return err
	}
	out := upOutput{Dir: dir, Started: []kbroker.HostID{}, Hosts: rows}
	for _, s := range started {
		out.Started = append(out.Started, s.host)
	}
	if demo {
		if out.Answer, err = c.demonstrate(ctx); err != nil {
			return fmt.Errorf("demonstration: %w", err)
		}
		if rows, err := c.hosts(ctx, false); err == nil {
			out.Hosts = rows // with what runs on them now
		}
	}
	return c.print(out, func(w io.Writer) { c.upText(ctx, w, out, flag) })
}

func (c *cli) hosts(ctx context.Context, all bool) ([]kbroker.HostRow, error) {
	api, _, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	defer api.Close()
	return api.Hosts(ctx, all)
}

// startDead starts the agents that do not run, but for those that were started already:
// first those that need nobody, then, when the cluster makes tokens, those that join.
// Their tokens are there until forgetTokens.
func (c *cli) startDead(ctx context.Context, l *localCluster, already []spawned) ([]spawned, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	var started []spawned
	var joining []localHost
	for _, h := range l.members() {
		if slices.ContainsFunc(already, func(s spawned) bool { return s.host == h.Name }) {
			continue
		}
		_, alive, err := node.Running(l.hostDir(h.Name))
		if err != nil {
			return started, fmt.Errorf("look at host %s: %w", h.Name, err)
		}
		if alive {
			continue
		}
		needs, err := l.needsToken(h)
		if err != nil {
			return started, err
		}
		if needs {
			joining = append(joining, h)
			continue
		}
		s, err := l.spawn(self, h)
		if err != nil {
			return started, err
		}
		started = append(started, s)
	}
	for _, h := range joining {
		if err := c.makeToken(ctx, l, h, started); err != nil {
			return started, err
		}
		s, err := l.spawn(self, h)
		if err != nil {
			return started, err
		}
		started = append(started, s)
	}
	return started, nil
}

// awaitReady waits until every host of the cluster is ready and the control
// store takes writes on as many hosts as it should.
func (c *cli) awaitReady(ctx context.Context, l *localCluster, started []spawned) ([]kbroker.HostRow, error) {
	w := readiness{cli: c, cluster: l, waiting: "no host answers yet"}
	defer w.close()
	for {
		for _, s := range started {
			if err := s.ended(); err != nil {
				return nil, l.withLog(s.host, s.log, err)
			}
		}
		// One that was killed a moment before still looked alive.
		more, err := c.startDead(ctx, l, started)
		if err != nil {
			return nil, err
		}
		started = append(started, more...)
		if rows, ok := w.look(ctx); ok {
			return rows, nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			h := l.members()[0].Name
			if w.host != "" {
				h = w.host
			}
			return nil, l.withLog(h, 0, kbroker.Errorf(kbroker.DeadlineExceeded, "the cluster in %s is not ready: %s", l.dir, w.waiting).
				WithHint("kbroker up goes on where it is; the logs are %s/*/%s", l.dir, agentLog))
		case <-time.After(upPoll):
		}
	}
}

// readiness looks at a starting cluster and remembers what is missing.
type readiness struct {
	cli     *cli
	cluster *localCluster
	api     *client.Client
	waiting string         // what is missing
	host    kbroker.HostID // whose fault it is, if one host's
}

func (r *readiness) close() {
	if r.api != nil {
		r.api.Close()
	}
}

func (r *readiness) look(ctx context.Context) ([]kbroker.HostRow, bool) {
	ctx, cancel := context.WithTimeout(ctx, upAsk)
	defer cancel()
	if r.api == nil {
		err := r.cluster.trust()
		var api *client.Client
		if err == nil {
			api, _, err = r.cli.open(ctx)
		}
		if err != nil {
			r.missing("", "no host takes connections")
			return nil, false
		}
		r.api = api
	}
	rows, err := r.api.Hosts(ctx, false)
	if err != nil {
		r.missing("", err.Error())
		return nil, false
	}
	if host, what := r.cluster.unready(rows); what != "" {
		r.missing(host, what)
		return nil, false
	}
	s, err := r.api.Status(ctx)
	switch {
	case err != nil:
		r.missing("", err.Error())
	case s.Leader == nil || !slices.ContainsFunc(rows, func(row kbroker.HostRow) bool { return row.Super }):
		r.missing("", "there is no leader")
	case !s.Writable:
		r.missing("", "the control store takes no writes")
	case len(r.cluster.cores()) >= replicasFrom && s.Replicas < replicasFrom:
		r.missing("", fmt.Sprintf("the control store has %d of %d replicas", s.Replicas, replicasFrom))
	default:
		return rows, true
	}
	return nil, false
}

// unready tells what its hosts still miss, and the host whose fault it is, if one
// host's; empty when nothing.
func (l *localCluster) unready(rows []kbroker.HostRow) (host kbroker.HostID, what string) {
	for _, h := range l.Hosts {
		i := slices.IndexFunc(rows, func(row kbroker.HostRow) bool { return row.Name == h.Name })
		switch {
		case h.Removed && i >= 0 && rows[i].State == kbroker.HostReady:
			return "", fmt.Sprintf("the cluster has not noticed that host %s is gone", h.Name)
		case h.Removed:
			continue
		case i < 0:
			return h.Name, fmt.Sprintf("host %s is not admitted", h.Name)
		case rows[i].State != kbroker.HostReady:
			return h.Name, fmt.Sprintf("host %s is %s", h.Name, rows[i].State)
		}
		// For a moment a host still looks ready after its agent was killed.
		pid, alive, err := node.Running(l.hostDir(h.Name))
		if err != nil || !alive || rows[i].PID == nil || pid != *rows[i].PID {
			return h.Name, fmt.Sprintf("the cluster has not heard the agent of host %s", h.Name)
		}
	}
	return "", ""
}

// missing notes what is missing and tells it on a terminal.
func (r *readiness) missing(h kbroker.HostID, what string) {
	if what != r.waiting && isTerminal(r.cli.err) {
		r.cli.say("waiting: %s", what)
	}
	r.host, r.waiting = h, what
}

// upText says what runs and what to try. Commands are printed as they can be
// typed here.
func (c *cli) upText(ctx context.Context, w io.Writer, out upOutput, flag string) {
	c.hostsTable(w, out.Hosts)
	command, in, at := os.Args[0], "", ""
	if flag != "" {
		in, at = " --dir "+flag, " --context "+flag
	}
	if lacks := unenforced(out.Hosts); lacks != "" {
		fmt.Fprintf(w, "\nnot enforced here: %s\n", lacks)
	}
	if len(out.Answer) > 0 {
		fmt.Fprintf(w, "\nhello answers: %s\n", strings.TrimSpace(string(out.Answer)))
	}
	fmt.Fprintf(w, "\ntry:\n")
	if len(out.Answer) == 0 && !c.hasHello(ctx) {
		fmt.Fprintf(w, "  %s up%s --demo   # deploys hello\n", command, in)
	}
	fmt.Fprintf(w, "  %s call%s hello greet name=World\n", command, at)
	if victim, ok := aSuper(out.Hosts); ok {
		fmt.Fprintf(w, "  kill -9 %d   # %s, the super\n", *victim.PID, victim.Name)
		fmt.Fprintf(w, "  %s up%s   # brings it back\n", command, in)
	}
	fmt.Fprintf(w, "  %s down%s   # ends everything\n", command, in)
}

func aSuper(rows []kbroker.HostRow) (kbroker.HostRow, bool) {
	for _, r := range rows {
		if r.Super && r.PID != nil {
			return r, true
		}
	}
	return kbroker.HostRow{}, false
}
