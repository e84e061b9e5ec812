package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/spec"
)

func (c *cli) planCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "plan FILE",
		Short: "Show what a deploy would change, and change nothing",
		Long: `Show what deploying FILE would change: which services are new, changed or removed,
whether that restarts anything, which instances would start on which hosts and
which would leave, and what no host has room for. Builds and uploads nothing:
programs are taken as they were last built.

The plan ends with a check index. deploy --check-index refuses (4) when the
application, or where it is placed, has changed since.

Ends with 0, whether or not something would change (-o json: "unchanged"); 2 when
the deploy would be refused.`,
		Example:           "  kbroker plan app.yaml\n  kbroker plan app.yaml -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeSpec,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			return c.plan(ctx, args[0])
		},
	}
}

func (c *cli) plan(ctx context.Context, file string) error {
	doc, err := readSpec(file)
	if err != nil {
		return err
	}
	api, _, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer api.Close()
	app := doc.App()
	warnings, err := measureBuilt(ctx, doc, filepath.Dir(file))
	if err != nil {
		return err
	}
	reply, err := api.Plan(ctx, *app)
	if err != nil {
		return locate(doc, app, err)
	}
	reply.Warnings = append(warnings, reply.Warnings...)
	return c.print(reply, func(w io.Writer) { c.planText(w, reply, file) })
}

// measureBuilt fills in the programs of a spec that are there, and says what
// that is worth. One that deploy would build first may be missing.
func measureBuilt(ctx context.Context, doc *spec.Document, folder string) (warnings []string, err error) {
	warnings = []string{}
	var findings spec.Errors
	for _, p := range programs(doc.App()) {
		path := p.artifact.Path
		if !filepath.IsAbs(path) {
			path = filepath.Join(folder, path)
		}
		if _, err := os.Stat(path); p.build != "" && errors.Is(err, fs.ErrNotExist) {
			warnings = append(warnings, fmt.Sprintf("%s: %s has not been built yet", p, p.artifact.Path))
			continue
		}
		if err := measure(ctx, doc, folder, p); err != nil {
			finding, ok := errors.AsType[spec.Error](err)
			if !ok {
				return nil, err
			}
			findings = append(findings, finding)
		} else if p.build != "" {
			warnings = append(warnings, fmt.Sprintf("%s: %s is taken as it was last built; deploy builds it first", p, p.artifact.Path))
		}
	}
	if len(findings) > 0 {
		return nil, findings
	}
	return warnings, nil
}

func (c *cli) planText(w io.Writer, p kbroker.PlanReply, file string) {
	switch {
	case p.Unchanged:
		fmt.Fprintf(w, "%s version %d runs like this already; a deploy would change nothing\n", p.App, p.From)
	case p.From == 0:
		fmt.Fprintf(w, "%s is new: version %d\n", p.App, p.Version)
	case p.From == p.Version:
		fmt.Fprintf(w, "%s version %d would be started again\n", p.App, p.Version)
	default:
		fmt.Fprintf(w, "%s version %d -> %d\n", p.App, p.From, p.Version)
	}
	for _, s := range p.Services {
		c.planService(w, p, s)
	}
	for _, u := range p.Unplaced {
		fmt.Fprintf(w, "%s %d of %s find no host:\n", c.paint(w, colorRed)("!"), u.Count, u.Service)
		for _, h := range u.Hosts {
			fmt.Fprintf(w, "      %s: %s\n", h.Host, strings.Join(h.Why, "; "))
		}
	}
	for _, text := range p.Warnings {
		fmt.Fprintf(w, "%s %s\n", c.paint(w, colorYellow)("warning:"), oneLine(text))
	}
	if !p.Unchanged {
		fmt.Fprintf(w, "to deploy it as long as nothing has changed:\n  kbroker deploy --check-index %d %s\n", p.CheckIndex, file)
	}
}

// planMarks are how a change of a service is shown, with its colour.
var planMarks = map[kbroker.ServiceChange][2]string{
	kbroker.ServiceNew: {"+", colorGreen}, kbroker.ServiceChanged: {"~", colorYellow},
	kbroker.ServiceRemoved: {"-", colorRed}, kbroker.ServiceUnchanged: {" ", ""},
}

func (c *cli) planService(w io.Writer, p kbroker.PlanReply, s kbroker.ServicePlan) {
	mark := planMarks[s.Change]
	count := client.Counted(s.After, "instance")
	if s.Before != s.After {
		count = fmt.Sprintf("%d -> %s", s.Before, count)
	}
	how := map[kbroker.ChangeMode]string{
		"":                  "nothing to do",
		kbroker.ModeStart:   "new instances start, none leaves",
		kbroker.ModeRolling: "rolling: a new instance first, then an old one leaves",
		kbroker.ModeInPlace: "in place: nothing restarts",
		kbroker.ModeStop:    "instances leave",
	}[s.Mode]
	fmt.Fprintf(w, "%s %s %s, %s; %s\n", c.paint(w, mark[1])(mark[0]), s.Service, s.Change, count, how)
	for _, text := range s.Changes {
		fmt.Fprintf(w, "      %s\n", oneLine(text))
	}
	for _, line := range perHost(s.Service, p.Start) {
		fmt.Fprintf(w, "    %s %s\n", c.paint(w, colorGreen)("start"), line)
	}
	for _, line := range perHost(s.Service, p.Leave) {
		fmt.Fprintf(w, "    %s %s\n", c.paint(w, colorRed)("leave"), line)
	}
}

// maxPlanNames bounds the instances that a line of a plan names.
const maxPlanNames = 4

// perHost are the instances of a service by host, a line each.
func perHost(service kbroker.ServiceName, all []kbroker.PlannedInstance) (lines []string) {
	byHost := map[kbroker.HostID][]string{}
	var hosts []kbroker.HostID
	for _, i := range all {
		if i.Service != service {
			continue
		}
		if byHost[i.Host] == nil {
			hosts = append(hosts, i.Host)
		}
		byHost[i.Host] = append(byHost[i.Host], string(i.Instance))
	}
	slices.Sort(hosts)
	for _, h := range hosts {
		names := byHost[h]
		text := strings.Join(names[:min(len(names), maxPlanNames)], ", ")
		if n := len(names) - maxPlanNames; n > 0 {
			text += fmt.Sprintf(" and %d more", n)
		}
		lines = append(lines, fmt.Sprintf("%d on %s: %s", len(names), h, text))
	}
	return lines
}
