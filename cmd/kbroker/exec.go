package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// usualTerminal is what a terminal is when nobody says more.
var usualTerminal = kbroker.TerminalSize{Rows: 24, Columns: 80}

func (c *cli) execCommand() *cobra.Command {
	var tty bool
	cmd := &cobra.Command{
		Use:   "exec INSTANCE -- COMMAND [ARGUMENT...]",
		Short: "Run a command inside an instance, on whatever host it is",
		Long: `Run a command inside an instance: in its control group, as its user, with its
view of the file system, environment and working directory, and held to its
sandbox. Standard input, output and errors are those of this command, and so is
the exit code: 128 and the number of a signal that ended it, 127 when there is
no such command, 126 when it cannot be run.

With -t it has a terminal. Interrupting this command interrupts the other one,
and kills it two seconds later. It ends with the instance, and within five
seconds of this command, however that ended. It is never run twice.

It needs the role operator, and is in the audit trail by the name of the command,
without its arguments.`,
		Example: `  kbroker exec hello-hello-1 -- ls -l
  kbroker exec -t hello-hello-1 -- sh
  tar c data | kbroker exec hello-hello-1 -- tar x`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			instance, err := oneInstance(args[0])
			if err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), 0)
			if err != nil {
				return err
			}
			defer done()
			e := client.Exec{Instance: instance, Command: args[1:], Stdin: c.in, Stdout: c.out, Stderr: c.err}
			restore := func() {}
			if tty {
				var size <-chan kbroker.TerminalSize
				size, restore, err = c.terminal(ctx)
				if err != nil {
					return err
				}
				defer restore()
				first := <-size
				e.TTY, e.Size, e.Term = &first, size, os.Getenv("TERM")
			}
			code, err := api.Exec(ctx, e)
			restore()
			switch {
			case err != nil && code != 0: // it was not started
				fmt.Fprintln(c.err, err)
				return endedWith(code)
			case err != nil:
				return err
			case code != 0:
				return endedWith(code)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

// oneInstance is the name of an instance, alone or behind that of its app and service.
func oneInstance(s string) (kbroker.InstanceID, error) {
	if _, _, instance, err := instanceName(s); err == nil && instance != "" {
		return instance, nil
	}
	_, _, instance, err := instanceName("app/service/" + s)
	if err != nil {
		return "", kbroker.Errorf(kbroker.Invalid, "%q is not the name of an instance", s).WithHint("`kbroker ps` lists them")
	}
	return instance, nil
}

// terminal makes that of this command, if it has one, pass on each key as it is, and tells
// its size, now and whenever it changes, until restore.
func (c *cli) terminal(ctx context.Context) (size <-chan kbroker.TerminalSize, restore func(), err error) {
	sizes := make(chan kbroker.TerminalSize, 1)
	in, ok := c.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		sizes <- usualTerminal
		return sizes, func() {}, nil
	}
	was, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, nil, fmt.Errorf("prepare the terminal: %w", err)
	}
	look := func() kbroker.TerminalSize {
		columns, rows, err := term.GetSize(int(in.Fd()))
		if err != nil {
			return usualTerminal
		}
		return kbroker.TerminalSize{Rows: uint16(rows), Columns: uint16(columns)}
	}
	sizes <- look()
	ctx, cancel := context.WithCancel(ctx)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			select {
			case sizes <- look():
			case <-ctx.Done():
				return
			}
		}
	})
	return sizes, func() {
		signal.Stop(changed)
		cancel()
		watch.Wait()
		_ = term.Restore(int(in.Fd()), was) // nothing is to be done about it
	}, nil
}

func (c *cli) signalCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "signal INSTANCE SIGNAL",
		Short: "Send a signal to the process of an instance",
		Long: `Send a signal, by name (HUP or SIGHUP), to the main process of an instance,
wherever it is; with --all to each of its processes. What that does is the
program's affair: one that ends by it has crashed, and is started again. To have
an instance leave in order use restart or scale. It is sent once.

It needs the role operator, and is in the audit trail.`,
		Example: `  kbroker signal hello-hello-1 HUP
  kbroker signal hello-hello-1 SIGUSR1 --all`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			instance, err := oneInstance(args[0])
			if err != nil {
				return err
			}
			name, err := signalName(args[1])
			if err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), 0)
			if err != nil {
				return err
			}
			defer done()
			n, err := api.Signal(ctx, instance, name, all)
			if err != nil {
				return err
			}
			result := struct {
				Instance  kbroker.InstanceID `json:"instance"`
				Signal    string             `json:"signal"`
				Processes int                `json:"processes"`
			}{instance, name, n}
			return c.print(result, func(w io.Writer) {
				fmt.Fprintf(w, "%s was sent to %d of the processes of %s\n", name, n, instance)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "to each of its processes, not to the main one alone")
	return cmd
}
