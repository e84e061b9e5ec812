package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

const (
	// listTimeout bounds a command that asks and prints.
	listTimeout = 10 * time.Second
	// completionTimeout bounds a question for what the shell may complete.
	completionTimeout = 2 * time.Second
)

// within bounds ctx by --timeout, else by usual (0: not at all).
func (c *cli) within(ctx context.Context, usual time.Duration) (context.Context, context.CancelFunc) {
	if c.timeout > 0 {
		usual = time.Duration(c.timeout)
	}
	if usual <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, usual)
}

// open finds the cluster and connects to it. The caller closes the client.
func (c *cli) open(ctx context.Context) (*client.Client, client.Target, error) {
	target, err := client.Find(c.server)
	if err != nil {
		return nil, target, err
	}
	api, err := client.Open(ctx, target, "kbroker command")
	return api, target, err
}

// connect is within and open, for a command that needs no more: done ends both.
func (c *cli) connect(ctx context.Context, usual time.Duration) (_ context.Context, api *client.Client, done func(), err error) {
	ctx, cancel := c.within(ctx, usual)
	if api, _, err = c.open(ctx); err != nil {
		cancel()
		return ctx, nil, nil, err
	}
	return ctx, api, func() { api.Close(); cancel() }, nil
}

// completeApps completes the name of an app as the first argument. An
// unreachable cluster completes nothing.
func (c *cli) completeApps(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	api, _, err := c.open(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer api.Close()
	rows, err := api.Apps(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, r := range rows {
		names = append(names, string(r.App))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeSpec completes the file of an app spec.
func completeSpec(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}

// appName checks the name of an app on the command line.
func appName(s string) (kbroker.AppName, error) {
	return kbroker.AppName(s), kbroker.CheckName("app", s)
}
