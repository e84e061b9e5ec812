package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
	"github.com/kbroker/kbroker/sdk"
)

// builtinCommand runs a program that this binary carries. Agents start it, as
// any instance.
func (c *cli) builtinCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "builtin PROGRAM",
		Short:   "Run a program that this binary carries, as an instance of an agent",
		Example: "  kbroker builtin hello",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		c.guardCommand(),
		c.upgradeGuardCommand(),
		&cobra.Command{
			Use:               kbroker.BuiltinAllocator,
			Short:             "The allocator of an app",
			Example:           "  kbroker builtin allocator",
			Args:              cobra.NoArgs,
			ValidArgsFunction: cobra.NoFileCompletions,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return node.RunAllocator(cmd.Context(), newLogger(c.err).With("component", "allocator"))
			},
		},
		&cobra.Command{
			Use:               kbroker.BuiltinHello,
			Short:             "The service of the demonstration",
			Example:           "  kbroker builtin hello",
			Args:              cobra.NoArgs,
			ValidArgsFunction: cobra.NoFileCompletions,
			RunE: func(cmd *cobra.Command, _ []string) error {
				app := sdk.New(sdk.Logger(newLogger(c.err).With("component", "hello")), sdk.As("hello/hello"))
				sdk.Handle(app, "greet", func(_ context.Context, in greetRequest) (greeting, error) {
					return greet(in, app.Instance())
				}, sdk.Idempotent())
				return app.Run(cmd.Context())
			},
		},
	)
	return cmd
}

// The contract of the demonstration is that of examples/hello.
type (
	greetRequest struct {
		Name string `json:"name"`
	}
	greeting struct {
		Text     string             `json:"text"`
		Instance kbroker.InstanceID `json:"instance"`
	}
)

func greet(in greetRequest, by kbroker.InstanceID) (greeting, error) {
	if in.Name == "" {
		return greeting{}, sdk.Errorf(kbroker.Invalid, "name is empty")
	}
	return greeting{Text: "Hello, " + in.Name + "!", Instance: by}, nil
}
