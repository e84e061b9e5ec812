package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/credential"
)

func (c *cli) contextCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context",
		Short: "Keep the clusters that you use, by name",
		Long: `Keep the clusters that you use, by name. A context says how to reach a cluster,
and as whom: servers, the roots that they prove themselves with, a tenant, a
credential. It is a file, NAME.json, for your eyes only; who has it is you.

A core host keeps one in its data directory, kbroker up one in its directory.
Commands take the context that --context or KBROKER_CONTEXT names, else the
cluster of the directory that they run in, else the current context.`,
		Example: `  ssh a sudo cat /var/lib/kbroker/context.json | kbroker context add prod --from - --use
  kbroker context ls
  kbroker context export prod`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }, // without it another word would be help, too
	}
	cmd.AddCommand(c.contextAddCommand(), c.contextLsCommand(), c.contextUseCommand(), c.contextShowCommand(), c.contextRmCommand(), c.contextExportCommand())
	return cmd
}

// ofUser refuses a flag that names a cluster where the contexts of the user are meant.
func (c *cli) ofUser(cmd *cobra.Command) error {
	if c.server == "" {
		return nil
	}
	return kbroker.Errorf(kbroker.Invalid, "%s is about the contexts that you keep, not about --context %s", cmd.CommandPath(), c.server).
		WithHint("usage: %s", cmd.UseLine())
}

// completeContexts completes the name of a context as the first argument.
func completeContexts(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all, err := client.Contexts()
	if len(args) > 0 || err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, n := range all {
		names = append(names, cobra.CompletionWithDesc(n.Name, strings.Join(n.Context.Servers, " ")))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completePlaces completes what --context takes: a context, or a path.
func completePlaces(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	names, _ := completeContexts(cmd, nil, typed)
	return names, cobra.ShellCompDirectiveDefault
}

// contextRow is a context without its secrets.
type contextRow struct {
	Name      string           `json:"name"`
	Current   bool             `json:"current"`
	Servers   []string         `json:"servers"`
	Tenant    kbroker.TenantID `json:"tenant"`
	Who       string           `json:"who"`        // what the credential calls its holder
	ExpiresAt *time.Time       `json:"expires_at"` // null: never
	Error     string           `json:"error,omitempty"`
}

func rowOf(n client.NamedContext) contextRow {
	r := contextRow{Name: n.Name, Current: n.Current, Servers: n.Context.Servers, Tenant: n.Context.Tenant}
	if r.Servers == nil {
		r.Servers = []string{}
	}
	if r.Tenant == "" && n.Err == nil {
		r.Tenant = kbroker.DefaultTenant
	}
	err := n.Err
	if err == nil {
		err = n.Context.Check(time.Now())
	}
	if err != nil {
		r.Error = err.Error()
	}
	if who, err := credential.Parse([]byte(n.Context.Credential)); err == nil {
		r.Who, r.ExpiresAt = who.Name(), ends(who)
	}
	return r
}

// ends is when a credential does; nil: never.
func ends(c credential.Credential) *time.Time {
	_, at := c.Holds()
	if at.IsZero() {
		return nil
	}
	at = at.UTC()
	return &at
}

// expiry is when who ends, for people; empty: there is nobody.
func expiry(who string, at *time.Time) string {
	switch {
	case at != nil:
		return at.Format(time.RFC3339)
	case who != "":
		return "never"
	}
	return ""
}

func (c *cli) contextLsCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "ls",
		Aliases:           []string{"list"},
		Short:             "List the contexts",
		Example:           "  kbroker context ls\n  kbroker context ls -o json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.ofUser(cmd); err != nil {
				return err
			}
			all, err := client.Contexts()
			if err != nil {
				return err
			}
			current, err := client.CurrentContext()
			if err != nil {
				return err
			}
			rows, found := []contextRow{}, current == ""
			for _, n := range all {
				rows, found = append(rows, rowOf(n)), found || n.Current
			}
			if !found {
				c.say("the current context is %s, and there is none of that name; kbroker context use takes another one", current)
			}
			return c.print(rows, func(w io.Writer) {
				t := table{header: []string{"NAME", "CURRENT", "SERVERS", "TENANT", "WHO", "EXPIRES", "ERROR"}}
				for _, r := range rows {
					mark := ""
					if r.Current {
						mark = "yes"
					}
					t.add(r.Name, mark, strings.Join(r.Servers, " "), string(r.Tenant), r.Who, expiry(r.Who, r.ExpiresAt), r.Error)
				}
				t.write(c, w)
			})
		},
	}
}

