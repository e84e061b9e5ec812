package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

const (
	// moveTimeout is how long a move is waited for, and movePoll how often it is looked at.
	moveTimeout = 30 * time.Second
	movePoll    = 400 * time.Millisecond
)

// objectResult is what commands that do something with objects print.
type objectResult struct {
	Object string `json:"object,omitempty"`
	Done   bool   `json:"done"` // false: it goes on
	Shards int    `json:"shards,omitempty"`
	// Message is for people.
	Message string `json:"message"`
}

func (c *cli) objectsMoveCommand() *cobra.Command {
	var shard int
	var from string
	var even, detach bool
	cmd := &cobra.Command{
		Use:   "move APP/KIND:ID INSTANCE | APP --shard N INSTANCE | APP --from INSTANCE [INSTANCE] | APP --even",
		Short: "Move the shard of an object to another instance",
		Long: `Move the shard that an object is in to another instance: with it move all objects
of that shard, about one in 1,024. Its owner brings to an end what runs, and calls
go on, a little later. It stays there until that start of the instance ends, or
it is moved again.

--shard N moves a shard by its number. --from moves all that an instance owns to
the others, or to one; it gets nothing more until it is started again. --even takes
all of that back: shards are spread evenly over the instances.

It needs the role operator, and is in the audit trail.`,
		Example: `  kbroker objects move bank/account:alice bank-ledger-2
  kbroker objects move bank --shard 17 bank-ledger-2
  kbroker objects move bank --from bank-ledger-1
  kbroker objects move bank --even`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := moveRequest(args, cmd.Flags().Changed("shard"), shard, from, even)
			if err != nil {
				return err
			}
			return c.objectAct(cmd.Context(), moveTimeout, r, func(ctx context.Context, api *client.Client, reply kbroker.ObjectActReply) (bool, error) {
				c.say("%s", reply.Message)
				if detach || even { // of the latter nobody can say when it has happened
					return false, nil
				}
				return true, c.awaitMoves(ctx, api, r.App, reply.Moves)
			})
		},
	}
	cmd.Flags().IntVar(&shard, "shard", 0, "move the shard of this number")
	cmd.Flags().StringVar(&from, "from", "", "move all shards of this `INSTANCE`")
	cmd.Flags().BoolVar(&even, "even", false, "take back all moves that were asked for")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until it has moved")
	return cmd
}

// moveRequest is what the words and flags of a move mean.
func moveRequest(args []string, byShard bool, shard int, from string, even bool) (kbroker.ObjectActRequest, error) {
	r := kbroker.ObjectActRequest{Verb: kbroker.ObjectMove, Even: even}
	wrong := func(format string, a ...any) (kbroker.ObjectActRequest, error) {
		return r, kbroker.Errorf(kbroker.Invalid, format, a...).WithHint("kbroker objects move --help shows how it is used")
	}
	var err error
	if strings.Contains(args[0], "/") {
		var o kbroker.Object
		if r.App, o, err = kbroker.ParseObject(args[0]); err != nil {
			return r, err
		}
		if r.Kind, r.Object = o.Kind, o.ID; byShard || from != "" || even {
			return wrong("%s is an object: --shard, --from and --even are of an app", args[0])
		}
	} else if r.App, err = appName(args[0]); err != nil {
		return r, err
	}
	if len(args) == 2 {
		if r.To, err = oneInstance(args[1]); err != nil {
			return r, err
		}
	}
	if from != "" {
		if r.From, err = oneInstance(from); err != nil {
			return r, err
		}
	}
	if byShard {
		if shard < 0 || shard >= kbroker.Shards {
			return r, kbroker.Errorf(kbroker.Invalid, "there is no shard %d", shard).WithHint("shards are from 0 to %d", kbroker.Shards-1)
		}
		n := kbroker.Shard(shard)
		r.Shard = &n
	}
	of := 0
	for _, is := range []bool{r.Kind != "", byShard, from != "", even} {
		if is {
			of++
		}
	}
	switch {
	case of == 0:
		return wrong("it is not said what of app %s is to move", r.App)
	case of > 1:
		return wrong("--shard, --from and --even exclude each other")
	case even && r.To != "":
		return wrong("--even moves to all instances, not to %s", r.To)
	case r.To == "" && from == "" && !even:
		return wrong("it is not said to which instance it is to move")
	}
	return r, nil
}

