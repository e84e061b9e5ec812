package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

func (c *cli) rollbackCommand() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:   "rollback APP [VERSION]",
		Short: "Return an application to an earlier version",
		Long: `Return an application to an earlier version, by a new version with the content of
that one, and follow the rollout as deploy does. Without VERSION it is the one
before what is wanted now: a second rollback undoes the first. What differs in
counts and rules alone restarts nothing.

Ends with 5 when there is no such version, 4 when its program is gone, 2 when no
known host can run it. A version like the one that is wanted changes nothing (0).`,
		Example: `  kbroker rollback hello
  kbroker rollback hello 3 --detach`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := appName(args[0])
			if err != nil {
				return err
			}
			version := 0
			if len(args) == 2 {
				if version, err = strconv.Atoi(args[1]); err != nil || version < 1 {
					return kbroker.Errorf(kbroker.Invalid, "%q is not a version", args[1]).WithHint("`kbroker history %s` lists them", app)
				}
			}
			ctx, api, done, err := c.connect(cmd.Context(), 0)
			if err != nil {
				return err
			}
			defer done()
			reply, err := api.Rollback(ctx, app, version)
			if err != nil {
				return err
			}
			return c.finish(ctx, api, app, reply, detach)
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait for the rollout")
	return cmd
}
