package super

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// leaseTimeout bounds the work on one request for a lease: no allocator waits
	// longer for the answer.
	leaseTimeout = time.Second
	// maxLeaseRequest bounds the request, in bytes.
	maxLeaseRequest = 1 << 10
)

// lease reads and writes the lease of an app for its allocators. The subject says which
// app; who may ask there is an allocator of it.
func (d *desk) lease(ctx context.Context, m *nats.Msg) (any, error) {
	tenant, app, ok := subjects.ParseLease(m.Subject)
	if !ok {
		return nil, kbroker.Errorf(kbroker.Invalid, "subject %q names no app", m.Subject)
	}
	k, err := askedOf(m, tenant, app)
	if err != nil {
		return nil, err
	}
	if len(m.Data) > maxLeaseRequest {
		return nil, kbroker.Errorf(kbroker.Invalid, "a request of %d bytes for a lease, want %d at most", len(m.Data), maxLeaseRequest)
	}
	var r kbroker.LeaseRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	return d.store.Lease(ctx, k, r)
}

// askedOf is the app that the subject of a request names, if there can be such a one, and
// somebody hears what is done for it.
func askedOf(m *nats.Msg, tenant kbroker.TenantID, app kbroker.AppName) (state.AppKey, error) {
	if err := knownTenant(tenant); err != nil {
		return state.AppKey{}, err
	}
	if err := kbroker.CheckName("app", string(app)); err != nil {
		return state.AppKey{}, err
	}
	if !subjects.IsInbox(m.Reply) {
		return state.AppKey{}, kbroker.Errorf(kbroker.Invalid, "an answer goes to an inbox")
	}
	return state.AppKey{Tenant: tenant, App: app}, nil
}
