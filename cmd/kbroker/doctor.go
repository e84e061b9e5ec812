package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/node"
)

func (c *cli) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong with the cluster, and the command that mends it",
		Long: `Ask every core and every host's agent how they are, and say what is wrong: quorum
and writes, cores and replicas, copies that lag, hosts that are missing, disks,
sync times, clocks, versions, memory, processes without an instance, rollouts and
instances. Each finding comes with the command that mends it. Nothing is changed.

Errors are what does not hold now, warnings what may not hold much longer. Ends
with 1 when there is an error, with 3 when no core answers. It needs no leader.`,
		Example:           "  kbroker doctor\n  kbroker doctor -o json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			api, target, err := c.open(ctx)
			if err != nil {
				return err
			}
			defer api.Close()
			facts, err := api.Examine(ctx, node.Version)
			if err != nil {
				return fmt.Errorf("cluster of %s: %w", target.Source, err)
			}
			found := client.Diagnose(facts)
			if err := c.print(found, func(w io.Writer) { c.findings(w, facts, found) }); err != nil {
				return err
			}
			if n := errorsIn(found); n > 0 {
				return kbroker.Errorf(kbroker.Failed, "%s and %s found", client.Counted(n, "error"), client.Counted(len(found)-n, "warning"))
			}
			return nil
		},
	}
}

func (c *cli) findings(w io.Writer, facts client.Facts, found []client.Finding) {
	if len(found) == 0 {
		fmt.Fprintf(w, "all well: %s, %s\n", client.Counted(len(facts.Hosts), "host"), client.Counted(len(facts.Apps), "app"))
	}
	for _, f := range found {
		color := colorYellow
		if f.Severity == client.SeverityError {
			color = colorRed
		}
		where := ""
		if f.On != "" {
			where = "on " + string(f.On) + ": "
		}
		fmt.Fprintf(w, "%s %s: %s\n", c.paint(w, color)(fmt.Sprintf("%-8s", f.Severity)), f.Check, oneLine(f.Message))
		fmt.Fprintf(w, "         %s$ %s\n", where, oneLine(f.Command))
	}
}

func errorsIn(found []client.Finding) (n int) {
	for _, f := range found {
		if f.Severity == client.SeverityError {
			n++
		}
	}
	return n
}
