package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

// rolesHelp is what the roles of people may do (internal/grants).
const rolesHelp = `Roles, each of which may do what the one before may:
  viewer    look at hosts, apps and instances, their output and events
  deployer  deploy, scale, stop and call apps
  operator  drain, remove and upgrade hosts
  admin     let hosts and users in, read the audit trail`

func (c *cli) userCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "user",
		Short: "Let people use the cluster",
		Long: `Let people, and their tools, use the cluster: each with a name, a key of their own and
a role. ` + rolesHelp + `

The admin in context.json in the data directory of a core host, and what kbroker agent
creds makes there, are on no record: they always work, and cannot be revoked.`,
		Example: `  kbroker user create ann --role deployer --ttl 90d
  kbroker user ls
  kbroker user revoke ann`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return kbroker.Errorf(kbroker.Invalid, "kbroker user wants to know what to do").WithHint("create, ls or revoke; --help shows more")
		},
	}
	cmd.AddCommand(c.userCreateCommand(), c.userListCommand(), c.userRevokeCommand())
	return cmd
}

// lifeFlag is the value of --ttl of users: a duration, or days. 0: for ever.
type lifeFlag time.Duration

func (l *lifeFlag) String() string {
	if *l == 0 {
		return ""
	}
	return time.Duration(*l).String()
}

func (l *lifeFlag) Type() string { return "duration" }

func (l *lifeFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int64
		n, err = strconv.ParseInt(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || d <= 0 {
		return fmt.Errorf("must be a duration above zero, such as 90d or 12h")
	}
	*l = lifeFlag(d)
	return nil
}

func (c *cli) userListCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the users",
		Long: `List the users: active, expired, revoked. One whose credential has ended is forgotten
after a day; one that was revoked is listed until then, and with --all also if it never
ends. For admins only.`,
		Example:           "  kbroker user ls\n  kbroker user ls --all -o json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			rows, err := c.users(ctx, all)
			if err != nil {
				return err
			}
			return c.print(rows, func(w io.Writer) { c.usersTable(w, rows) })
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that were revoked and never end")
	return cmd
}

func (c *cli) users(ctx context.Context, all bool) ([]kbroker.UserRow, error) {
	api, _, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	defer api.Close()
	return api.Users(ctx, all)
}

func (c *cli) usersTable(w io.Writer, rows []kbroker.UserRow) {
	t := table{header: []string{"NAME", "ROLE", "STATE", "SINCE", "EXPIRES", "REVOKED", "BY"}}
	for _, r := range rows {
		expires, revoked := "never", ""
		if r.Expires != nil {
			expires = r.Expires.Local().Format(time.DateTime)
		}
		if r.Revoked != nil {
			revoked = r.Revoked.Local().Format(time.DateTime)
		}
		t.add(string(r.Name), string(r.Role), string(r.State), r.Created.Local().Format(time.DateTime), expires, revoked, r.By)
	}
	t.write(c, w)
}

// revokedUser is what `user revoke` prints.
type revokedUser struct {
	Name      kbroker.UserName `json:"name"`
	Unchanged bool             `json:"unchanged"` // it had been revoked, or had expired
}

func (c *cli) userRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME",
		Short: "Take the credential of a user back",
		Long: `Take the credential of a user back: within five seconds no core takes it any more, and
who is connected with it is cut off. The name can be given again, with another key.`,
		Example:           "  kbroker user revoke ann",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeUsers,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := kbroker.CheckName("user", args[0]); err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			name := kbroker.UserName(args[0])
			reply, err := api.RevokeUser(ctx, name)
			if err != nil {
				return err
			}
			return c.print(revokedUser{name, reply.Unchanged}, func(w io.Writer) {
				if reply.Unchanged {
					fmt.Fprintf(w, "user %s was out already\n", name)
					return
				}
				fmt.Fprintf(w, "user %s is out\n", name)
			})
		},
	}
}

// completeUsers completes the name of a user that may be revoked.
func (c *cli) completeUsers(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	rows, err := c.users(ctx, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, r := range rows {
		if r.State == kbroker.UserActive {
			names = append(names, cobra.CompletionWithDesc(string(r.Name), string(r.Role)))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
