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
its directory knows name, role, ports and cluster, and --dir is enough.

The first host founds the cluster. Every other one joins through a core of it, with
a token from kbroker token create; it sends the token to nobody else.
kbroker agent config prints a file with every setting and what it means.`,
		Example: `  kbroker agent --dir /var/lib/kbroker --name a --found --advertise 10.0.0.1
  kbroker token create --role core > join.token    # on a host of the cluster
  kbroker agent --dir /var/lib/kbroker --name b --join 10.0.0.1:4222 --token-file join.token --advertise 10.0.0.2
  kbroker agent --dir /var/lib/kbroker --name w --join 10.0.0.1:4222 --token-file - --role worker
  kbroker agent --config /etc/kbroker/agent.yaml`,
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
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	addSettingFlags(cmd)
	cmd.AddCommand(c.agentConfigCommand(), c.agentInstallCommand(), c.agentUpgradeCommand(), c.agentRescueCommand(), c.agentCredsCommand())
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
