package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// usualObjects are listed unless --limit says.
const usualObjects = 1000

func (c *cli) objectsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "objects APP",
		Short: "Show the objects of an application, and who owns them; move them, delete them",
		Long: `Show how many objects an application has of each kind, which instances own them,
those that are busy, and those in quarantine. All objects are in 1,024 shards, and
each shard is owned by one instance: what moves is a shard.

Counts of what is stored include objects that were deleted within the last minutes.
Those with a ~ are of many objects, and were made in some of the shards alone.`,
		Example: `  kbroker objects bank
  kbroker objects ls bank account --prefix a
  kbroker objects show bank/account:alice
  kbroker objects move bank/account:alice bank-ledger-2`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.Contains(args[0], "/") {
				return kbroker.Errorf(kbroker.Invalid, "%q is not the name of an app", args[0]).WithHint("one object: kbroker objects show %s", args[0])
			}
			app, err := appName(args[0])
			if err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			reply, err := api.ObjectOwners(ctx, app)
			if err != nil {
				return err
			}
			return c.print(reply, func(w io.Writer) { c.objectOwnersText(w, reply) })
		},
	}
	cmd.AddCommand(
		c.objectsListCommand(), c.objectsShowCommand(), c.objectsMoveCommand(), c.objectsRebalanceCommand(), c.objectsDeactivateCommand(), c.objectsReleaseCommand(), c.objectsRemoveCommand(),
	)
	return cmd
}

func (c *cli) objectOwnersText(w io.Writer, r kbroker.ObjectOwnersReply) {
	kinds := table{header: []string{"KIND", "SERVICE", "STORED", "ACTIVE"}}
	for _, k := range r.Kinds {
		stored := fmt.Sprint(k.Stored)
		if k.About {
			stored = "~" + stored
		}
		kinds.add(string(k.Kind), string(k.Service), stored, fmt.Sprint(k.Active))
	}
	kinds.write(c, w)
	fmt.Fprintln(w)
	owners := table{header: []string{"INSTANCE", "HOST", "SHARDS", "IN", "OUT", "ACTIVE", "WAITING", "TURNS/S", "NOTE"}}
	for _, o := range r.Owners {
		active, waiting, turns := "-", "-", "-"
		if s := o.Seen; s != nil {
			sum := 0
			for _, n := range s.Active {
				sum += n
			}
			active, waiting, turns = fmt.Sprint(sum), fmt.Sprint(s.Mailbox), rateText(&s.TurnsPerS)
		}
		note := o.Silent
		if o.Lease != "held" {
			note = strings.TrimSuffix("lease "+o.Lease+"; "+note, "; ")
		}
		owners.add(string(o.Instance), cmp.Or(string(o.Host), "-"), fmt.Sprint(o.Shards), fmt.Sprint(o.Arriving), fmt.Sprint(o.Leaving), active, waiting, turns, note)
	}
	owners.write(c, w)
	if r.Unowned > 0 {
		fmt.Fprintf(w, "%s %d of %d shards have no owner (kbroker why %s)\n", c.paint(w, colorYellow)("note:"), r.Unowned, kbroker.Shards, r.App)
	}
	c.movingText(w, r.Moving)
	if len(r.Hot) > 0 {
		fmt.Fprintln(w)
		hot := table{header: []string{"BUSY", "INSTANCE", "TURNS/S", "WAITING"}}
		for _, h := range r.Hot {
			hot.add(h.Object, string(h.Instance), rateText(&h.TurnsPerS), fmt.Sprint(h.Mailbox))
		}
		hot.write(c, w)
	}
	if len(r.Quarantined) > 0 {
		fmt.Fprintln(w)
		in := table{header: []string{"QUARANTINE", "INSTANCE", "WHY"}}
		for _, q := range r.Quarantined {
			in.add(q.Object, string(q.Instance), q.Reason)
		}
		in.write(c, w)
	}
}

func (c *cli) movingText(w io.Writer, moving []kbroker.ObjectMoving) {
	asked := 0
	for _, m := range moving {
		if m.Asked {
			asked++
		}
	}
	verb := "are"
	if len(moving) == 1 {
		verb = "is"
	}
	switch {
	case len(moving) == 0:
	case asked == 0:
		fmt.Fprintf(w, "%s %s on the way\n", client.Counted(len(moving), "shard"), verb)
	default:
		fmt.Fprintf(w, "%s %s on the way, %d as somebody has asked for it\n", client.Counted(len(moving), "shard"), verb, asked)
	}
}

