package super

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// rebalanceWithin is how long an allocator may take to find what has to move: an app's own
// policy has a second for that, and for the question before.
const rebalanceWithin = 3 * time.Second

// allocator says what the active allocator of an app decides, and why, or what a rebalance
// would move. Errors: as of askAllocator.
func (d *desk) allocator(ctx context.Context, tenant kbroker.TenantID, r kbroker.AllocatorRequest) (any, error) {
	q, within := kbroker.KeeperRequest{}, seeWithin
	if r.Rebalance {
		if _, _, _, err := d.objectsOf(ctx, tenant, r.App, ""); err != nil {
			return nil, err
		}
		q, within = kbroker.KeeperRequest{Verb: kbroker.ObjectRebalance, DryRun: true}, rebalanceWithin
	}
	holder, says, err := d.askAllocator(ctx, tenant, r.App, q, within)
	if err != nil {
		return nil, err
	}
	reply := kbroker.AllocatorReply{App: r.App, Allocator: holder, AllocatorSeen: *says}
	reply.Services = append([]kbroker.AllocatorNeed{}, reply.Services...) // never null
	reply.Instances = append([]kbroker.AllocatorLoad{}, reply.Instances...)
	slices.SortFunc(reply.Instances, func(a, b kbroker.AllocatorLoad) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), compareInstances(a.Instance, b.Instance))
	})
	return reply, nil
}

// askAllocator asks the active allocator of an app. Errors: NotFound - there is no such app, or
// it is stopped; Unavailable - none is active, it does not answer, or it cannot be read which
// one it is: it may be so in a moment.
func (d *desk) askAllocator(ctx context.Context, tenant kbroker.TenantID, app kbroker.AppName, q kbroker.KeeperRequest, within time.Duration) (kbroker.InstanceID, *kbroker.AllocatorSeen, error) {
	v, _ := d.read(ctx)
	rec, _, err := lookup(v, tenant, app)
	if err != nil {
		return "", nil, err
	}
	if rec.Stopped { // what is unavailable a client asks for again
		return "", nil, kbroker.Errorf(kbroker.NotFound, "app %q is stopped: nobody decides for it", app).WithHint("kbroker restart %s", app)
	}
	lease, err := d.store.Lease(ctx, state.AppKey{Tenant: tenant, App: app}, kbroker.LeaseRequest{})
	if err != nil {
		return "", nil, kbroker.AsError(err).WithHint("`kbroker status` says what the cluster is missing")
	}
	if lease.Lease == nil || lease.Lease.Released {
		return "", nil, kbroker.Errorf(kbroker.Unavailable, "no allocator of app %q is active", app).
			WithHint("one is within seconds of its start: kbroker why %s says what it waits for", app)
	}
	holder := lease.Lease.Holder
	again := "kbroker restart " + string(app) + "/" + string(kbroker.AllocatorService) + "/" + string(holder.Instance())
	says, err := d.keepers.ask(ctx, tenant, holder, q, within)
	switch {
	case errors.Is(err, kbroker.Moved), err == nil && says.Allocator == nil:
		return "", nil, kbroker.Errorf(kbroker.Unavailable, "%s is not the active allocator of app %q any more, or not yet", holder.Instance(), app).WithHint("try again in a few seconds")
	case err != nil:
		e := *kbroker.AsError(err)
		e.Hint = cmp.Or(e.Hint, "another one takes over within seconds if it has ended; one of an earlier build answers after "+again)
		return "", nil, &e
	case q.Verb == kbroker.ObjectRebalance && says.Allocator.Rebalance == nil:
		e := kbroker.Errorf(kbroker.Refused, "%s is of an earlier build, which knows no rebalance: nothing is done", holder.Instance()).WithHint("%s", again)
		e.Executed = kbroker.ExecutedNo
		return "", nil, e
	}
	return holder.Instance(), says.Allocator, nil
}

// rebalance has the allocator of an app make loads even. Errors: as of askAllocator.
func (d *desk) rebalance(ctx context.Context, k state.AppKey) (kbroker.ObjectActReply, error) {
	_, says, err := d.askAllocator(ctx, k.Tenant, k.App, kbroker.KeeperRequest{Verb: kbroker.ObjectRebalance}, rebalanceWithin)
	if err != nil {
		return kbroker.ObjectActReply{}, err
	}
	reply := kbroker.ObjectActReply{Moves: map[kbroker.Shard]kbroker.Incarnation{}, Rebalancing: says.Rebalancing}
	for _, m := range says.Rebalance.Moves {
		reply.Moves[m.Shard] = m.To
	}
	reply.Message = fmt.Sprintf("%d shards of %s move, by its policy", len(reply.Moves), k.App)
	switch len(reply.Moves) {
	case 0:
		reply.Message = fmt.Sprintf("the policy of %s moves nothing", k.App)
	case 1:
		reply.Message = fmt.Sprintf("1 shard of %s moves, by its policy", k.App)
	}
	return reply, nil
}