func (c *cli) contextUseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "use NAME",
		Aliases:           []string{"select"}, // as the nats CLI calls it
		Short:             "Make a context the current one",
		Example:           "  kbroker context use prod",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeContexts,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.ofUser(cmd); err != nil {
				return err
			}
			return c.useContext(args[0])
		},
	}
}

// useContext makes a context the current one, and says so if another cluster is
// used here all the same.
func (c *cli) useContext(name string) error {
	if err := client.UseContext(name); err != nil {
		return err
	}
	c.say("the current context is %s", name)
	if t, err := client.Find(""); err == nil && t.Context != name {
		c.say("here %s comes first: --context %s names it all the same", t.Source, name)
	}
	return nil
}

func (c *cli) contextRmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a context",
		Long: `Remove a context, its credential included. The current one only with --force.
What was exported for the nats CLI stays.`,
		Example:           "  kbroker context rm test\n  kbroker context rm prod --force",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeContexts,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.ofUser(cmd); err != nil {
				return err
			}
			if err := client.RemoveContext(args[0], force); err != nil {
				return err
			}
			c.say("removed context %s", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "the current one, too; there is none then")
	return cmd
}

// shownContext is what `context show` prints.
type shownContext struct {
	contextRow
	Source string `json:"source"`
	Roots  bool   `json:"roots"` // those of the cluster are known
	Key    string `json:"key"`   // the public half of the credential's
	Inbox  string `json:"inbox_prefix"`
}

func (c *cli) contextShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show a context, without its secrets",
		Long: `Show a context, without its secrets; without NAME that of the cluster that
commands would use here.`,
		Example:           "  kbroker context show\n  kbroker context show prod -o json",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeContexts,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, own, err := c.target(cmd, args)
			if err != nil {
				return err
			}
			n := client.NamedContext{Name: t.Context, Context: client.Context{Servers: t.Servers, Tenant: t.Tenant, CA: t.CA}}
			if own.Key() != "" {
				b, err := own.Encode()
				if err != nil {
					return err
				}
				n.Context.Credential = string(b)
			}
			current, err := client.CurrentContext()
			if err != nil {
				return err
			}
			n.Current = n.Name != "" && n.Name == current
			s := shownContext{contextRow: rowOf(n), Source: t.Source, Roots: t.CA != ""}
			if own.Key() != "" {
				s.Key, s.Inbox = own.Key(), own.Inbox()
			}
			return c.print(s, func(w io.Writer) { c.contextText(w, s) })
		},
	}
}

func (c *cli) contextText(w io.Writer, s shownContext) {
	line := func(what, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-10s %s\n", what, oneLine(value))
		}
	}
	roots := "not known: servers that ask for TLS are refused"
	if s.Roots {
		roots = "known"
	}
	who := s.Who
	if who == "" {
		who = "nobody"
	}
	line("name", s.Name)
	line("found by", s.Source)
	line("servers", strings.Join(s.Servers, " "))
	line("tenant", string(s.Tenant))
	line("roots", roots)
	line("who", who)
	line("expires", expiry(s.Who, s.ExpiresAt))
	line("key", s.Key)
	line("inbox", s.Inbox)
	line(c.paint(w, colorRed)("error"), s.Error)
}

// target is the context of the name that is given, else the cluster that commands
// would use here; and its credential, which is the zero one if it has none.
func (c *cli) target(cmd *cobra.Command, args []string) (client.Target, credential.Credential, error) {
	var t client.Target
	var err error
	if len(args) > 0 {
		t, err = c.named(cmd, args[0])
	} else {
		t, err = client.Find(c.server)
	}
	if err != nil {
		return t, credential.Credential{}, err
	}
	own, err := holder(t)
	return t, own, err
}

// named is one of the user's contexts.
func (c *cli) named(cmd *cobra.Command, name string) (client.Target, error) {
	if err := c.ofUser(cmd); err != nil {
		return client.Target{}, err
	}
	if _, err := client.UserContext(name); err != nil {
		return client.Target{}, err
	}
	t, err := client.Find(name)
	t.Source = "context " + name
	return t, err
}

// holder is the credential of a target.
func holder(t client.Target) (credential.Credential, error) {
	if t.CredentialFile != "" {
		return credential.Load(t.CredentialFile)
	}
	if t.Credential == "" {
		return credential.Credential{}, nil
	}
	own, err := credential.Parse([]byte(t.Credential))
	if err != nil {
		return own, kbroker.Errorf(kbroker.Invalid, "the credential from %s: %v", t.Source, err)
	}
	return own, nil
}
