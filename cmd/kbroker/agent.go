package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

func (c *cli) agentCommand() *cobra.Command {
	var configFile string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run this host's daemon",
		Long: `Run this host's daemon until SIGTERM or SIGINT. Applications go on running then;
the next agent on the same directory takes them over. SIGUSR2 restarts it in place:
the program on disk is executed in the same process, see kbroker agent upgrade.

Every flag can also be given in the file of --config (a flag's name with _ for -)
and in the environment (KBROKER_AGENT_ and the name in capitals); a flag wins over
the environment, the environment over the file. Once a host belongs to a cluster,
its directory knows name, role, ports and cluster, and --dir is enough.`,
		Example: `  kbroker agent --dir /var/lib/kbroker --name a --found --advertise 10.0.0.1
  kbroker agent --dir /var/lib/kbroker --name b --join 10.0.0.1:4222 --advertise 10.0.0.2
  kbroker agent --dir /var/lib/kbroker --name w --join 10.0.0.1:4222 --role worker
  kbroker agent --config /etc/kbroker.yaml`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needLinux(); err != nil {
				return err
			}
			settings, err := loadAgentSettings(configFile, cmd.Flags())
			if err != nil {
				return err
			}
			return node.Serve(cmd.Context(), settings.node(newLogger(c.err)))
		},
	}
	f := cmd.Flags()
	f.StringVar(&configFile, "config", "", "read settings from this YAML `file`")
	f.String("dir", defaultAgentDir, "data directory of the host")
	f.String("name", "", "permanent name of the host (default: the machine's)")
	f.String("role", "", "core or worker (default: core)")
	f.Bool("found", false, "found a new cluster, unless the directory belongs to one")
	f.String("advertise", "", "the `IP` that other hosts and clients reach a core at")
	f.StringSlice("join", nil, "client addresses (`HOST:PORT`) of cores to join through")
	f.Int("client-port", 0, "port for clients (default: picked once)")
	f.Int("route-port", 0, "port for the other cores (default: picked once)")
	f.StringToString("label", nil, "labels of the host, for constraints, as `KEY=VALUE`")
	f.Bool("stock-raft", false, "the broker's own raft timing: slower failover, more patience with slow disks")
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{string(kbroker.RoleCore), string(kbroker.RoleWorker)}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.MarkFlagDirname("dir"))
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	cmd.AddCommand(c.agentUpgradeCommand())
	return cmd
}

// needLinux refuses what only Linux can do.
func needLinux() error {
	if runtime.GOOS != "linux" {
		return kbroker.Errorf(kbroker.Refused, "this command needs Linux, this is %s", runtime.GOOS).
			WithHint("client commands work here: name a cluster with --context")
	}
	return nil
}

// must is for flags that are defined a few lines above.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
