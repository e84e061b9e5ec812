package main

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// defaultTail is how many lines of each instance are shown unless --tail says.
const defaultTail = 100

func (c *cli) logsCommand() *cobra.Command {
	var q client.LogQuery
	cmd := &cobra.Command{
		Use:   "logs APP[/SERVICE[/INSTANCE]]",
		Short: "Show the output of instances, merged, on any host",
		Long: `Show the output of instances, merged, each line after the name of its instance.
With -f go on until interrupted, also with instances that are started later.
With -f -o json each line is a JSON object.`,
		Example: `  kbroker logs hello
  kbroker logs hello/hello --tail 20 -f
  kbroker logs hello/hello/hello-hello-1 --tail -1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := parseLogQuery(args[0], &q); err != nil {
				return err
			}
			ctx, cancel := c.within(cmd.Context(), 0)
			defer cancel()
			api, _, err := c.open(ctx)
			if err != nil {
				return err
			}
			defer api.Close()
			q.Notice = func(i kbroker.InstanceID, err error) { fmt.Fprintf(c.err, "%s: %v\n", i, err) }
			all := []client.LogLine{}
			emit := c.logLine
			if c.output != formatTable && !q.Follow {
				emit = func(l client.LogLine) error { all = append(all, l); return nil }
			}
			if err := api.Logs(ctx, q, emit); err != nil {
				return err
			}
			if c.output == formatTable || q.Follow {
				return nil
			}
			return c.print(all, func(io.Writer) {})
		},
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what is written from now on")
	cmd.Flags().IntVarP(&q.Tail, "tail", "n", defaultTail, "show so many last lines of each instance, -1 for all that is kept")
	return cmd
}

func parseLogQuery(s string, q *client.LogQuery) error {
	parts := strings.Split(s, "/")
	if len(parts) > 3 {
		return kbroker.Errorf(kbroker.Invalid, "%q names nothing with output", s).WithHint("APP, APP/SERVICE or APP/SERVICE/INSTANCE")
	}
	app, service, err := serviceName(strings.Join(parts[:min(2, len(parts))], "/"))
	if err != nil {
		return err
	}
	q.App, q.Service = app, service
	if len(parts) == 3 {
		q.Instance = kbroker.InstanceID(parts[2])
		if q.Instance == "" {
			return kbroker.Errorf(kbroker.Invalid, "%q ends without the name of an instance", s)
		}
	}
	return nil
}

// logLine prints one line as it comes.
func (c *cli) logLine(l client.LogLine) error {
	switch c.output {
	case formatJSON:
		return json.NewEncoder(c.out).Encode(l)
	case formatYAML:
		b, err := yaml.Marshal([]map[string]any{{"instance": l.Instance, "host": l.Host, "line": l.Line}})
		if err != nil {
			return err
		}
		_, err = c.out.Write(b)
		return err
	}
	h := fnv.New32a()
	_, _ = io.WriteString(h, string(l.Instance)) // never fails (package hash)
	color := lineColors[h.Sum32()%uint32(len(lineColors))]
	_, err := fmt.Fprintf(c.out, "%s %s\n", c.paint(c.out, color)(string(l.Instance)+" |"), l.Line)
	return err
}
