package main

import (
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// defaultTail is how many lines of each instance are shown unless --tail says.
const defaultTail = 100

func (c *cli) logsCommand() *cobra.Command {
	var q client.LogQuery
	var since string
	cmd := &cobra.Command{
		Use:   "logs APP[/SERVICE[/INSTANCE]]",
		Short: "Show the output of instances, merged, on any host",
		Long: `Show the output of instances, merged by time, each line after the name of its
instance. With -f go on until interrupted, also with instances that are started
later, and over restarts of agents. With -f -o json each line is a JSON object.
Of each instance at least the last 4 MiB are kept, 16 MiB unless it floods: where
output was removed, a line says how much.`,
		Example: `  kbroker logs hello
  kbroker logs hello --since 5m
  kbroker logs hello/hello --tail 20 -f
  kbroker logs hello/hello/hello-hello-1 --tail -1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := parseLogQuery(args[0], &q); err != nil {
				return err
			}
			var err error
			if q.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			if !q.Since.IsZero() && !cmd.Flags().Changed("tail") {
				q.Tail = -1
			}
			ctx, api, done, err := c.connect(cmd.Context(), 0)
			if err != nil {
				return err
			}
			defer done()
			q.Notice = c.noticeLogs
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
	cmd.Flags().StringVar(&since, "since", "", "show what is not older than a duration, such as 5m, or than a time, such as 2026-11-27T10:00:00Z")
	return cmd
}

// parseSince is the time that --since names; zero for none.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if ago, durErr := time.ParseDuration(s); durErr == nil {
		at, err = now.Add(-ago), nil
	}
	if err != nil || at.After(now) {
		return at, kbroker.Errorf(kbroker.Invalid, "--since %s is no time in the past", s).
			WithHint("a duration such as 5m: how far back to look; or a time such as %s", now.UTC().Format(time.RFC3339))
	}
	return at.UTC(), nil
}

// noticeLogs says why output is not complete, of an instance or of a host.
func (c *cli) noticeLogs(i kbroker.InstanceID, err error) {
	if i != "" {
		err = fmt.Errorf("%s: %w", i, err)
	}
	fmt.Fprintln(c.err, err)
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
	if done, err := c.row(l); done {
		return err
	}
	text := l.Line
	if l.Dropped > 0 {
		text = c.paint(c.out, colorYellow)("-- " + bytesText(l.Dropped) + " dropped --")
	}
	h := fnv.New32a()
	_, _ = io.WriteString(h, string(l.Instance)) // never fails (package hash)
	color := lineColors[h.Sum32()%uint32(len(lineColors))]
	_, err := fmt.Fprintf(c.out, "%s %s\n", c.paint(c.out, color)(string(l.Instance)+" |"), text)
	return err
}
