package main

import (
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kbroker/kbroker"
)

func (c *cli) scaleCommand() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:   "scale APP[/SERVICE] N",
		Short: "Run N instances of a service",
		Long: `Run N instances of a service, by a new version of the app that differs in
nothing else, and follow it until they are ready. What scales the service (scale
in its spec) is left out, until its spec is deployed again. SERVICE may be left
out where the app has only one.`,
		Example:           "  kbroker scale hello 5\n  kbroker scale bank/ledger 3 --detach",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, service, err := serviceName(args[0])
			if err != nil {
				return err
			}
			count, err := strconv.Atoi(args[1])
			if err != nil || count < 0 {
				return notACount(args[1])
			}
			ctx, api, done, err := c.connect(cmd.Context(), 0)
			if err != nil {
				return err
			}
			defer done()
			reply, err := api.Scale(ctx, app, service, count)
			if err != nil {
				return err
			}
			return c.finish(ctx, api, app, reply, detach)
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until they are ready")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		// -1 is taken for a flag.
		if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
			if _, err := strconv.Atoi(e.GetSpecifiedShortnames()); err == nil {
				return notACount("-" + e.GetSpecifiedShortnames())
			}
		}
		return err
	})
	return cmd
}

func notACount(s string) error {
	return kbroker.Errorf(kbroker.Invalid, "%q is not a number of instances", s).WithHint("give a whole number, 0 or more")
}

// serviceName splits APP[/SERVICE].
func serviceName(s string) (kbroker.AppName, kbroker.ServiceName, error) {
	name, service, found := strings.Cut(s, "/")
	app, err := appName(name)
	if err == nil && found {
		err = kbroker.CheckName("service", service)
	}
	return app, kbroker.ServiceName(service), err
}
