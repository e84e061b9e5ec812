package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

func (c *cli) historyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "history APP",
		Short: "List the versions of an application, and what changed in each",
		Long: `List the stored versions of an application, the newest first: why each was made,
what changed against the version before it, which one is wanted and with which
one the application was last well. rollback returns to any of them.`,
		Example:           "  kbroker history hello\n  kbroker history hello -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := appName(args[0])
			if err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			rows, err := api.History(ctx, app)
			if err != nil {
				return err
			}
			return c.print(rows, func(w io.Writer) { c.historyTable(w, rows, time.Now()) })
		},
	}
}

func (c *cli) historyTable(w io.Writer, rows []kbroker.HistoryRow, now time.Time) {
	t := table{header: []string{"VERSION", "AGE", "CAUSE", "STATE", "RUNNING", "CHANGES"}}
	for _, r := range rows {
		var state []string
		if r.Wanted {
			state = append(state, "wanted")
		}
		if r.Good {
			state = append(state, "last well")
		}
		running := ""
		if r.Running > 0 {
			running = fmt.Sprint(r.Running)
		}
		changes := strings.Join(r.Changes, ", ")
		if len(r.Changes) == 0 {
			changes = "nothing"
		}
		t.add(fmt.Sprint(r.Version), since(&r.Created, now), r.Cause, strings.Join(state, ", "), running, changes)
	}
	t.write(c, w)
}
