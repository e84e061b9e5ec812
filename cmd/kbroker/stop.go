package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

func (c *cli) stopCommand() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:   "stop APP",
		Short: "Stop all instances of an application",
		Long: `Stop all instances of an application and wait until the last has gone. Its spec
and versions stay: deploy starts it again.`,
		Example:           "  kbroker stop hello",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := appName(args[0])
			if err != nil {
				return err
			}
			ctx, cancel := c.within(cmd.Context(), 0)
			defer cancel()
			api, _, err := c.open(ctx)
			if err != nil {
				return err
			}
			defer api.Close()
			if err := api.Stop(ctx, app); err != nil {
				return err
			}
			if !detach {
				shown := changes{cli: c}
				if err := api.FollowStop(ctx, app, shown.show); err != nil {
					return err
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
