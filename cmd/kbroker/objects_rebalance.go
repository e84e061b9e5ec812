package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// usualMoves are listed for people.
const usualMoves = 20

func (c *cli) objectsRebalanceCommand() *cobra.Command {
	var dry, detach bool
	cmd := &cobra.Command{
		Use:   "rebalance APP",
		Short: "Move shards so that the load of all instances is even",
		Long: `Move shards so that the load of the instances that own objects is even, by the
policy of the application. A policy that looks at loads leaves small differences as
they are, as moves cost something; here it does not. What was moved by hand stays,
and so do placed objects. Loads go on to change: it is done once.

With --dry-run it shows which shards would move, and what each instance has now and
then; nothing is done. Turns are of objects, in a second, and WORK is for how long of
a second they ran, on average over the last half minute or so.

It needs the role operator, and is in the audit trail; --dry-run is for viewers, too.`,
		Example: `  kbroker objects rebalance bank --dry-run
  kbroker objects rebalance bank`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := appName(args[0])
			if err != nil {
				return err
			}
			if !dry {
				r := kbroker.ObjectActRequest{App: app, Verb: kbroker.ObjectRebalance}
				return c.objectAct(cmd.Context(), moveTimeout, r, func(ctx context.Context, api *client.Client, reply kbroker.ObjectActReply) (bool, error) {
					c.say("%s", reply.Message)
					if detach || reply.Rebalancing == nil {
						return false, nil
					}
					return true, c.awaitRebalance(ctx, api, app, reply.Rebalancing)
				})
			}
			ctx, api, done, err := c.connect(cmd.Context(), listTimeout)
			if err != nil {
				return err
			}
			defer done()
			reply, err := api.Rebalance(ctx, app)
			if err != nil {
				return err
			}
			return c.print(reply.Rebalance, func(w io.Writer) { c.rebalanceText(w, reply) })
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show what would move, and do nothing")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until all has moved")
	return cmd
}

func (c *cli) rebalanceText(w io.Writer, r kbroker.AllocatorReply) {
	owners := table{header: []string{"INSTANCE", "HOST", "SHARDS", "THEN", "TURNS/S", "THEN", "WORK", "THEN"}}
	for _, o := range r.Rebalance.Owners {
		owners.add(string(o.Instance), cmp.Or(string(o.Host), "-"), fmt.Sprint(o.Now.Shards), fmt.Sprint(o.Then.Shards),
			rateText(&o.Now.TurnsPerS), rateText(&o.Then.TurnsPerS), fmt.Sprintf("%.2f", o.Now.Work), fmt.Sprintf("%.2f", o.Then.Work))
	}
	owners.write(c, w)
	policy := r.Policy
	if policy == kbroker.PolicyOwn {
		policy = "its own policy"
	}
	all := r.Rebalance.Moves
	if len(all) == 0 {
		fmt.Fprintf(w, "nothing would move (%s)\n", policy)
		return
	}
	fmt.Fprintln(w)
	moves := table{header: []string{"SHARD", "FROM", "TO", "TURNS/S", "WORK"}}
	for _, m := range all[:min(len(all), usualMoves)] {
		moves.add(fmt.Sprint(m.Shard), cmp.Or(string(m.From.Instance()), "-"), string(m.To.Instance()), rateText(&m.TurnsPerS), fmt.Sprintf("%.3f", m.Work))
	}
	moves.write(c, w)
	if more := len(all) - usualMoves; more > 0 {
		fmt.Fprintf(w, "and %d more, less busy (-o json has all)\n", more)
	}
	fmt.Fprintf(w, "%s would move (%s); nothing was done\n", client.Counted(len(all), "shard"), policy)
}

// awaitRebalance returns when the allocator of an app has moved what a rebalance found; an
// error, if it has not moved all of it.
func (c *cli) awaitRebalance(ctx context.Context, api *client.Client, app kbroker.AppName, of *kbroker.Rebalancing) error {
	tick := time.NewTicker(movePoll)
	defer tick.Stop()
	left := of.Left
	for {
		r, err := api.Allocator(ctx, app)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			switch is := r.Rebalancing; {
			case is == nil || is.Epoch != of.Epoch:
				return kbroker.Errorf(kbroker.Unavailable, "another allocator decides for %s meanwhile, and goes on with nothing of it", app).
					WithHint("kbroker objects rebalance %s --dry-run shows what is left", app)
			case is.Number != of.Number:
				return kbroker.Errorf(kbroker.Conflict, "a later rebalance of %s has taken its place", app)
			case is.Left == 0 && is.Dropped > 0:
				return kbroker.Errorf(kbroker.Conflict, "%s did not move: the instance is gone, somebody has moved them, or it took too long", client.Counted(is.Dropped, "shard")).
					WithHint("kbroker objects rebalance %s --dry-run shows what is left", app)
			case is.Left == 0:
				return nil
			}
			left = r.Rebalancing.Left
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return kbroker.Errorf(kbroker.DeadlineExceeded, "%s still to move; it goes on", client.Counted(left, "shard")).
				WithHint("`kbroker objects %s` shows how far it is; turns must come to an end", app)
		case <-tick.C:
		}
	}
}
