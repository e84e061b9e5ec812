package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// defaultEvents is how many events are shown unless --limit says.
const defaultEvents = 50

func (c *cli) eventsCommand() *cobra.Command {
	var q client.EventQuery
	var app string
	var ago time.Duration
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what was decided and what happened",
		Long: `Show what was decided and what happened, the oldest first: versions, rollouts,
instances placed, stopped, moved, ready and crashed, hosts that come and go, who
leads, what was refused; and who decided or saw it. Kept are seven days, at most
100,000 events. With -f go on until interrupted, also over the death of cores.
With -f -o json each line is a JSON object.`,
		Example: `  kbroker events
  kbroker events -f --app hello
  kbroker events --since 1h --limit 500 -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if app != "" {
				var err error
				if q.App, err = appName(app); err != nil {
					return err
				}
			}
			if q.Limit < 1 || q.Limit > kbroker.MaxEventsPerRequest {
				return kbroker.Errorf(kbroker.Invalid, "a limit of %d events is not possible", q.Limit).WithHint("1 to %d", kbroker.MaxEventsPerRequest)
			}
			if ago < 0 {
				return kbroker.Errorf(kbroker.Invalid, "--since %v lies in the future", ago).WithHint("a duration such as 1h: how far back to look")
			}
			if ago > 0 {
				q.Since = time.Now().Add(-ago).UTC()
				if !cmd.Flags().Changed("limit") {
					q.Limit = kbroker.MaxEventsPerRequest
				}
			}
			usual := listTimeout
			if q.Follow {
				usual = 0
			}
			ctx, api, done, err := c.connect(cmd.Context(), usual)
			if err != nil {
				return err
			}
			defer done()
			q.Notice = c.noticeSilence
			all := []kbroker.Event{}
			shown := 0
			emit := func(e kbroker.Event) error {
				shown++
				return c.eventLine(e)
			}
			if c.output != formatTable && !q.Follow {
				emit = func(e kbroker.Event) error { all = append(all, e); return nil }
			}
			if err := api.Events(ctx, q, emit); err != nil {
				return err
			}
			switch {
			case q.Follow:
				return nil
			case c.output == formatTable:
				if shown == 0 {
					c.say("there is no such event; they are kept for seven days")
				}
				return nil
			}
			return c.print(all, func(io.Writer) {})
		},
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().StringVar(&app, "app", "", "only events of this `APP`")
	cmd.Flags().DurationVar(&ago, "since", 0, "only what is not older than this `DURATION`, such as 1h")
	cmd.Flags().IntVarP(&q.Limit, "limit", "n", defaultEvents, "the newest `N` events (with --since alone: 1000)")
	if err := cmd.RegisterFlagCompletionFunc("app", c.completeApps); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// noticeSilence says that no core answers, and with nil that one does again.
func (c *cli) noticeSilence(err error) {
	if err == nil {
		fmt.Fprintln(c.err, "a core answers again")
		return
	}
	fmt.Fprintf(c.err, "waiting: %v\n", err)
}

// eventLine prints one event as it comes.
func (c *cli) eventLine(e kbroker.Event) error {
	if done, err := c.row(e); done {
		return err
	}
	return c.eventText(c.out, e)
}

// eventText prints one event for people.
func (c *cli) eventText(w io.Writer, e kbroker.Event) error {
	kind := fmt.Sprintf("%-14s", e.Kind)
	_, err := fmt.Fprintf(w, "%s  %s  %-24s  %s  (%s)\n", e.Time.Local().Format("Jan 02 15:04:05"),
		c.paint(w, eventColor(e.Kind))(kind), subjectOf(e), oneLine(e.Message), e.By)
	return err
}

// subjectOf is what an event is about, in one word.
func subjectOf(e kbroker.Event) string {
	switch {
	case e.Instance != "":
		return string(e.Instance)
	case e.App != "":
		return string(e.App)
	case e.Host != "":
		return string(e.Host)
	}
	return "-"
}

func eventColor(k kbroker.EventKind) string {
	switch k {
	case kbroker.EventReady, kbroker.EventRecovered, kbroker.EventRolloutDone, kbroker.EventHostReady:
		return colorGreen
	case kbroker.EventCrashed, kbroker.EventBackoff, kbroker.EventCrashLoop, kbroker.EventHostLost, kbroker.EventRolloutFailed, kbroker.EventRolledBack,
		kbroker.EventUnplaced, kbroker.EventEventsDropped:
		return colorRed
	case kbroker.EventMoved, kbroker.EventHostSuspect, kbroker.EventRefused, kbroker.EventPolicy, kbroker.EventLeader:
		return colorYellow
	}
	return ""
}
