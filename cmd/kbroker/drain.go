package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// hostResult is what commands that change a host print.
type hostResult struct {
	Host      kbroker.HostID `json:"host"`
	Done      bool           `json:"done"`      // false: it goes on
	Unchanged bool           `json:"unchanged"` // it was so already
}

func (c *cli) drainCommand() *cobra.Command {
	var detach, force bool
	cmd := &cobra.Command{
		Use:   "drain HOST",
		Short: "Move everything away from a host",
		Long: `Move everything away from a host: it takes no new instances, and those that it
runs leave one by one, each when another one elsewhere has been ready for the
time that its service asks for. Waits until the last has left, however long that
takes unless --timeout says (exit code 6; the drain goes on then). The host stays
drained, also after a restart, until undrain.

What no other host can take stays where it is and is named, unless --force.`,
		Example: `  kbroker drain h2
  kbroker drain h2 --timeout 5m
  kbroker drain h2 --force --detach`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := c.within(cmd.Context(), 0)
			defer cancel()
			return c.changeHost(ctx, args[0], func(api *client.Client, host kbroker.HostID) (hostResult, string, error) {
				reply, err := api.Drain(ctx, host, force)
				if err != nil {
					return hostResult{}, "", err
				}
				if detach {
					return hostResult{Unchanged: reply.Unchanged}, "is draining", nil
				}
				shown := drains{changes: changes{cli: c}}
				if err := api.FollowDrain(ctx, host, shown.show); err != nil {
					return hostResult{}, "", shown.left(err)
				}
				return hostResult{Done: true, Unchanged: reply.Unchanged}, "is empty", nil
			})
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until the last instance has left")
	cmd.Flags().BoolVar(&force, "force", false, "stop what no other host can take")
	return cmd
}

func (c *cli) undrainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "undrain HOST",
		Short: "Let a host take instances again",
		Long: `Let a host take instances again. What left it does not come back by itself: new
instances do.`,
		Example:           "  kbroker undrain h2",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			return c.changeHost(ctx, args[0], func(api *client.Client, host kbroker.HostID) (hostResult, string, error) {
				reply, err := api.Undrain(ctx, host)
				return hostResult{Done: true, Unchanged: reply.Unchanged}, "takes instances", err
			})
		},
	}
}

func (c *cli) removeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove HOST",
		Short: "Take a host out of the cluster for good",
		Long: `Take a host out of the cluster for good: one that was drained, or one that is
lost. Should a lost one come back, it ends everything and does not run again.

A core that is there is not removed from three, because two cannot lose another:
join one first. Of two, the one that holds only copies can be removed: one core
without a copy is left. A lost core is removed first and replaced then; the name
of a core is used once.`,
		Example: `  kbroker drain h3 && kbroker remove h3
  kbroker remove h3    # it is lost; then join another core`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			return c.changeHost(ctx, args[0], func(api *client.Client, host kbroker.HostID) (hostResult, string, error) {
				reply, err := api.Remove(ctx, host)
				return hostResult{Done: true, Unchanged: reply.Unchanged}, "is removed", err
			})
		},
	}
}

// changeHost makes one change of a host and prints it; the change says in words
// what the host does then.
func (c *cli) changeHost(ctx context.Context, name string, change func(*client.Client, kbroker.HostID) (hostResult, string, error)) error {
	if err := kbroker.CheckName("host", name); err != nil {
		return err
	}
	api, _, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer api.Close()
	result, now, err := change(api, kbroker.HostID(name))
	if err != nil {
		return err
	}
	result.Host = kbroker.HostID(name)
	return c.print(result, func(w io.Writer) { fmt.Fprintf(w, "%s %s\n", name, now) })
}

// drains prints what is new in each look at a host that drains.
type drains struct {
	changes
	waiting string
	last    client.DrainProgress
}

func (d *drains) show(p client.DrainProgress) {
	d.last = p
	d.changes.show(client.Progress{Instances: p.Instances})
	if now := strings.Join(p.Waiting, "; "); now != d.waiting {
		d.waiting = now
		if now != "" {
			d.cli.say("  waiting: %s", now)
		}
	}
}

// left names, in the error of a drain that took too long, what is left and why.
func (d *drains) left(err error) error {
	if !errors.Is(err, kbroker.DeadlineExceeded) {
		return err
	}
	var left []string
	for _, r := range d.last.Instances {
		left = append(left, fmt.Sprintf("%s (%s)", *r.Instance, r.State))
	}
	hint := "still there: " + strings.Join(left, ", ")
	if len(d.last.Waiting) > 0 {
		hint += "; no room elsewhere: " + strings.Join(d.last.Waiting, "; ")
	}
	return kbroker.AsError(err).WithHint("%s", hint)
}

// completeHosts completes the name of a host as the first argument.
func (c *cli) completeHosts(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	rows, err := c.hosts(ctx, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, r := range rows {
		names = append(names, string(r.Name))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
