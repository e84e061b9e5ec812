package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// replaceTimeout bounds the wait for one instance to be replaced: unlike a
// rollout that has no deadline of its own.
const replaceTimeout = 2 * time.Minute

func (c *cli) restartCommand() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:   "restart APP[/SERVICE[/INSTANCE]]",
		Short: "Replace instances by new ones, without failing a request",
		Long: `Replace the instances of an application or of a service by new ones that are
started in the same way: by a new version, under the update rules of each
service, so that no request fails. A stopped application is started again.

With INSTANCE only that one is replaced: a new one comes first, and when it is
ready the old one leaves; at most two minutes unless --timeout says (6; it goes
on). To have a process of it end at once, kill it: its agent starts it again.`,
		Example: `  kbroker restart hello
  kbroker restart bank/ledger --detach
  kbroker restart hello/hello/hello-hello-2`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, service, instance, err := instanceName(args[0])
			if err != nil {
				return err
			}
			usual := time.Duration(0)
			if instance != "" {
				usual = replaceTimeout
			}
			ctx, api, done, err := c.connect(cmd.Context(), usual)
			if err != nil {
				return err
			}
			defer done()
			reply, err := api.Restart(ctx, app, service, instance)
			switch {
			case err != nil:
				return err
			case instance != "":
				return c.finishReplaced(ctx, api, app, instance, detach)
			}
			return c.finish(ctx, api, app, reply, detach)
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until it is done")
	return cmd
}

// finishReplaced follows the replacement of one instance, unless it need not be
// waited for.
func (c *cli) finishReplaced(ctx context.Context, api *client.Client, app kbroker.AppName, instance kbroker.InstanceID, detach bool) error {
	if !detach {
		shown := changes{cli: c}
		if err := api.FollowReplaced(ctx, app, instance, shown.show); err != nil {
			return err
		}
	}
	result := struct {
		App      kbroker.AppName    `json:"app"`
		Instance kbroker.InstanceID `json:"instance"`
		Done     bool               `json:"done"`
	}{app, instance, !detach}
	return c.print(result, func(w io.Writer) {
		if detach {
			fmt.Fprintf(w, "%s leaves when a new one is ready; kbroker ps %s shows how far it is\n", instance, app)
			return
		}
		fmt.Fprintf(w, "%s was replaced\n", instance)
	})
}

// instanceName splits APP[/SERVICE[/INSTANCE]].
func instanceName(s string) (kbroker.AppName, kbroker.ServiceName, kbroker.InstanceID, error) {
	parts := strings.SplitN(s, "/", 3)
	app, service, err := serviceName(strings.Join(parts[:min(2, len(parts))], "/"))
	if err != nil || len(parts) < 3 {
		return app, service, "", err
	}
	if parts[2] == "" || strings.ContainsAny(parts[2], "/.*> ") {
		return app, service, "", kbroker.Errorf(kbroker.Invalid, "%q is not the name of an instance", parts[2]).WithHint("`kbroker ps %s` lists them", app)
	}
	return app, service, kbroker.InstanceID(parts[2]), nil
}
