package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/node"
)

const (
	// upgradeTimeout is how long a host may take to be back, with a gate of up to
	// 45 s; with a longer one a minute more than that takes.
	upgradeTimeout = 2 * time.Minute
	// leaveTimeout bounds asking for the leave, and giving it back.
	leaveTimeout = 30 * time.Second
)

// upgradeResult is what `agent upgrade` prints.
type upgradeResult struct {
	Host     kbroker.HostID `json:"host"`
	From     string         `json:"from"` // version before
	To       string         `json:"to"`
	Replaced bool           `json:"replaced"`           // it executes another program
	Previous string         `json:"previous,omitempty"` // where the old program is kept
	TookS    float64        `json:"took_s"`             // from the signal until it was back
}

func (c *cli) agentUpgradeCommand() *cobra.Command {
	u := upgrade{cli: c}
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Upgrade or restart this host's agent without failing a request",
		Long: `Upgrade this host's agent, or restart it, without failing a request: applications
run on, and none of them is restarted. Run it on the host, as the user of the agent.

It asks the cluster for leave (one host at a time; refused, exit code 4, while
another core is down or behind), has the agent execute the program of --binary on
trial, and waits until the host is ready, its core has caught up and writes succeed.
Without --binary the program that is on disk now is executed: what a package manager
has put there. The data directory names the cluster; no context is needed.

A program that is not in order within the gate (30 s), or that ends before it has
been for a third of it, is refused: the host returns to the old one by itself, also
when this command is gone. The new program takes the place of the old one when it
has passed, the old one is kept as .previous; until then a boot starts the old one.

Several hosts are upgraded in turn, each when the one before is done:
  for h in a b c; do
    scp kbroker $h:/tmp/kbroker && ssh $h kbroker agent upgrade --binary /tmp/kbroker || break
  done
Exit code 1: the host is back on the old version, and the output says why the new one
was refused; or the host is not back in time, and the hosts that follow are refused.
kbroker doctor names hosts of other versions.`,
		Example: `  kbroker agent upgrade --binary /tmp/kbroker
  kbroker agent upgrade --binary /tmp/kbroker --gate 1m    # a core with much to read at its start
  kbroker agent upgrade --dir .kbroker/h1`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return u.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&u.dir, "dir", defaultAgentDir, "data directory of the host")
	f.StringVar(&u.binary, "binary", "", "the new program, a `file`")
	f.DurationVar(&u.gate, "gate", node.DefaultGate, "how long the new program may be ill")
	must(cmd.MarkFlagDirname("dir"))
	must(cmd.MarkFlagFilename("binary"))
	return cmd
}

// upgrade is one of one host.
type upgrade struct {
	*cli
	dir, binary string
	gate        time.Duration

	limit  time.Duration
	member node.Member
	result upgradeResult
}

func (u *upgrade) run(ctx context.Context) error {
	if err := needLinux(); err != nil {
		return err
	}
	if err := u.prepare(ctx); err != nil {
		return err
	}
	// The directory knows its cluster; what the environment names may be another.
	target := client.Target{
		Servers: u.member.Servers, CA: u.member.CA, Credential: u.member.Credential,
		Tenant: kbroker.DefaultTenant, Source: u.member.Source,
	}
	if target.Credential == "" { // a worker may not say that it leaves: an operator does
		person, err := client.Find("")
		if err != nil {
			return err
		}
		target = target.Borrow(person)
	}
	api, err := client.Open(ctx, target, "kbroker agent upgrade")
	if err != nil {
		return err
	}
	defer api.Close()
	rows, err := api.Hosts(ctx, false)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.Name == u.member.Host {
			u.result.From = r.Version
		}
	}
	holder := rand.Text()
	asking, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	leave, err := api.Maintain(asking, u.member.Host, holder, u.gate+node.GoesBackWithin)
	if err != nil {
		return err
	}
	if leave.Warning != "" {
		u.say("warning: %s", leave.Warning)
	}
	keep, err := u.restart(ctx, api)
	if keep {
		// The leave is kept: who upgrades host after host is to stop here.
		return err
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if endErr := api.EndMaintain(ending, u.member.Host, holder); endErr != nil {
		u.say("warning: the leave is not given back, it lapses within %v: %v", kbroker.MaintenanceLimit, endErr)
	}
	if err != nil {
		return err
	}
	return u.print(u.result, u.text)
}

// prepare checks all that can be checked without the cluster.
func (u *upgrade) prepare(ctx context.Context) (err error) {
	if u.server != "" {
		return kbroker.Errorf(kbroker.Invalid, "the data directory names the cluster").WithHint("leave --context out; --dir names the directory")
	}
	u.limit = max(upgradeTimeout, u.gate*4/3+time.Minute)
	if u.timeout > 0 {
		u.limit = time.Duration(u.timeout)
	}
	if u.gate < node.MinGate || u.gate > node.MaxGate {
		return kbroker.Errorf(kbroker.Invalid, "--gate is %v, want %v to %v", u.gate, node.MinGate, node.MaxGate)
	}
	if u.limit > kbroker.MaintenanceLimit {
		return kbroker.Errorf(kbroker.Invalid, "--timeout is %v, the leave of a host lapses after %v", u.limit, kbroker.MaintenanceLimit)
	}
	if u.binary != "" {
		if u.result.To, err = u.checkBinary(ctx); err != nil {
			return err
		}
	}
	if u.member, err = node.MemberOf(u.dir); err != nil {
		return err
	}
	u.result.Host = u.member.Host
	if u.binary == "" {
		version, err := node.CheckProgram(ctx, u.member.Program)
		if err != nil {
			return kbroker.AsError(err).WithHint("the agent's program is what is wrong; --binary FILE puts another one in its place")
		}
		u.result.To = version.Version
	}
	return nil
}

// checkBinary tells the version of the program of --binary. Invalid: no agent
// can be made of it.
func (u *upgrade) checkBinary(ctx context.Context) (version string, err error) {
	// A name without a slash would be looked for in PATH.
	if u.binary, err = filepath.Abs(u.binary); err != nil {
		return "", fmt.Errorf("file %s: %w", u.binary, err)
	}
	info, err := os.Stat(u.binary)
	switch {
	case err != nil:
		return "", kbroker.AsError(inputError(u.binary, err)).WithHint("--binary names the new kbroker, a file on this host")
	case !info.Mode().IsRegular():
		return "", kbroker.Errorf(kbroker.Invalid, "%s is not a file", u.binary).WithHint("--binary names the new kbroker, a file on this host")
	case info.Mode().Perm()&0o111 == 0:
		return "", kbroker.Errorf(kbroker.Invalid, "%s is not executable", u.binary).WithHint("chmod +x %s", u.binary)
	}
	v, err := node.CheckProgram(ctx, u.binary)
	if refused, ok := errors.AsType[*kbroker.Error](err); ok {
		return "", kbroker.Errorf(kbroker.Invalid, "%s", refused.Message).
			WithHint("--binary names a kbroker for this machine: it has to answer to `%s version`; nothing was changed", u.binary)
	}
	return v.Version, err
}

func (u *upgrade) text(w io.Writer) {
	r := u.result
	what := fmt.Sprintf("version %s", r.To)
	if r.From != r.To && r.From != "" {
		what = fmt.Sprintf("version %s instead of %s", r.To, r.From)
	}
	fmt.Fprintf(w, "host %s runs %s, back after %.1f s\n", r.Host, what, r.TookS)
}