func (c *cli) objectsListCommand() *cobra.Command {
	var prefix string
	var limit int
	cmd := &cobra.Command{
		Use:   "ls APP [KIND]",
		Short: "List the objects that are stored, or allocated",
		Long: `List the objects that are stored, and the placed ones that are allocated: of all
kinds, or of one; --prefix: those whose id begins so. At most --limit are listed (0:
all), of which those in the first shards are: a shard has objects of all names.
Placed objects come after the others; one without an owner is not allocated.`,
		Example: `  kbroker objects ls bank
  kbroker objects ls bank account --prefix order-2026- -o json`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := appName(args[0])
			if err != nil {
				return err
			}
			if limit < 0 {
				return kbroker.Errorf(kbroker.Invalid, "--limit %d is less than nothing", limit).WithHint("0 lists all")
			}
			req := kbroker.ObjectsRequest{App: app, Prefix: prefix}
			if len(args) == 2 {
				req.Kind = kbroker.KindName(args[1])
				if err := kbroker.CheckName("kind", args[1]); err != nil {
					return err
				}
			}
			ctx, api, done, err := c.connect(cmd.Context(), 0)
			if err != nil {
				return err
			}
			defer done()
			rows := []kbroker.ObjectRow{}
			incomplete := false
			more, err := api.Objects(ctx, req, limit, func(page kbroker.ObjectsReply) error {
				rows, incomplete = append(rows, page.Rows...), incomplete || page.Incomplete
				return nil
			})
			if err != nil {
				return err
			}
			if more {
				fmt.Fprintf(c.err, "the first %d objects are listed, of more: --limit, or --prefix\n", limit)
			}
			if incomplete {
				fmt.Fprintln(c.err, "placed objects that are stored and not allocated are not all listed: there are too many objects")
			}
			slices.SortFunc(rows, func(a, b kbroker.ObjectRow) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID)) })
			return c.print(rows, func(w io.Writer) {
				t := table{header: []string{"OBJECT", "SHARD", "OWNER", "SIZE", "SCHEMA"}}
				for _, r := range rows {
					shard, size, schema := fmt.Sprint(r.Shard), bytesText(int64(r.SizeBytes)), fmt.Sprint(max(r.Schema, 1))
					if r.Placed {
						shard = "placed"
					}
					if r.Unstored {
						size, schema = "-", "-"
					}
					t.add(r.Object, shard, cmp.Or(string(r.Owner), "-"), size, schema)
				}
				t.write(c, w)
			})
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "", "list those whose id begins so")
	cmd.Flags().IntVar(&limit, "limit", usualObjects, "list so many at most; 0: all")
	return cmd
}

