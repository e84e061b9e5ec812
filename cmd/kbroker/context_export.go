package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/durable"
)

// exportedMark begins the description of what `context export` has written: that it
// replaces, and nothing else.
const exportedMark = "kbroker: "

// natsContext is a context of the nats CLI, in the form of
// github.com/nats-io/jsm.go/natscontext.
type natsContext struct {
	Description string `json:"description"`
	URL         string `json:"url"` // several: separated by commas
	Creds       string `json:"creds,omitempty"`
	CA          string `json:"ca,omitempty"`
	InboxPrefix string `json:"inbox_prefix,omitempty"`
}

// exported is what `context export` prints.
type exported struct {
	Name    string `json:"name"`
	File    string `json:"file"`
	Creds   string `json:"creds,omitempty"`
	CA      string `json:"ca,omitempty"`
	Command string `json:"command"`
}

func (c *cli) contextExportCommand() *cobra.Command {
	var name string
	var replace bool
	cmd := &cobra.Command{
		Use:   "export [NAME]",
		Short: "Write a context for the nats CLI",
		Long: `Write a context for the nats CLI, into its configuration directory: without NAME
that of the cluster that commands would use here. Its credential and roots are
copied beside it; one that ends, or was replaced, is exported again.`,
		Example: `  kbroker context export prod && nats --context prod req svc.hello.hello.greet '{"name":"Ann"}'
  kbroker context export --name here`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeContexts,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, own, err := c.target(cmd, args)
			if err != nil {
				return err
			}
			if name == "" {
				name = t.Context
			}
			if name == "" {
				name = "kbroker"
			}
			made, err := export(name, t, own, replace)
			if err != nil {
				return err
			}
			return c.print(made, func(w io.Writer) {
				fmt.Fprintf(w, "wrote %s\n\ntry:\n  %s micro ls\n", made.File, made.Command)
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "its `NAME` there (default: that of the context, else kbroker)")
	cmd.Flags().BoolVar(&replace, "force", false, "replace a context of that name that was not exported")
	must(cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions))
	return cmd
}

// export writes a target as a context of the nats CLI. Conflict: one of that name is
// not to be replaced.
func export(name string, t client.Target, own credential.Credential, replace bool) (exported, error) {
	root, err := natsConfig()
	if err != nil {
		return exported{}, err
	}
	if strings.ContainsAny(name, `/\`) || strings.Contains(name, "..") {
		return exported{}, kbroker.Errorf(kbroker.Invalid, "%q is not a name for a context of the nats CLI", name).WithHint("--name takes a word")
	}
	made := exported{Name: name, File: filepath.Join(root, "context", name+".json"), Command: "nats --context " + name}
	if !replace {
		if err := mayReplace(made); err != nil {
			return made, err
		}
	}
	secrets := filepath.Join(root, "kbroker")
	if err := errors.Join(durable.MakeDir(secrets), durable.MakeDir(filepath.Dir(made.File))); err != nil {
		return made, fmt.Errorf("export %s: %w", name, err)
	}
	out := natsContext{Description: exportedMark + fmt.Sprintf("tenant %s, from %s", t.Tenant, t.Source), URL: strings.Join(t.Servers, ",")}
	if own.Key() != "" {
		if err := own.Check(time.Now()); err != nil {
			return made, kbroker.Errorf(kbroker.Invalid, "the credential from %s is of no use: %v", t.Source, err).
				WithHint("kbroker context add NAME --force --from NAME --creds FILE replaces it")
		}
		made.Creds = filepath.Join(secrets, name+".creds")
		if err := own.Save(made.Creds); err != nil {
			return made, err
		}
		out.Description = exportedMark + fmt.Sprintf("%s, tenant %s, from %s", own.Name(), t.Tenant, t.Source)
		out.Creds, out.InboxPrefix = made.Creds, own.Inbox()
	}
	if t.CA != "" {
		made.CA = filepath.Join(secrets, name+".ca.pem")
		if err := durable.Replace(made.CA, []byte(t.CA), 0o600); err != nil {
			return made, err
		}
		out.CA = made.CA
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return made, fmt.Errorf("encode a context of the nats CLI: %w", err)
	}
	return made, durable.Replace(made.File, append(b, '\n'), 0o600)
}

// mayReplace refuses to replace a context that somebody else has made.
func mayReplace(made exported) error {
	b, err := os.ReadFile(made.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var there natsContext
	if err == nil && json.Unmarshal(b, &there) == nil && strings.HasPrefix(there.Description, exportedMark) {
		return nil
	}
	return kbroker.Errorf(kbroker.Conflict, "there is a context %s of the nats CLI, which was not exported from here", made.Name).
		WithHint("--name NAME gives this one another name, --force replaces %s", made.File)
}

// natsConfig is where the nats CLI looks for its contexts: not os.UserConfigDir, which
// is another directory on some systems.
func natsConfig() (string, error) {
	config := os.Getenv("XDG_CONFIG_HOME")
	if config == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the configuration of the nats CLI: %w", err)
		}
		config = filepath.Join(home, ".config")
	}
	config, err := filepath.Abs(config)
	if err != nil {
		return "", fmt.Errorf("find the configuration of the nats CLI: %w", err)
	}
	return filepath.Join(config, "nats"), nil
}
