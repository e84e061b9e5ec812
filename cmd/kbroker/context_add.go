package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// maxContextBytes bounds what is read of a context, roots or a credential.
const maxContextBytes = 1 << 20

// contextParts are the flags of `context add`.
type contextParts struct {
	from, ca, creds, tenant string
	servers                 []string
	replace, use            bool
}

func (c *cli) contextAddCommand() *cobra.Command {
	var p contextParts
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a context",
		Long: `Add a context: a copy of another one, one made of parts, or a copy with some parts
replaced.

--from takes the data directory of a core host, the directory of kbroker up, a
context file, the name of another context, or - for standard input. Files that
--ca and --creds name are read now; they are not needed later.`,
		Example: `  kbroker context add prod --from prod.json --use
  ssh a sudo cat /var/lib/kbroker/context.json | kbroker context add prod --from - --use
  kbroker context add test --server nats://10.0.0.1:4222,nats://10.0.0.2:4222 --ca root.crt --creds ann.creds
  kbroker context add ann --from prod --creds ann.creds`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.ofUser(cmd); err != nil {
				return err
			}
			return c.addContext(args[0], p)
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.from, "from", "", "copy another context: a `FILE`, a directory, a name, or - for standard input")
	f.StringSliceVar(&p.servers, "server", nil, "`URL`s of servers, such as nats://10.0.0.1:4222")
	f.StringVar(&p.ca, "ca", "", "the `FILE` of the cluster's roots: identity/*/root.crt in the data directory of a host")
	f.StringVar(&p.creds, "creds", "", "the `FILE` of a credential, as kbroker agent creds prints it; - for standard input")
	f.StringVar(&p.tenant, "tenant", "", "the `NAME` of a tenant (default: default)")
	f.BoolVar(&p.replace, "force", false, "replace a context of that name")
	f.BoolVar(&p.use, "use", false, "make it the current one")
	must(cmd.RegisterFlagCompletionFunc("from", completePlaces))
	must(cmd.RegisterFlagCompletionFunc("server", cobra.NoFileCompletions))
	must(cmd.RegisterFlagCompletionFunc("tenant", cobra.NoFileCompletions))
	must(cmd.MarkFlagFilename("ca", "crt", "pem"))
	must(cmd.MarkFlagFilename("creds", "creds"))
	return cmd
}

func (c *cli) addContext(name string, p contextParts) error {
	added, err := c.gather(p)
	if err != nil {
		return err
	}
	if err := added.Check(time.Now()); err != nil {
		return fmt.Errorf("context %s: %w", name, err)
	}
	if err := client.AddContext(name, added, p.replace); err != nil {
		return err
	}
	for _, missing := range []struct{ value, text string }{
		{added.CA, "it does not have the roots of the cluster, which its servers prove themselves with: --ca FILE"},
		{added.Credential, "it has no credential, so that the cluster lets it do nothing: --creds FILE"},
	} {
		if missing.value == "" {
			c.say("%s", missing.text)
		}
	}
	r := rowOf(client.NamedContext{Name: name, Context: added})
	c.say("added context %s: %s", name, oneLine(strings.TrimSpace(r.Who+" on "+strings.Join(r.Servers, " "))))
	if p.use {
		return c.useContext(name)
	}
	return nil
}

// gather makes a context of what the flags say.
func (c *cli) gather(p contextParts) (made client.Context, err error) {
	switch {
	case p.from == "" && len(p.servers) == 0:
		return made, kbroker.Errorf(kbroker.Invalid, "a context of what?").
			WithHint("--from FILE takes another one, such as context.json in the data directory of a core host; or name the parts, --server at least")
	case p.from == "-" && p.creds == "-":
		return made, kbroker.Errorf(kbroker.Invalid, "--from and --creds cannot both be standard input").WithHint("write one to a file")
	case p.from == "-":
		made, err = c.pipedContext()
	case p.from != "":
		made, err = client.ReadContext(p.from)
	}
	if err != nil {
		return made, err
	}
	if len(p.servers) > 0 {
		made.Servers = nil
		for _, s := range p.servers {
			if !strings.Contains(s, "://") {
				s = "nats://" + s
			}
			made.Servers = append(made.Servers, s)
		}
	}
	if p.tenant != "" {
		made.Tenant = kbroker.TenantID(p.tenant)
	}
	for _, part := range []struct {
		flag, path string
		into       *string
	}{{"--ca", p.ca, &made.CA}, {"--creds", p.creds, &made.Credential}} {
		if part.path == "" {
			continue
		}
		if *part.into, err = c.readPart(part.flag, part.path); err != nil {
			return made, err
		}
	}
	return made, nil
}

// pipedContext reads a context that another command prints.
func (c *cli) pipedContext() (client.Context, error) {
	b, err := readBounded(c.in)
	if err != nil {
		return client.Context{}, fmt.Errorf("read a context from standard input: %w", err)
	}
	made, err := client.ParseContext(b, "from standard input")
	if err != nil {
		err = kbroker.AsError(err).WithHint("the command before the pipe prints a %s file: of a core host, ssh HOST sudo cat DIR/%s", client.ContextFile, client.ContextFile)
	}
	return made, err
}

// readPart reads the file that a flag names; it is not empty.
func (c *cli) readPart(flag, path string) (string, error) {
	in := c.in
	if path != "-" {
		f, err := os.Open(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", kbroker.Errorf(kbroker.NotFound, "%s %s: there is no such file", flag, path)
		case err != nil:
			return "", kbroker.Errorf(kbroker.Invalid, "%s %s: %v", flag, path, reason(err))
		}
		defer f.Close()
		in = f
	}
	b, err := readBounded(in)
	if err == nil && len(strings.TrimSpace(string(b))) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return "", kbroker.Errorf(kbroker.Invalid, "%s %s: %v", flag, path, reason(err))
	}
	return string(b), nil
}

// readBounded reads all of what is small.
func readBounded(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxContextBytes+1))
	if err == nil && len(b) > maxContextBytes {
		err = kbroker.Errorf(kbroker.Invalid, "it is larger than %s", bytesText(maxContextBytes))
	}
	return b, err
}
