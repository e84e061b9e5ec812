package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/node"
)

const (
	// trialPoll is the pause between looks at what becomes of an upgrade.
	trialPoll = 200 * time.Millisecond
	// guardReady is the file by which a guard says that it watches: the first that
	// its parent gives it.
	guardReady = 3
)

// upgradeGuardCommand is what an agent starts before it executes a new program.
func (c *cli) upgradeGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use:               node.GuardProgram + " DIR",
		Short:             "Watch the new program of the agent of DIR, its parent, and return to the old one",
		Example:           "  kbroker builtin " + node.GuardProgram + " /var/lib/kbroker",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			log := newLogger(c.err).With("component", "guard")
			return node.RunGuard(cmd.Context(), args[0], c.in, os.NewFile(guardReady, "ready"), log)
		},
	}
}

// restart has the agent execute the new program, and waits until it has passed and
// the host is back. keep: the host is not, and its leave is to be kept.
func (u *upgrade) restart(ctx context.Context, api *client.Client) (keep bool, err error) {
	output := outputOf(u.dir)
	at := time.Now()
	asked, err := node.AskUpgrade(u.dir, node.UpgradeOrder{Binary: u.binary, From: u.result.From, To: u.result.To, Gate: u.gate})
	if err != nil {
		return false, err
	}
	u.result.Replaced = asked.Next != ""
	ctx, cancel := context.WithTimeout(ctx, u.limit)
	defer cancel()
	last, err := u.decided(ctx, asked)
	if err != nil {
		return true, err
	}
	if last.Phase == node.UpgradeReturned {
		title, lines := output.read() // before the old program writes to it
		back, err := u.refused(ctx, api, last)
		if len(lines) > 0 {
			err = &outputError{error: err, title: title, lines: lines}
		}
		return !back, err
	}
	if u.result.Replaced {
		u.result.Previous = asked.Program + node.PreviousSuffix
	}
	got, err := api.FollowRestart(ctx, u.member.Host, u.member.Process, func(missing string) { u.say("waiting: %s", missing) })
	u.result.TookS = time.Since(at).Seconds()
	switch {
	case errors.Is(err, kbroker.DeadlineExceeded):
		return true, kbroker.Errorf(kbroker.Failed, "host %s is not back after %v: %v", u.member.Host, u.limit, err).WithHint("%s", u.wayBack())
	case err != nil:
		return true, err
	case got.Version != u.result.To:
		return true, kbroker.Errorf(kbroker.Failed, "host %s runs version %s, not %s", u.member.Host, got.Version, u.result.To).WithHint("%s", u.wayBack())
	}
	return false, nil
}

// decided waits until the upgrade is.
func (u *upgrade) decided(ctx context.Context, asked node.Upgrade) (node.Upgrade, error) {
	shown := ""
	tick := time.NewTicker(trialPoll)
	defer tick.Stop()
	for {
		last, err := node.LastUpgrade(u.dir)
		switch {
		case err != nil:
			return last, err
		case last.ID != asked.ID:
			return last, kbroker.Errorf(kbroker.Failed, "somebody else upgrades host %s: to version %s", u.member.Host, last.To)
		case last.Over():
			return last, nil
		}
		if lacks := last.Lacks(u.dir); lacks != shown {
			if shown = lacks; lacks != "" {
				u.say("waiting: %s", lacks)
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return last, kbroker.Errorf(kbroker.Failed, "not waited for: the upgrade of host %s to version %s goes on without this command", u.member.Host, asked.To).
					WithHint("the host returns to the old version by itself if the new one does not pass; kbroker hosts shows which one it runs")
			}
			return last, kbroker.Errorf(kbroker.Failed, "the upgrade of host %s is not decided after %v", u.member.Host, u.limit).WithHint("%s", u.wayBack())
		case <-tick.C:
		}
	}
}

// refused waits until the host is back on the old version, and says why.
func (u *upgrade) refused(ctx context.Context, api *client.Client, last node.Upgrade) (back bool, err error) {
	why := fmt.Sprintf("version %s was refused: %s", last.To, last.Reason)
	got, err := api.FollowRestart(ctx, u.member.Host, u.goneProcess(), func(missing string) { u.say("going back: %s", missing) })
	if err != nil {
		return false, kbroker.Errorf(kbroker.Failed, "host %s is not back on version %s: %v; %s", u.member.Host, last.From, err, why).WithHint("%s", u.wayBack())
	}
	e := kbroker.Errorf(kbroker.Failed, "host %s is back on version %s; %s", u.member.Host, got.Version, why)
	if last.Next == "" {
		return true, e
	}
	return true, e.WithHint("no application was restarted; the refused program is %s", last.Program+node.RefusedSuffix)
}

// goneProcess is the start of the agent that was asked, empty when it goes on.
func (u *upgrade) goneProcess() string {
	if now, err := node.MemberOf(u.dir); err == nil && now.Process == u.member.Process {
		return ""
	}
	return u.member.Process
}

// wayBack says how to run what ran before.
func (u *upgrade) wayBack() string {
	h := fmt.Sprintf("the agent's log says why (journalctl -u kbroker, or agent.log in %s). ", u.dir)
	if u.result.Previous != "" {
		h += fmt.Sprintf("Back to the old program: mv %s %s && ", u.result.Previous, u.member.Program)
	} else {
		h += "To start it again: "
	}
	if pid, alive, err := node.Running(u.dir); err == nil && alive {
		return h + fmt.Sprintf("kill -USR2 %d", pid)
	}
	return h + fmt.Sprintf("systemctl restart kbroker, or %s agent --dir %s", u.member.Program, u.dir)
}

// agentOutput is where an agent writes, from a moment on.
type agentOutput struct {
	path  string // a file; empty: it may be the journal
	start int64
}

// outputOf is where the agent of dir writes from now on.
func outputOf(dir string) agentOutput {
	pid, alive, err := node.Running(dir)
	if err != nil || !alive {
		return agentOutput{}
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pid))
	if err != nil {
		return agentOutput{}
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return agentOutput{}
	}
	return agentOutput{path: path, start: info.Size()}
}

// read is the end of the output, as far as it can be read.
func (o agentOutput) read() (title string, lines []string) {
	if o.path != "" {
		lines, _ = logEnd(o.path, o.start) // it explains, and is no more needed
		return "last lines of the log:", lines
	}
	if !(systemd{}).running() {
		return "", nil
	}
	if o, ok := errors.AsType[*outputError](systemd{}.withJournal(errors.New("refused"))); ok {
		return o.title, o.lines
	}
	return "", nil
}
