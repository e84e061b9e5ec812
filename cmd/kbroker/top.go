package main

import (
	"context"
	"fmt"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

const (
	// topEvery is the pause between two looks, topWait how long a core may take to
	// answer one.
	topEvery = time.Second
	topWait  = 2 * time.Second
)

func (c *cli) topCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "top [APP]",
		Short: "Watch what hosts and instances use, in the terminal",
		Long: `Watch what hosts and instances use, in the terminal, anew each second.

Keys: c, m, r, n sort by cpu, memory, requests, name; arrows and page keys
scroll; h shows hosts only; / filters by a part of a name; q quits.`,
		Example:           "  kbroker top\n  kbroker top hello",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			var app kbroker.AppName
			if len(args) == 1 {
				var err error
				if app, err = appName(args[0]); err != nil {
					return err
				}
			}
			if !isTerminal(c.in) || !isTerminal(c.out) || c.output != formatTable {
				return kbroker.Errorf(kbroker.Invalid, "top needs a terminal").
					WithHint("kbroker ps --wide -o json is for programs")
			}
			return c.top(cmd.Context(), app)
		},
	}
}

// top shows until it is told to quit, or ctx ends.
func (c *cli) top(ctx context.Context, app kbroker.AppName) error {
	starting, cancel := c.within(ctx, listTimeout)
	defer cancel()
	api, _, err := c.open(starting)
	if err != nil {
		return err
	}
	defer api.Close()
	if app != "" {
		if _, err := api.App(starting, app); err != nil {
			return err
		}
	}
	asking, stop := context.WithCancel(ctx)
	defer stop()
	m := newTopModel(time.Now(), os.Getenv("NO_COLOR") == "", func() (kbroker.FiguresReply, error) {
		ctx, cancel := context.WithTimeout(asking, topWait)
		defer cancel()
		return api.Figures(ctx, app)
	})
	p := tea.NewProgram(m, tea.WithInput(c.in), tea.WithOutput(c.out), tea.WithoutSignalHandler())
	defer context.AfterFunc(ctx, p.Quit)()
	if _, err := p.Run(); err != nil {
		return fmt.Errorf("show in the terminal: %w", err)
	}
	return nil
}