// awaitMoves returns when shards are where they are wanted.
func (c *cli) awaitMoves(ctx context.Context, api *client.Client, app kbroker.AppName, moves map[kbroker.Shard]kbroker.Incarnation) error {
	tick := time.NewTicker(movePoll)
	defer tick.Stop()
	for {
		r, err := api.ObjectOwners(ctx, app)
		if err != nil && ctx.Err() == nil {
			return err
		}
		left := 0
		for _, m := range r.Moving {
			if to, ok := moves[m.Shard]; ok && (m.Asked || to == "") {
				left++
			}
		}
		if err == nil && left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return kbroker.Errorf(kbroker.DeadlineExceeded, "%s on the way; it goes on", client.Counted(left, "shard")).
				WithHint("`kbroker objects %s` shows how far it is; an allocator of the app must run, and turns come to an end", app)
		case <-tick.C:
		}
	}
}

func (c *cli) objectsDeactivateCommand() *cobra.Command {
	return c.objectCommand(&cobra.Command{
		Use:   "deactivate APP/KIND:ID",
		Short: "Take an object out of memory; its next call loads it again",
		Long: `Take an object out of memory, if no call of it runs or waits; its next call loads
it again, as it is stored. It needs the role operator, and is in the audit trail.`,
		Example: "  kbroker objects deactivate bank/account:alice",
	}, kbroker.ObjectDeactivate, nil)
}

func (c *cli) objectsReleaseCommand() *cobra.Command {
	return c.objectCommand(&cobra.Command{
		Use:   "release APP/KIND:ID",
		Short: "End the quarantine of an object",
		Long: `End the quarantine of an object whose turns have panicked too often: its calls run
again. It needs the role operator, and is in the audit trail.`,
		Example: "  kbroker objects release bank/account:alice",
	}, kbroker.ObjectRelease, nil)
}

func (c *cli) objectsRemoveCommand() *cobra.Command {
	var yes bool
	cmd := c.objectCommand(&cobra.Command{
		Use:   "rm APP/KIND:ID --yes",
		Short: "Delete an object for good",
		Long: `Delete an object for good, by its owner, as a turn behind those that wait: nothing
of the program runs, and messages that it has left are still sent. Its next call
finds it as if it had never been called. It needs the role operator, and is in the
audit trail.`,
		Example: "  kbroker objects rm bank/account:alice --yes",
	}, kbroker.ObjectRemove, func(object string) error {
		if !yes {
			return kbroker.Errorf(kbroker.Refused, "%s would be gone for good, so nothing was done", object).WithHint("--yes says that it is meant")
		}
		return nil
	})
	cmd.Flags().BoolVar(&yes, "yes", false, "it is meant")
	return cmd
}

// objectCommand completes a command that does something with one object, if meant, that may
// be nil, has nothing against it.
func (c *cli) objectCommand(cmd *cobra.Command, verb string, meant func(object string) error) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = cobra.ExactArgs(1), cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		app, o, err := kbroker.ParseObject(args[0])
		if err != nil {
			return err
		}
		if meant != nil {
			if err := meant(args[0]); err != nil {
				return err
			}
		}
		r := kbroker.ObjectActRequest{App: app, Verb: verb, Kind: o.Kind, Object: o.ID}
		return c.objectAct(cmd.Context(), listTimeout, r, nil)
	}
	return cmd
}

// objectAct has something done and prints what came of it; follow, that may be nil, waits
// for its end.
func (c *cli) objectAct(ctx context.Context, usual time.Duration, r kbroker.ObjectActRequest, follow func(context.Context, *client.Client, kbroker.ObjectActReply) (bool, error)) error {
	ctx, api, done, err := c.connect(ctx, usual)
	if err != nil {
		return err
	}
	defer done()
	var id [12]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	r.ID = "r" + hex.EncodeToString(id[:])
	reply, err := api.ObjectAct(ctx, r)
	if err != nil {
		return err
	}
	result := objectResult{Done: true, Shards: len(reply.Moves), Message: reply.Message}
	if r.Kind != "" {
		result.Object = string(r.App) + "/" + kbroker.Object{Kind: r.Kind, ID: r.Object}.String()
	}
	if follow != nil {
		if result.Done, err = follow(ctx, api, reply); err != nil {
			return err
		}
	}
	return c.print(result, func(w io.Writer) {
		if follow == nil { // otherwise it was said
			fmt.Fprintln(w, oneLine(reply.Message))
		} else if result.Done {
			fmt.Fprintln(w, "done")
		}
	})
}
