package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

func (c *cli) appsCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "apps",
		Short:             "List the applications",
		Example:           "  kbroker apps\n  kbroker apps -o json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			rows, err := api.Apps(ctx)
			if err != nil {
				return err
			}
			return c.print(rows, func(w io.Writer) { c.appsTable(w, rows) })
		},
	}
}

func (c *cli) appsTable(w io.Writer, rows []kbroker.AppRow) {
	t := table{header: []string{"APP", "VERSION", "ROLLOUT", "READY", "SERVICES", "REASON"}, states: 3}
	for _, r := range rows {
		state := string(r.Rollout)
		if r.Stopped {
			state = "stopped"
		}
		reason := r.Reason
		if reason == "" && len(r.Unplaced) > 0 {
			u := r.Unplaced[0]
			reason = fmt.Sprintf("%d of %s not placed: %s", u.Count, u.Service, u.Reason)
		}
		t.add(string(r.App), fmt.Sprint(r.Version), state, fmt.Sprintf("%d/%d", r.Ready, r.Wanted), strings.Join(r.Services, " "), reason)
	}
	t.write(c, w)
}
