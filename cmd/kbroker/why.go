package main

import (
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

func (c *cli) whyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "why APP[/INSTANCE | /KIND:ID]",
		Short: "Say why an application, an instance or an object is where and as it is",
		Long: `Say why an application is as it is: who asked for what, how far that is, and for
each service what every host says to one more instance: in which order they would
be taken, or what exactly refuses it.

With INSTANCE, also of one that was stopped, moved or is gone: what is demanded of
it, its state and the reason, and who decided what and when. Any core answers,
also while no super leads.

With KIND:ID, of an object: who owns it and since when, or why nobody does.`,
		Example:           "  kbroker why hello\n  kbroker why hello/hello-hello-3\n  kbroker why bank/account:alice",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.Contains(args[0], ":") {
				return c.whyObject(cmd.Context(), args[0])
			}
			name, instance, found := strings.Cut(args[0], "/")
			app, err := appName(name)
			if err != nil {
				return err
			}
			// APP/SERVICE/INSTANCE is how other commands name it.
			instance = instance[strings.LastIndexByte(instance, '/')+1:]
			if found && instance == "" {
				return kbroker.Errorf(kbroker.Invalid, "%q ends without the name of an instance", args[0]).WithHint("`kbroker ps %s` lists them", app)
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			reply, err := api.Why(ctx, app, kbroker.InstanceID(instance))
			if err != nil {
				return err
			}
			return c.print(reply, func(w io.Writer) {
				for _, note := range reply.Basis.Notes {
					fmt.Fprintf(w, "%s %s\n", c.paint(w, colorYellow)("note:"), oneLine(note))
				}
				if reply.App != nil {
					c.whyAppText(w, *reply.App, time.Now())
				}
				if reply.Instance != nil {
					c.whyInstanceText(w, instance, *reply.Instance)
				}
			})
		},
	}
}

func (c *cli) whyAppText(w io.Writer, a kbroker.WhyApp, now time.Time) {
	state := string(a.Rollout.State)
	if a.Row.Stopped {
		state = "stopped"
	}
	fmt.Fprintf(w, "app        %s, version %d, asked for by %s %s ago\n", a.Row.App, a.Row.Version, a.Cause, since(&a.Created, now))
	fmt.Fprintf(w, "rollout    %s\n", c.paint(w, stateColor(state))(state))
	if a.Rollout.Reason != "" {
		fmt.Fprintf(w, "reason     %s\n", oneLine(a.Rollout.Reason))
	}
	fmt.Fprintf(w, "instances  %d of %d ready\n", a.Row.Ready, a.Row.Wanted)
	fmt.Fprintf(w, "demand     %s\n", demandText(a.Demand))
	if a.Policy == kbroker.PolicyOwn {
		refused := ""
		if a.Demand != nil {
			refused = a.Demand.Refused
		}
		fmt.Fprintf(w, "policy     %s\n", c.ownPolicyText(w, refused, a.Instead))
	}
	for _, s := range a.Services {
		c.whyServiceText(w, s)
	}
	if len(a.Events) > 0 {
		fmt.Fprintf(w, "\nlatest events (kbroker events --app %s shows more)\n", a.Row.App)
		for _, e := range a.Events {
			_ = c.eventText(w, e) // as every other line
		}
	}
}

// ownPolicyText says whether an app's own policy decides.
func (c *cli) ownPolicyText(w io.Writer, refused, instead string) string {
	if refused == "" {
		return fmt.Sprintf("%s; %s decides where it is refused", kbroker.PolicyOwn, instead)
	}
	return fmt.Sprintf("%s, %s: %s; %s decides", kbroker.PolicyOwn, c.paint(w, colorRed)("refused"), oneLine(refused), instead)
}

func demandText(d *kbroker.Demand) string {
	if d == nil {
		return "none yet: the allocator has not spoken, each service gets what its spec wants at least"
	}
	var words []string
	for _, s := range slices.Sorted(maps.Keys(d.Wanted)) {
		words = append(words, fmt.Sprintf("%s %d", s, d.Wanted[s]))
	}
	text := fmt.Sprintf("%s, by the allocator of epoch %d", strings.Join(words, ", "), d.Epoch)
	if d.Reason != "" {
		text += ": " + oneLine(d.Reason)
	}
	return text
}

