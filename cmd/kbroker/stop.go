package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

// stopTimeout bounds the wait for the last instance: one on a lost host ends
// only when its host is back.
const stopTimeout = 2 * time.Minute

func (c *cli) stopCommand() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:   "stop APP",
		Short: "Stop all instances of an application",
		Long: `Stop all instances of an application and wait until the last has gone, at most
two minutes unless --timeout says. Its spec and versions stay: restart or
deploy starts it again.`,
		Example:           "  kbroker stop hello",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := appName(args[0])
			if err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), stopTimeout)
			if err != nil {
				return err
			}
			defer done()
			if err := api.Stop(ctx, app); err != nil {
				return err
			}
			if !detach {
				shown := changes{cli: c}
				if err := api.FollowStop(ctx, app, shown.show); err != nil {
					return stillThere(err, shown.last.Instances)
				}
			}
			result := struct {
				App  kbroker.AppName `json:"app"`
				Done bool            `json:"done"`
			}{app, !detach}
			return c.print(result, func(w io.Writer) {
				if detach {
					fmt.Fprintf(w, "%s is stopping\n", app)
					return
				}
				fmt.Fprintf(w, "%s is stopped\n", app)
			})
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until the last instance has gone")
	return cmd
}

// stillThere names, in the error of a stop that took too long, what is left.
func stillThere(err error, rows []kbroker.InstanceRow) error {
	var left []string
	for _, r := range rows {
		if r.Instance != nil && r.State != kbroker.StateExited {
			left = append(left, fmt.Sprintf("%s on %s (%s)", *r.Instance, orDash(r.Host), r.State))
		}
	}
	if len(left) == 0 || !errors.Is(err, kbroker.DeadlineExceeded) {
		return err
	}
	return kbroker.AsError(err).WithHint("still there: %s", strings.Join(left, ", "))
}