func (c *cli) objectsShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show APP/KIND:ID",
		Short: "Show one object: its owner, what it does, and its state",
		Long: `Show one object: which instance owns it, whether it is in memory, how busy it is,
its last error, and its state as it is stored. The state is shown to the role
deployer and above.`,
		Example: `  kbroker objects show bank/account:alice
  kbroker objects show bank/account:alice -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, o, err := kbroker.ParseObject(args[0])
			if err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			d, err := api.Object(ctx, app, o)
			if err != nil {
				return err
			}
			if d.Placed && d.Owner == "" && !d.Stored {
				return kbroker.Errorf(kbroker.NotFound, "%s is not allocated, nor stored", d.Object).
					WithHint("sdk.Allocate gives it an owner; `kbroker objects ls %s %s` lists those that are", app, o.Kind)
			}
			if !d.Placed && !d.Stored && (d.Seen == nil || !d.Seen.Active && d.Seen.Quarantine == "") {
				return kbroker.Errorf(kbroker.NotFound, "%s is not stored, nor in memory", d.Object).
					WithHint("its first call makes it, in shard %d; `kbroker objects ls %s %s` lists those that are", d.Shard, app, o.Kind)
			}
			return c.print(d, func(w io.Writer) { c.objectText(w, d, time.Now()) })
		},
	}
}

func (c *cli) objectText(w io.Writer, d kbroker.ObjectDetail, now time.Time) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s  %s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	if d.Placed {
		line("object", "%s, placed", d.Object)
	} else {
		line("object", "%s, in shard %d", d.Object, d.Shard)
	}
	switch {
	case d.Owner == "" && d.Placed:
		line("owner", "none: it is not allocated (sdk.Allocate)")
	case d.Owner == "":
		line("owner", "none")
	default:
		line("owner", "%s on %s, epoch %d, lease %s", d.Owner, cmp.Or(string(d.Host), "an unknown host"), d.Epoch, d.Lease)
	}
	if d.Releasing {
		line("releasing", "its owner brings to an end what runs")
	}
	if d.Takes != nil {
		line("takes", "%s", takesText(*d.Takes))
	}
	if len(d.Labels) > 0 {
		line("labels", "%s", labelsText(d.Labels))
	}
	if d.Moving != "" {
		line("moving to", "%s", d.Moving)
	}
	if d.Wanted != "" {
		line("wanted at", "%s, as somebody has asked for it", d.Wanted)
	}
	ago := func(seconds float64) string {
		at := now.Add(-time.Duration(seconds * float64(time.Second)))
		return since(&at, now)
	}
	switch s := d.Seen; {
	case s == nil && d.Placed && d.Owner == "":
		line("active", "no")
	case s == nil:
		line("active", "not known: %s", d.Silent)
	case !s.Active:
		line("active", "no: it is not in memory")
	default:
		line("active", "yes, %s; %d waiting, %s since it was loaded, %s/s", s.Phase, s.Mailbox, client.Counted(int(s.Turns), "turn"), rateText(&s.TurnsPerS))
	}
	if s := d.Seen; s != nil && s.Quarantine != "" {
		line("quarantine", "%s", s.Quarantine)
	}
	if s := d.Seen; s != nil && s.LastError != "" {
		line("last error", "%s, %s ago", s.LastError, ago(s.LastErrorAgo))
	}
	if !d.Stored {
		line("stored", "no")
		return
	}
	line("stored", "%s, schema %d, in memory for %s in all", bytesText(int64(d.SizeBytes)), max(d.Schema, 1), ago(d.InMemoryS))
	line("outbox", "%s to be sent", client.Counted(d.Outbox, "message"))
	for i, reminder := range remindersText(d, now) {
		line([]string{"reminders", ""}[min(i, 1)], "%s", reminder)
	}
	if d.State == nil {
		line("state", "not shown: it needs the role deployer")
		return
	}
	line("state", "%s", d.State)
}

// takesText is what a placed object takes of an instance.
func takesText(d kbroker.Demanded) string {
	var parts []string
	if d.Slots > 0 {
		parts = append(parts, client.Counted(d.Slots, "slot"))
	}
	if d.CPU > 0 {
		parts = append(parts, fmt.Sprintf("%g cores", d.CPU))
	}
	if d.MemoryBytes > 0 {
		parts = append(parts, bytesText(d.MemoryBytes)+" of memory")
	}
	return cmp.Or(strings.Join(parts, ", "), "nothing")
}

func labelsText(labels map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, name+"="+labels[name])
	}
	return strings.Join(parts, ", ")
}

// remindersText are an object's reminders, the next one first; those of which nothing else is
// known by name alone.
func remindersText(d kbroker.ObjectDetail, now time.Time) (lines []string) {
	known := map[string]bool{}
	for _, r := range d.Due {
		known[r.Name] = true
		text := fmt.Sprintf("%s: %s in %s", r.Name, r.Method, since(&now, r.Due))
		if r.Due.Before(now) {
			text = fmt.Sprintf("%s: %s is due since %s", r.Name, r.Method, since(&r.Due, now))
		}
		text += r.Due.Local().Format(" (Jan 02 15:04:05)")
		if r.EveryS > 0 {
			text += ", then every " + time.Duration(r.EveryS*float64(time.Second)).String()
		}
		lines = append(lines, text)
	}
	for _, name := range d.Reminders {
		if !known[name] {
			lines = append(lines, name)
		}
	}
	return lines
}