func (c *cli) whyServiceText(w io.Writer, s kbroker.WhyService) {
	count := fmt.Sprint(s.Count.Min)
	if s.Count.Max != s.Count.Min {
		count = fmt.Sprintf("%d to %d", s.Count.Min, s.Count.Max)
	}
	fmt.Fprintf(w, "\nservice %s: %d wanted (its spec allows %s), %d placed, %d ready\n", s.Service, s.Wanted, count, s.Placed, s.Ready)
	for _, text := range s.Troubles {
		fmt.Fprintf(w, "  %s %s\n", c.paint(w, colorRed)("!"), oneLine(text))
	}
	t := table{header: []string{"  HOST", "NEXT", "HAS", "CPU ASKED/FREE", "MEMORY ASKED/FREE", "REFUSES"}}
	for _, h := range s.Hosts {
		rank := "no"
		if h.Fits {
			rank = fmt.Sprint(h.Rank)
		}
		t.add("  "+string(h.Host), rank, fmt.Sprint(h.Same), fmt.Sprintf("%.4g/%.4g", h.Ask.CPU, h.Free.CPU),
			bytesText(h.Ask.MemoryBytes)+"/"+bytesText(h.Free.MemoryBytes), strings.Join(h.Why, "; "))
	}
	t.write(c, w)
}

func (c *cli) whyInstanceText(w io.Writer, name string, i kbroker.WhyInstance) {
	where := ""
	if i.Host != "" {
		where = " on " + string(i.Host)
	}
	fmt.Fprintf(w, "%s%s is %s\n", name, where, c.paint(w, stateColor(string(i.State)))(string(i.State)))
	fmt.Fprintf(w, "because    %s\n", oneLine(i.Reason))
	if p := i.Placement; p != nil {
		demand := "run it"
		if p.Stop {
			demand = "stop it: " + p.StopReason
		} else if p.Replace != "" {
			demand = "run it until a new one is ready: " + p.Replace
		}
		fmt.Fprintf(w, "placement  host %s, version %d, epoch %d: %s\n", p.Host, p.Version, p.Epoch, oneLine(demand))
		if len(p.Failed) > 0 {
			fmt.Fprintf(w, "failed on  %s: what it replaces was in a crash loop there\n", hostNames(p.Failed))
		}
	} else {
		fmt.Fprintf(w, "placement  none\n")
	}
	if s := i.Status; s != nil {
		fmt.Fprintf(w, "reported   %s, version %d, epoch %d, %s", s.State, s.Version, s.Epoch, client.Counted(s.Restarts, "restart"))
		if s.PID > 0 {
			fmt.Fprintf(w, ", pid %d", s.PID)
		}
		fmt.Fprintln(w)
		if s.Exit != nil {
			fmt.Fprintf(w, "last exit  %s, %s\n", lastExit(*s.Exit), s.Exit.At.Local().Format("Jan 02 15:04:05"))
		}
	}
	if len(i.Events) == 0 {
		fmt.Fprintf(w, "\nno events of it are kept\n")
		return
	}
	fmt.Fprintf(w, "\nhistory\n")
	for _, e := range i.Events {
		_ = c.eventText(w, e) // as every other line
	}
}

func hostNames(hosts []kbroker.HostID) string {
	words := make([]string, len(hosts))
	for i, h := range hosts {
		words[i] = string(h)
	}
	return strings.Join(words, ", ")
}

// lastExit says how a process ended.
func lastExit(e kbroker.Exit) string {
	switch {
	case e.OOM:
		return "out of memory, killed by the kernel"
	case e.Signal != "":
		return "ended by " + e.Signal
	case e.Code != nil:
		return fmt.Sprintf("exit code %d", *e.Code)
	}
	return "ended, nobody knows how"
}
