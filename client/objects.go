package client

import (
	"context"
	"errors"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// objectsAttempt is how long a core may take to read who owns what.
const objectsAttempt = 4 * time.Second

// roleViewer may not see the state of objects.
const roleViewer = "viewer"

// look reads what takes a core a while.
func (c *Client) look(ctx context.Context, verb string, req, reply any) error {
	q := c.readOf(verb)
	q.attempt, q.budget = max(q.attempt, objectsAttempt), max(q.budget, 2*objectsAttempt)
	return c.ask(ctx, q, req, reply)
}

// Objects lists objects of an app, of one kind if that is named, in the order of their
// shards, and then the placed ones: at most limit, 0 for all. more: there are others. Each page
// is handed to page, whose error ends it. Errors: NotFound - there is no such app, or it has no such objects;
// Unavailable.
func (c *Client) Objects(ctx context.Context, r kbroker.ObjectsRequest, limit int, page func(kbroker.ObjectsReply) error) (more bool, err error) {
	r.Tenant = c.tenant
	for got := 0; ; {
		if r.Limit = 0; limit > 0 {
			r.Limit = min(limit-got, kbroker.MaxObjectRows)
		}
		var reply kbroker.ObjectsReply
		if err := c.look(ctx, subjects.VerbObjects, r, &reply); err != nil {
			return false, err
		}
		if err := page(reply); err != nil {
			return false, err
		}
		got += len(reply.Rows)
		switch r.After = reply.After; {
		case reply.After == "":
			return false, nil
		case limit > 0 && got >= limit:
			return true, nil
		}
	}
}

// Allocator says what the active allocator of an app decides, and why; it is asked for longer
// than it takes another one to become active. Errors: NotFound - there is no such app, or it is
// stopped; Unavailable.
func (c *Client) Allocator(ctx context.Context, app kbroker.AppName) (kbroker.AllocatorReply, error) {
	var r kbroker.AllocatorReply
	return r, c.look(ctx, subjects.VerbAllocator, kbroker.AllocatorRequest{Tenant: c.tenant, App: app}, &r)
}

// Rebalance says what its allocator would move to have loads even; nothing is done. Errors: as
// of Allocator; Refused - the core or the allocator is of an earlier build, or the app's own
// policy is refused.
func (c *Client) Rebalance(ctx context.Context, app kbroker.AppName) (kbroker.AllocatorReply, error) {
	var r kbroker.AllocatorReply
	err := c.look(ctx, subjects.VerbAllocator, kbroker.AllocatorRequest{Tenant: c.tenant, App: app, Rebalance: true}, &r)
	if err == nil && r.Rebalance == nil {
		return r, kbroker.Errorf(kbroker.Refused, "the core that answered is of an earlier build, which knows no rebalance").
			WithHint("kbroker agent upgrade, on each host")
	}
	return r, err
}

// ObjectOwners says who owns the objects of an app. Errors: NotFound, Unavailable.
func (c *Client) ObjectOwners(ctx context.Context, app kbroker.AppName) (kbroker.ObjectOwnersReply, error) {
	var r kbroker.ObjectOwnersReply
	return r, c.look(ctx, subjects.VerbObjectOwners, kbroker.ListRequest{Tenant: c.tenant, App: app}, &r)
}

// Object says what is known of an object: also of one that is not stored. Its state is
// with it, if this side may see it. Errors: NotFound - there is no such app, or it has no
// such kind; Unavailable.
func (c *Client) Object(ctx context.Context, app kbroker.AppName, o kbroker.Object) (kbroker.ObjectDetail, error) {
	var r kbroker.ObjectDetail
	req := kbroker.ObjectRequest{Tenant: c.tenant, App: app, Kind: o.Kind, ID: o.ID}
	if c.refusals.role != roleViewer { // its refusal would be one for the audit trail
		err := c.look(ctx, subjects.VerbObjectState, req, &r)
		if !errors.Is(err, kbroker.Refused) {
			return r, err
		}
	}
	return r, c.look(ctx, subjects.VerbObject, req, &r)
}

// ObjectAct does something with an object, or has shards moved: then it returns when that
// is wanted, not when it has happened. Errors: NotFound, Invalid; Refused - this side may
// not, or there is nowhere to move to; Overloaded - the object is busy; Unavailable - it may
// have been done, unless it says executed no.
func (c *Client) ObjectAct(ctx context.Context, r kbroker.ObjectActRequest) (kbroker.ObjectActReply, error) {
	r.Tenant = c.tenant
	var reply kbroker.ObjectActReply
	return reply, c.once(ctx, subjects.VerbObjectAct, r, &reply)
}
