package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

func (c *cli) allocatorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "allocator APP",
		Short: "Show how many instances an application's allocator wants, and why",
		Long: `Show what the active allocator of an application decides: how many instances each
service is to have within its count, and why, and what it knows of the load of each
instance, on average over the last two seconds. BUSY is the part of what an instance
works on at once that is under way.`,
		Example: `  kbroker allocator shop
  kbroker allocator shop -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := appName(args[0])
			if err != nil {
				return err
			}
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			api, _, err := c.open(ctx)
			if err != nil {
				return err
			}
			defer api.Close()
			reply, err := api.Allocator(ctx, app)
			if err != nil {
				return err
			}
			return c.print(reply, func(w io.Writer) { c.allocatorText(w, reply) })
		},
	}
}

func (c *cli) allocatorText(w io.Writer, r kbroker.AllocatorReply) {
	fmt.Fprintf(w, "%s decides, epoch %d, by version %d\n\n", r.Allocator, r.Epoch, r.Version)
	services := table{header: []string{"SERVICE", "COUNT", "INSTANCES", "READY", "WANTED", "WHY"}}
	for _, s := range r.Services {
		count := fmt.Sprint(s.Min)
		if s.Max != s.Min {
			count = fmt.Sprintf("%d-%d", s.Min, s.Max)
		}
		services.add(string(s.Service), count, fmt.Sprint(s.Instances), fmt.Sprint(s.Ready), fmt.Sprint(s.Wanted), cmp.Or(s.Why, "-"))
	}
	services.write(c, w)
	if len(r.Instances) == 0 {
		return
	}
	fmt.Fprintln(w)
	owning := slices.ContainsFunc(r.Instances, func(i kbroker.AllocatorLoad) bool { return i.Shards > 0 })
	header := []string{"INSTANCE", "HOST", "STATE", "BUSY", "CPU", "REQUESTS/S", "REFUSED/S"}
	if owning {
		header = append(header, "SHARDS", "OBJECTS", "WAITING", "TURNS/S")
	}
	instances := table{header: header}
	for _, i := range r.Instances {
		state := "starting"
		switch {
		case i.Leaving:
			state = "leaving"
		case i.Ready:
			state = "ready"
		}
		row := []string{string(i.Instance), cmp.Or(string(i.Host), "-"), state, partText(i.Busy), coresText(i.CPUCores), rateText(i.RequestsPerS), rateText(i.RefusedPerS)}
		if owning {
			row = append(row, fmt.Sprint(i.Shards), countText(i.Objects), countText(i.Waiting), rateText(i.TurnsPerS))
		}
		instances.add(row...)
	}
	instances.write(c, w)
	if r.Moving > 0 {
		fmt.Fprintf(w, "%d shards are on their way to another instance (kbroker objects %s)\n", r.Moving, r.App)
	}
}

func partText(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", 100*(*v))
}

func countText(n *int) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}
