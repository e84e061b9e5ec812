package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker/node"
)

func (c *cli) agentCredsCommand() *cobra.Command {
	var dir, role string
	cmd := &cobra.Command{
		Use:   "creds",
		Short: "Print a credential that this core host makes",
		Long: `Print a credential (a .creds file, as the nats CLI takes it) that this core host makes
by itself, whatever is down: who may read the data directory of a core may do
everything. It never expires, is on no record, and cannot be revoked: for people and
programs there is kbroker user create.

` + rolesHelp + `
  core      read and write all that is stored: only for what no command mends`,
		Example: `  kbroker agent creds --dir /var/lib/kbroker > admin.creds
  kbroker agent creds --dir /var/lib/kbroker --role viewer > ann.creds`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			creds, err := node.Credential(dir, role)
			if err != nil {
				return err
			}
			_, err = c.out.Write([]byte(strings.TrimSpace(creds) + "\n"))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", defaultAgentDir, "data `directory` of the host")
	f.StringVar(&role, "role", node.AdminRole, "one of "+strings.Join(node.Roles, ", "))
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(node.Roles, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}
