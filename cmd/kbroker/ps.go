package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

func (c *cli) psCommand() *cobra.Command {
	var all, wide bool
	cmd := &cobra.Command{
		Use:   "ps [APP]",
		Short: "List the instances that are wanted and those that still run",
		Example: `  kbroker ps
  kbroker ps hello --all
  kbroker ps --wide
  kbroker ps -o json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			var app kbroker.AppName
			if len(args) == 1 {
				var err error
				if app, err = appName(args[0]); err != nil {
					return err
				}
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			if app != "" {
				if _, err := api.App(ctx, app); err != nil {
					return err
				}
			}
			list, table := api.Instances, c.psTable
			if wide {
				table = c.psWide
			}
			if wide || c.output != formatTable {
				list = api.Measured
			}
			rows, err := list(ctx, app, all)
			if err != nil {
				return err
			}
			return c.print(rows, func(w io.Writer) { table(w, rows, time.Now()) })
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	cmd.Flags().BoolVarP(&wide, "wide", "w", false, "also what each uses, its health, its ports, and what its host does not enforce")
	return cmd
}

func (c *cli) psTable(w io.Writer, rows []kbroker.InstanceRow, now time.Time) {
	t := table{header: []string{"INSTANCE", "HOST", "STATE", "PID", "RESTARTS", "VERSION", "UP", "MESSAGE"}, states: 3}
	for _, r := range rows {
		t.add(shownName(r), orDash(r.Host), string(r.State), orDash(r.PID), fmt.Sprint(r.Restarts), fmt.Sprint(r.Version),
			since(r.StartedAt, now), remark(r))
	}
	t.write(c, w)
}

// shownName is that of an instance, which it may not have yet.
func shownName(r kbroker.InstanceRow) string {
	if r.Instance == nil {
		return fmt.Sprintf("%s-%s (not placed)", r.App, r.Service)
	}
	return string(*r.Instance)
}

// maxRemark bounds what a table shows of a message; JSON has all of it.
const maxRemark = 100

// remark is what a person wants to know beside the state: why it is not ready, or why
// its agent has killed the process before this one; and which limits of its spec its
// host does not hold it to.
func remark(r kbroker.InstanceRow) string {
	text := message(r)
	if loose := unenforcedText(r); loose != "" && text != "" {
		return text + " (" + loose + ")"
	} else if loose != "" {
		return loose
	}
	return text
}

func message(r kbroker.InstanceRow) string {
	text := []rune(r.Message)
	switch {
	case r.State == kbroker.StateReady && !strings.HasPrefix(r.Message, kbroker.KilledText), r.State == kbroker.StateDraining && r.Exit != nil && r.Exit.Code != nil && *r.Exit.Code == 0:
		return "" // nothing is wrong
	case len(text) > maxRemark:
		return string(text[:maxRemark]) + "..."
	}
	return r.Message
}
