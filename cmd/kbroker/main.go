// Command kbroker is the one binary of the system: the daemon of a host, a
// cluster on this machine, and the commands that deploy and watch applications.
//
// Each command is one file and only turns flags into calls of package client,
// node or sdk, and their results into output. Results go to standard output,
// everything else to standard error; exit.go holds the exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, err io.Writer) int {
	c := &cli{in: in, out: out, err: err}
	root := c.root()
	root.SetArgs(args)
	failure := root.ExecuteContext(ctx)
	if failure != nil && !c.running {
		// Cobra's own errors: unknown commands and flags, missing arguments.
		failure = usageError(failure, root, args)
	}
	if child, ok := errors.AsType[endedWith](failure); ok {
		return int(child)
	}
	if failure != nil {
		c.printError(failure)
	}
	return exitCode(failure)
}

// cli is what all commands share: the streams and the global flags.
type cli struct {
	in       io.Reader
	out, err io.Writer

	output  outputFormat
	server  string
	timeout timeoutFlag
	running bool // arguments were understood; what fails now is not their fault
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "kbroker",
		Short: "Run message-driven server programs on a cluster of hosts",
		Long: `kbroker runs message-driven server programs on a set of Linux hosts as if they
were one machine: it starts them, calls them, and moves them away from hosts
that fail.`,
		Example: `  kbroker up --hosts 3 --demo
  kbroker deploy examples/hello/app.yaml
  kbroker call hello greet name=World`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       node.Version,
		PersistentPreRun: func(*cobra.Command, []string) {
			c.running = true
		},
	}
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	flags := root.PersistentFlags()
	flags.VarP(&c.output, "output", "o", "how results are printed: table, json or yaml")
	flags.StringVar(&c.server, "context", "", "the cluster, by `NAME`: a context or its file, the directory of a core host or of kbroker up, or nats:// addresses")
	flags.StringVar(&c.server, "server", "", "the same as --context, by `NAME`")
	flags.Var(&c.timeout, "timeout", "give up after this long, for example 30s (default: what suits the command)")
	if err := root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputFormats, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is defined above
	}
	must(root.RegisterFlagCompletionFunc("context", completePlaces))
	must(root.RegisterFlagCompletionFunc("server", completePlaces))
	root.AddCommand(
		c.upCommand(), c.downCommand(), c.agentCommand(),
		c.validateCommand(), c.deployCommand(), c.scaleCommand(), c.stopCommand(),
		c.appsCommand(), c.psCommand(), c.topCommand(), c.hostsCommand(), c.statusCommand(), c.doctorCommand(), c.metricsCommand(), c.logsCommand(), c.objectsCommand(), c.allocatorCommand(), c.endpointsCommand(), c.execCommand(), c.signalCommand(),
		c.initCommand(), c.runCommand(),
		c.tokenCommand(), c.userCommand(), c.drainCommand(), c.undrainCommand(), c.removeCommand(),
		c.historyCommand(), c.rollbackCommand(), c.restartCommand(), c.planCommand(), c.eventsCommand(), c.whyCommand(), c.auditCommand(),
		c.callCommand(), c.contextCommand(), c.versionCommand(), c.builtinCommand(),
	)
	return root
}

// wrongCount is how cobra says that there are too few or too many arguments.
var wrongCount = regexp.MustCompile(`^(?:accepts|requires) ((?:at least|at most|between) )?(\d+(?: and \d+)?) arg\(s\), (?:only )?received (\d+)$`)

// counted is a number of things in words.
func counted(number, of string) string {
	if number == "1" || strings.HasSuffix(number, " 1") {
		return number + " " + of
	}
	return number + " " + of + "s"
}

// usageError turns an error of cobra into one of this system.
func usageError(err error, root *cobra.Command, args []string) error {
	if _, ok := errors.AsType[*kbroker.Error](err); ok {
		return err
	}
	command, _, findErr := root.Find(args)
	if findErr != nil {
		command = root
	}
	message, rest, _ := strings.Cut(err.Error(), "\n")
	// What the standard library says about a number is for its callers.
	message, _, _ = strings.Cut(message, ": strconv.")
	if m := wrongCount.FindStringSubmatch(message); m != nil {
		message = fmt.Sprintf("%s wants %s, got %s", command.CommandPath(), counted(m[1]+m[2], "argument"), m[3])
	} else if word := command.Flags().Arg(0); command.HasParent() && !command.HasSubCommands() && strings.HasPrefix(message, "unknown command ") {
		message = fmt.Sprintf("%s takes no argument, got %q", command.CommandPath(), word)
	}
	e := kbroker.Errorf(kbroker.Invalid, "%s", message)
	if similar := strings.Fields(strings.TrimPrefix(strings.TrimSpace(rest), "Did you mean this?")); len(similar) > 0 {
		return e.WithHint("is it %s? %s --help shows how it is used", strings.Join(similar, " or "), command.CommandPath())
	}
	if message == "unknown flag: --dir" {
		return e.WithHint("up and down take --dir; here --context DIR names the cluster")
	}
	if command.Args != nil && command.ValidateArgs(command.Flags().Args()) != nil {
		return e.WithHint("usage: %s; --help shows more", command.UseLine())
	}
	return e.WithHint("%s --help shows how it is used", command.CommandPath())
}
