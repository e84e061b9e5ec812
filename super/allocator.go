package super

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// allocator asks the active allocator of an app what it decides, and why. Errors: NotFound -
// there is no such app, or it is stopped; Unavailable - none is active, it does not answer, or
// it cannot be read which one it is: it may be so in a moment.
func (d *desk) allocator(ctx context.Context, tenant kbroker.TenantID, r kbroker.ListRequest) (any, error) {
	v, _ := d.read(ctx)
	rec, _, err := lookup(v, tenant, r.App)
	if err != nil {
		return nil, err
	}
	if rec.Stopped { // what is unavailable a client asks for again
		return nil, kbroker.Errorf(kbroker.NotFound, "app %q is stopped: nobody decides for it", r.App).WithHint("kbroker restart %s", r.App)
	}
	lease, err := d.store.Lease(ctx, state.AppKey{Tenant: tenant, App: r.App}, kbroker.LeaseRequest{})
	if err != nil {
		return nil, kbroker.AsError(err).WithHint("`kbroker status` says what the cluster is missing")
	}
	if lease.Lease == nil || lease.Lease.Released {
		return nil, kbroker.Errorf(kbroker.Unavailable, "no allocator of app %q is active", r.App).
			WithHint("one is within seconds of its start: kbroker why %s says what it waits for", r.App)
	}
	holder := lease.Lease.Holder
	says, err := d.keepers.ask(ctx, tenant, holder, kbroker.KeeperRequest{}, seeWithin)
	switch {
	case errors.Is(err, kbroker.Moved), err == nil && says.Allocator == nil:
		return nil, kbroker.Errorf(kbroker.Unavailable, "%s is not the active allocator of app %q any more, or not yet", instanceOf(holder), r.App).WithHint("try again in a few seconds")
	case err != nil:
		e := *kbroker.AsError(err)
		e.Hint = cmp.Or(e.Hint, "another one takes over within seconds if it has ended; one of an earlier build answers after "+
			"kbroker restart "+string(r.App)+"/"+string(kbroker.AllocatorService)+"/"+string(instanceOf(holder)))
		return nil, &e
	}
	reply := kbroker.AllocatorReply{App: r.App, Allocator: instanceOf(holder), AllocatorSeen: *says.Allocator}
	reply.Services = append([]kbroker.AllocatorNeed{}, reply.Services...) // never null
	reply.Instances = append([]kbroker.AllocatorLoad{}, reply.Instances...)
	slices.SortFunc(reply.Instances, func(a, b kbroker.AllocatorLoad) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), compareInstances(a.Instance, b.Instance))
	})
	return reply, nil
}
