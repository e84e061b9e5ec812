package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

func (c *cli) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Let a host join the cluster",
		Long: `Let a host join the cluster. A token admits one host, once, in one role, and only
for a short while; a host that has joined needs it no more. It has the fingerprint of
the cluster's root, too: the host that joins sends it to no other cluster.`,
		Example: `  kbroker token create --role worker
  kbroker token ls`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return kbroker.Errorf(kbroker.Invalid, "kbroker token wants to know what to do").WithHint("create, ls or revoke; --help shows more")
		},
	}
	cmd.AddCommand(c.tokenCreateCommand(), c.tokenListCommand(), c.tokenRevokeCommand())
	return cmd
}

func (c *cli) tokenCreateCommand() *cobra.Command {
	var role, name string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create --role ROLE",
		Short: "Make a token with which one host joins",
		Long: `Make a token with which one host joins, and print it: one line, which is kept
nowhere else. Bring it to the host in a file that nobody else reads, and give the file
to its agent; on a command line or in an environment others would see it.

It holds for 15 minutes (--ttl, a day at most). A host that has shown it in time and is
told to wait, because another one joins, may be admitted later.`,
		Example: `  kbroker token create --role core > join.token
  kbroker token create --role worker --name w7 --ttl 1h
  kbroker token create --role worker | ssh w7 kbroker agent --join 10.0.0.1:4222 --token-file - --role worker`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkTokenFlags(role, name, ttl); err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			t, err := api.CreateToken(ctx, kbroker.Role(role), kbroker.HostID(name), ttl, whoAmI())
			if err != nil {
				return err
			}
			c.say("for one host, as %s, until %s; on it: kbroker agent --join ADDR --token-file FILE --role %s", t.Role, t.Expires.Local().Format(time.TimeOnly), t.Role)
			return c.print(t, func(w io.Writer) { fmt.Fprintln(w, t.Text) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", "what the host joins as: core or worker")
	f.StringVar(&name, "name", "", "the `host` that it is for (default: any)")
	f.DurationVar(&ttl, "ttl", kbroker.TokenTTL, "how long it holds, at most 24h")
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{string(kbroker.RoleCore), string(kbroker.RoleWorker)}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// checkTokenFlags refuses what the cluster would, before it is asked.
func checkTokenFlags(role, name string, ttl time.Duration) error {
	if r := kbroker.Role(role); r != kbroker.RoleCore && r != kbroker.RoleWorker {
		return kbroker.Errorf(kbroker.Invalid, "role is %q, want core or worker", role).
			WithHint("a token is for a host of one role: --role core or --role worker")
	}
	if name != "" {
		if err := kbroker.CheckName("host", name); err != nil {
			return err
		}
	}
	return kbroker.CheckTokenTTL(ttl)
}

// whoAmI is who makes a token, as far as this machine knows.
func whoAmI() string {
	name, host := "someone", "somewhere"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	plain := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, name+"@"+host)
	return strings.ToValidUTF8(plain[:min(len(plain), kbroker.MaxTokenBy)], "")
}

func (c *cli) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the tokens",
		Long: `List the tokens, the newest last: unused, waiting (a host has shown it in time and
is told to wait), used, expired, revoked. Those that have ended are forgotten after a
day. The tokens themselves are kept nowhere and cannot be shown again.`,
		Example:           "  kbroker token ls\n  kbroker token ls -o json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			rows, err := c.tokens(ctx)
			if err != nil {
				return err
			}
			return c.print(rows, func(w io.Writer) { c.tokensTable(w, rows) })
		},
	}
}

func (c *cli) tokens(ctx context.Context) ([]kbroker.TokenRow, error) {
	api, _, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	defer api.Close()
	return api.Tokens(ctx)
}

func (c *cli) tokensTable(w io.Writer, rows []kbroker.TokenRow) {
	t := table{header: []string{"ID", "STATE", "ROLE", "FOR", "EXPIRES", "HOST", "SINCE", "BY"}}
	for _, r := range rows {
		at := ""
		if r.At != nil {
			at = r.At.Local().Format(time.DateTime)
		}
		host := ""
		if r.Host != nil {
			host = string(*r.Host)
		}
		t.add(r.ID, string(r.State), string(r.Role), string(r.Name), r.Expires.Local().Format(time.DateTime), host, at, r.By)
	}
	t.write(c, w)
}

// revokedToken is what `token revoke` prints.
type revokedToken struct {
	ID        string `json:"id"`
	Unchanged bool   `json:"unchanged"` // it had been revoked, or had expired
}

func (c *cli) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a token that nobody has used",
		Long: `End a token that nobody has used. A host that has joined with one is taken out with
kbroker remove.`,
		Example:           "  kbroker token revoke k5x2aq7wd3ml",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeTokens,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := kbroker.CheckTokenID(args[0]); err != nil {
				return err
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			reply, err := api.RevokeToken(ctx, args[0])
			if err != nil {
				return err
			}
			return c.print(revokedToken{args[0], reply.Unchanged}, func(w io.Writer) { fmt.Fprintf(w, "token %s is good for nobody\n", args[0]) })
		},
	}
}

// completeTokens completes the name of a token that may be revoked.
func (c *cli) completeTokens(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	rows, err := c.tokens(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []cobra.Completion
	for _, r := range rows {
		if r.State == kbroker.TokenUnused || r.State == kbroker.TokenWaiting {
			ids = append(ids, r.ID)
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
