package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/credential"
)

// newUser is who `user create` makes.
type newUser struct {
	name kbroker.UserName
	role kbroker.UserRole
	life lifeFlag
	file string
}

// createdUser is what it prints.
type createdUser struct {
	Name    kbroker.UserName `json:"name"`
	Role    kbroker.UserRole `json:"role"`
	Expires *time.Time       `json:"expires"` // null: never
	Key     string           `json:"key"`     // public
	File    string           `json:"file"`
}

func (c *cli) userCreateCommand() *cobra.Command {
	var u newUser
	cmd := &cobra.Command{
		Use:   "create NAME --role ROLE",
		Short: "Make a user, and the context file to use the cluster as them",
		Long: `Make a user, and a file NAME.json for them: a context, with the servers of the cluster,
its roots, and a credential. Who has the file is the user. The key in it is made here,
and goes nowhere else; the cluster has its public half on record.

An answer that is lost leaves the file with a key that nothing was signed for yet: the
same command again goes on with it.`,
		Example: `  kbroker user create ann --role deployer --ttl 90d
  kbroker user create ci --role deployer --out /run/secrets/ci.json
  kbroker context add prod --from ann.json --use      # what ann does`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			u.name = kbroker.UserName(args[0])
			if err := kbroker.CheckUser(u.name, u.role, time.Duration(u.life)); err != nil {
				return err
			}
			if u.file == "" {
				u.file = args[0] + ".json"
			}
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			made, err := c.createUser(ctx, u)
			if err != nil {
				return err
			}
			c.say("whoever has %s is %s: hand it on as a secret. With it: kbroker context add %s --from %s", u.file, u.name, u.name, u.file)
			return c.print(made, func(w io.Writer) {
				until := ""
				if made.Expires != nil {
					until = ", until " + made.Expires.Local().Format(time.DateTime)
				}
				fmt.Fprintf(w, "user %s is %s%s: %s\n", made.Name, made.Role, until, made.File)
			})
		},
	}
	var roles []string
	for _, r := range kbroker.UserRoles {
		roles = append(roles, string(r))
	}
	f := cmd.Flags()
	f.StringVar((*string)(&u.role), "role", "", "what the user may do: viewer, deployer, operator or admin")
	f.Var(&u.life, "ttl", "how long the credential holds, such as 90d (default: until it is revoked)")
	f.StringVar(&u.file, "out", "", "the `FILE` to write (default: NAME.json here)")
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roles, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.MarkFlagFilename("out", "json"))
	return cmd
}

// createUser has a key signed that is on this disk before the cluster hears of it.
func (c *cli) createUser(ctx context.Context, u newUser) (createdUser, error) {
	api, target, err := c.open(ctx)
	if err != nil {
		return createdUser{}, err
	}
	defer api.Close()
	own, fresh, err := userKey(u.file, target)
	if err != nil {
		return createdUser{}, err
	}
	reply, err := api.CreateUser(ctx, u.name, u.role, own, time.Duration(u.life), whoAmI())
	switch {
	case err == nil:
	case fresh && neverMade(err):
		return createdUser{}, errors.Join(err, os.Remove(u.file))
	case neverMade(err):
		e := kbroker.AsError(err)
		return createdUser{}, e.WithHint("%s; %s is left of an earlier attempt: remove it to begin again with another key", e.Hint, u.file)
	default:
		if e, ok := errors.AsType[*kbroker.Error](err); ok {
			err = e.WithHint("the same command again goes on with the key in %s", u.file)
		}
		return createdUser{}, err
	}
	made, err := contextOf(target, own.Signed(reply.Credential))
	if err != nil {
		return createdUser{}, err
	}
	if err := client.ReplaceContext(u.file, made); err != nil {
		return createdUser{}, err
	}
	out := createdUser{Name: u.name, Role: u.role, Key: own.Key(), File: u.file}
	if !reply.Expires.IsZero() {
		out.Expires = &reply.Expires
	}
	return out, nil
}

// neverMade reports whether an error is the answer of a leader, or of the servers, that
// there is no such user now.
func neverMade(err error) bool {
	for _, code := range []kbroker.Code{kbroker.Invalid, kbroker.Conflict, kbroker.Refused, kbroker.NotFound} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// userKey is the key in a file that an earlier attempt has left; else a fresh one, which
// is in the file then. Conflict: the file is something else.
func userKey(file string, target client.Target) (own credential.Credential, fresh bool, err error) {
	b, err := os.ReadFile(file)
	if err == nil {
		left, err := client.ParseContext(b, file)
		if err == nil {
			own, err = credential.Parse([]byte(left.Credential))
		}
		if err != nil || own.IsSigned() {
			return own, false, kbroker.Errorf(kbroker.Conflict, "there is a file %s already", file).WithHint("--out names another one")
		}
		return own, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return own, false, fmt.Errorf("read what is at the place of the context: %w", err)
	}
	if own, err = credential.New(); err != nil {
		return own, false, err
	}
	c, err := contextOf(target, own)
	if err != nil {
		return own, false, err
	}
	return own, true, client.SaveContext(file, c)
}

// contextOf says how to reach a target as another one.
func contextOf(target client.Target, own credential.Credential) (client.Context, error) {
	b, err := own.Encode()
	return client.Context{Servers: target.Servers, Tenant: target.Tenant, CA: target.CA, Credential: string(b)}, err
}
