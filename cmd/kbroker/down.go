package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

const (
	// downTimeout bounds `down`.
	downTimeout = 90 * time.Second
	// agentGrace is how long an agent may take to leave before it is killed,
	// killWait how long a killed one may take to be gone.
	agentGrace = 15 * time.Second
	killWait   = 10 * time.Second
	downPoll   = 50 * time.Millisecond
	// instanceGrace is how long applications may take to leave.
	instanceGrace = 10 * time.Second
)

// endedHost is what `down` has ended on one host.
type endedHost struct {
	Host      kbroker.HostID `json:"host"`
	PID       *int           `json:"pid"` // of the agent; null: it did not run
	Killed    bool           `json:"killed"`
	Processes int            `json:"processes"` // of applications
}

func (c *cli) downCommand() *cobra.Command {
	var dir string
	var del bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End the cluster on this machine",
		Long: `End the agents and the applications of the cluster in DIR, also those whose agent
is already dead. What the cluster stores stays for the next up, unless --delete
is given.`,
		Example:           "  kbroker down\n  kbroker down --dir /tmp/cluster --delete",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.onThisMachine(); err != nil {
				return err
			}
			ctx, cancel := c.within(cmd.Context(), downTimeout)
			defer cancel()
			return c.down(ctx, dir, del)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the cluster (default: KBROKER_DIR, else .kbroker here)")
	cmd.Flags().BoolVar(&del, "delete", false, "remove what the cluster has stored")
	must(cmd.MarkFlagDirname("dir"))
	return cmd
}

func (c *cli) down(ctx context.Context, flag string, del bool) error {
	dir, err := localDir(flag)
	if err != nil {
		return err
	}
	ended := []endedHost{}
	_, err = os.Stat(dir)
	there := err == nil
	if there {
		unlock, err := c.lockLocal(ctx, dir)
		if err != nil {
			return err
		}
		defer unlock()
		local, err := loadLocal(dir)
		if errors.Is(err, kbroker.Invalid) {
			local, err = &localCluster{dir: dir}, nil // the hosts' directories are enough
		}
		if err == nil {
			err = local.found()
		}
		if err != nil {
			return err
		}
		if ended, err = c.end(ctx, local); err != nil {
			return err
		}
		if del {
			if err := local.remove(); err != nil {
				return err
			}
		}
	}
	return c.print(ended, func(w io.Writer) { downText(w, dir, ended, there && del) })
}

// end ends the agents, then what they have started. All hosts at once.
func (c *cli) end(ctx context.Context, l *localCluster) ([]endedHost, error) {
	ended, failed := make([]endedHost, len(l.Hosts)), make([]error, len(l.Hosts))
	var hosts sync.WaitGroup
	for i, h := range l.Hosts {
		hosts.Go(func() { ended[i], failed[i] = endHost(ctx, h.Name, l.hostDir(h.Name)) })
	}
	hosts.Wait()
	return ended, errors.Join(failed...)
}

func endHost(ctx context.Context, h kbroker.HostID, dir string) (endedHost, error) {
	e := endedHost{Host: h}
	pid, alive, err := node.Running(dir)
	if err != nil {
		return e, fmt.Errorf("look at host %s: %w", h, err)
	}
	if err := node.EndUpgrade(dir); err != nil {
		return e, fmt.Errorf("end the upgrade of host %s: %w", h, err)
	}
	if alive {
		e.PID = &pid
		if err := signalAgent(ctx, dir, syscall.SIGTERM, agentGrace); errors.Is(err, errStillThere) {
			e.Killed = true
			err = signalAgent(ctx, dir, syscall.SIGKILL, killWait)
			if err != nil {
				return e, fmt.Errorf("end agent of host %s: %w", h, err)
			}
		} else if err != nil {
			return e, fmt.Errorf("end agent of host %s: %w", h, err)
		}
	}
	if e.Processes, err = node.Sweep(ctx, dir, instanceGrace); err != nil {
		return e, fmt.Errorf("end applications of host %s: %w", h, err)
	}
	return e, nil
}

var errStillThere = errors.New("it is still there")

// signalAgent signals the agent of a directory and waits until it has gone.
func signalAgent(ctx context.Context, dir string, sig syscall.Signal, patience time.Duration) error {
	pid, alive, err := node.Running(dir)
	if err != nil || !alive {
		return err
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process %d: %w", pid, err)
	}
	for deadline := time.Now().Add(patience); ; {
		_, alive, err := node.Running(dir)
		if err != nil || !alive {
			return err
		}
		if time.Now().After(deadline) {
			return errStillThere
		}
		select {
		case <-ctx.Done():
			return ctxError(ctx, "the end of the agents")
		case <-time.After(downPoll):
		}
	}
}

func downText(w io.Writer, dir string, ended []endedHost, del bool) {
	anything := false
	for _, e := range ended {
		if e.PID == nil && e.Processes == 0 {
			continue
		}
		anything = true
		agent := "its agent did not run"
		switch {
		case e.PID != nil && e.Killed:
			agent = fmt.Sprintf("agent %d killed", *e.PID)
		case e.PID != nil:
			agent = fmt.Sprintf("agent %d ended", *e.PID)
		}
		fmt.Fprintf(w, "%s: %s, %d application processes ended\n", e.Host, agent, e.Processes)
	}
	if !anything {
		fmt.Fprintf(w, "nothing ran in %s\n", dir)
	}
	if del {
		fmt.Fprintf(w, "%s is removed\n", dir)
	}
}
