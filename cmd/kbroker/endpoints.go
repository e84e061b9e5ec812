package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

func (c *cli) endpointsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "endpoints APP[/SERVICE[/PORT]]",
		Short: "List where the instances of a service listen",
		Long: `List where the instances of a service listen: the address of the host, and the
number of each port that the spec names, those of ready instances first. APP
alone means the app's service of the same name, or its only one.`,
		Example: `  kbroker endpoints cache
  kbroker endpoints shop/web/http
  kbroker endpoints cache -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, service, port, err := portName(args[0])
			if err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			if service == "" {
				if service, err = chooseService(ctx, api, app); err != nil {
					return err
				}
			}
			rows, err := api.Endpoints(ctx, app, service, port)
			if err != nil {
				return err
			}
			return c.print(rows, func(w io.Writer) { c.endpointsTable(w, rows) })
		},
	}
}

// portName splits APP[/SERVICE[/PORT]].
func portName(s string) (app kbroker.AppName, service kbroker.ServiceName, port string, err error) {
	name, port, named := s, "", false
	if strings.Count(s, "/") > 1 {
		i := strings.LastIndex(s, "/")
		name, port, named = s[:i], s[i+1:], true
	}
	app, service, err = serviceName(name)
	if err == nil && named {
		err = kbroker.CheckName("port", port)
	}
	return app, service, port, err
}

func (c *cli) endpointsTable(w io.Writer, rows []kbroker.Endpoint) {
	t := table{header: []string{"INSTANCE", "HOST", "PORT", "ADDRESS", "READY"}}
	for _, r := range rows {
		ready := "no"
		if r.Ready {
			ready = "yes"
		}
		t.add(string(r.Instance), string(r.Host), r.Port, r.Addr(), ready)
	}
	t.write(c, w)
}
