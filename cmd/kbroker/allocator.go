package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

func (c *cli) allocatorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "allocator APP",
		Short: "Show how many instances an application's allocator wants, and why",
		Long: `Show what the active allocator of an application decides: how many instances each
service is to have within its count, and why, and what it knows of the load of each
instance, on average over the last two seconds; - is not known. BUSY is the part of
what an instance works on at once that is under way, CPU is in cores, REFUSED/S are
requests that were too many at once, PLACED are placed objects, and SLOTS what they
take of those that an instance has. Of an app with a policy of its own it says
whether that decides, or what it is refused for and which one decides in its place.`,
		Example: `  kbroker allocator shop
  kbroker allocator shop -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := appName(args[0])
			if err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			reply, err := api.Allocator(ctx, app)
			if err != nil {
				return err
			}
			return c.print(reply, func(w io.Writer) { c.allocatorText(w, reply) })
		},
	}
}

func (c *cli) allocatorText(w io.Writer, r kbroker.AllocatorReply) {
	fmt.Fprintf(w, "%s decides for %s by version %d of its spec (epoch %d)\n", r.Allocator, r.App, r.Version, r.Epoch)
	if r.Policy == kbroker.PolicyOwn {
		fmt.Fprintf(w, "policy: %s\n", c.ownPolicyText(w, r.Refused, r.Instead))
	}
	fmt.Fprintln(w)
	services := table{header: []string{"SERVICE", "COUNT", "INSTANCES", "READY", "WANTED", "WHY"}}
	fixed, missing := true, false
	for _, s := range r.Services {
		count := fmt.Sprint(s.Min)
		if s.Max != s.Min {
			count, fixed = fmt.Sprintf("%d-%d", s.Min, s.Max), false
		}
		missing = missing || s.Instances < s.Wanted
		services.add(string(s.Service), count, fmt.Sprint(s.Instances), fmt.Sprint(s.Ready), fmt.Sprint(s.Wanted), cmp.Or(s.Why, "-"))
	}
	services.write(c, w)
	if fixed && missing { // where nothing is to be decided the rows of a core are not read
		fmt.Fprintf(w, "%s no count has bounds: instances that say no load are not known here (kbroker ps %s)\n", c.paint(w, colorYellow)("note:"), r.App)
	}
	if len(r.Instances) == 0 {
		placedText(w, r.Placed)
		return
	}
	fmt.Fprintln(w)
	owning := slices.ContainsFunc(r.Instances, func(i kbroker.AllocatorLoad) bool { return i.Shards > 0 })
	header := []string{"INSTANCE", "HOST", "STATE", "BUSY", "CPU", "REQUESTS/S", "REFUSED/S"}
	if owning {
		header = append(header, "SHARDS", "OBJECTS", "WAITING", "TURNS/S")
	}
	if r.Placed != nil {
		header = append(header, "PLACED", "SLOTS")
	}
	instances := table{header: header, states: 3}
	for _, i := range r.Instances {
		state := "not ready"
		switch {
		case i.Leaving:
			state = "leaving"
		case i.Ready:
			state = "ready"
		}
		row := []string{string(i.Instance), cmp.Or(string(i.Host), "-"), state, partText(i.Busy), coresText(i.CPUCores), rateText(i.RequestsPerS), rateText(i.RefusedPerS)}
		if owning {
			row = append(row, fmt.Sprint(i.Shards), orDash(i.Objects), orDash(i.Waiting), rateText(i.TurnsPerS))
		}
		if r.Placed != nil {
			row = append(row, roomTexts(i.Placed)...)
		}
		instances.add(row...)
	}
	instances.write(c, w)
	placedText(w, r.Placed)
	if r.Moving > 0 {
		verb := "are"
		if r.Moving == 1 {
			verb = "is"
		}
		fmt.Fprintf(w, "%s %s on the way to another instance (kbroker objects %s)\n", client.Counted(r.Moving, "shard"), verb, r.App)
	}
}

func placedText(w io.Writer, p *kbroker.AllocatorPlaced) {
	if p == nil {
		return
	}
	line := client.Counted(p.Objects, "placed object")
	if p.Moving > 0 {
		line += fmt.Sprintf(", %d on the way to another instance", p.Moving)
	}
	fmt.Fprintf(w, "%s; %d wait for a place\n", line, p.Waiting)
}

// roomTexts are the placed objects of an instance, and its slots.
func roomTexts(r *kbroker.AllocatorRoom) []string {
	switch {
	case r == nil:
		return []string{"-", "-"}
	case r.Has.Slots == 0:
		return []string{fmt.Sprint(r.Objects), "-"}
	}
	return []string{fmt.Sprint(r.Objects), fmt.Sprintf("%d/%d", r.Used.Slots, r.Has.Slots)}
}

func partText(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", 100*(*v))
}
