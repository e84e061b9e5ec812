package super

import (
	"cmp"
	"context"
	"errors"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// allocator asks the active allocator of an app what it decides, and why.
func (d *desk) allocator(ctx context.Context, tenant kbroker.TenantID, r kbroker.ListRequest) (any, error) {
	v, _ := d.read(ctx)
	rec, _, err := lookup(v, tenant, r.App)
	if err != nil {
		return nil, err
	}
	if rec.Stopped {
		return nil, kbroker.Errorf(kbroker.Unavailable, "app %q is stopped: nobody decides for it", r.App).WithHint("kbroker restart %s", r.App)
	}
	lease, err := d.store.Lease(ctx, state.AppKey{Tenant: tenant, App: r.App}, kbroker.LeaseRequest{})
	if err != nil {
		return nil, err
	}
	if lease.Lease == nil || lease.Lease.Released {
		return nil, kbroker.Errorf(kbroker.Unavailable, "no allocator of app %q is active", r.App).
			WithHint("one is within seconds of its start: kbroker why %s says what it waits for", r.App)
	}
	holder := lease.Lease.Holder
	reply, err := d.keepers.ask(ctx, tenant, holder, kbroker.KeeperRequest{}, seeWithin)
	switch {
	case errors.Is(err, kbroker.Moved), err == nil && reply.Allocator == nil:
		return nil, kbroker.Errorf(kbroker.Unavailable, "%s is not the active allocator of app %q any more, or not yet", instanceOf(holder), r.App).WithHint("try again in a few seconds")
	case err != nil:
		e := *kbroker.AsError(err)
		e.Hint = cmp.Or(e.Hint, "another allocator takes over within seconds: kbroker why "+string(r.App)+" says what it waits for")
		return nil, &e
	}
	return kbroker.AllocatorReply{App: r.App, Allocator: instanceOf(holder), AllocatorSeen: *reply.Allocator}, nil
}
