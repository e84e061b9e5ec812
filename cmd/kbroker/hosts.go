package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

func (c *cli) hostsCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:               "hosts",
		Short:             "List the hosts of the cluster",
		Example:           "  kbroker hosts\n  kbroker hosts -o json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			rows, err := c.hosts(ctx, all)
			if err != nil {
				return err
			}
			return c.print(rows, func(w io.Writer) { c.hostsTable(w, rows) })
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that were removed, too")
	return cmd
}

func (c *cli) hostsTable(w io.Writer, rows []kbroker.HostRow) {
	t := table{header: []string{"NAME", "ROLE", "STATE", "SUPER", "PID", "INSTANCES", "CPU", "CPU USED", "MEMORY", "MEMORY USED", "ADDRESS"}, states: 3}
	for _, r := range rows {
		super := ""
		if r.Super {
			super = "yes"
		}
		t.add(string(r.Name), string(r.Role), string(r.State), super, orDash(r.PID), fmt.Sprint(r.Instances),
			fmt.Sprintf("%.4g/%.4g", r.Reserved.CPU, r.Capacity.CPU), coresText(hostFigures(r).CPUCores),
			bytesText(r.Reserved.MemoryBytes)+"/"+bytesText(r.Capacity.MemoryBytes), bytesOrDash(hostFigures(r).MemoryBytes), r.Client)
	}
	t.write(c, w)
}
