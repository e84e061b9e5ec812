package client

import (
	"context"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// CreateUser makes a user with a key that the caller has made, and answers with what was
// signed for it. ttl is in whole seconds, 0: for ever; by says who makes it. Asked again
// with the same key it is the same user.
//
// Errors: Invalid; Conflict - there is a user of that name; Refused - the key was that of
// another one, or there are too many; NoLeader, Unavailable - it may have been made.
func (c *Client) CreateUser(ctx context.Context, name kbroker.UserName, role kbroker.UserRole, own Key, ttl time.Duration, by string) (kbroker.UserReply, error) {
	var r kbroker.UserReply
	ask := kbroker.UserRequest{Tenant: c.tenant, Name: name, Role: role, Key: own.Key(), TTL: ttl, By: by}
	var err error
	if ask.Proof, err = own.Prove(ask.Claim()); err != nil {
		return r, err
	}
	return r, c.write(ctx, subjects.VerbUser, ask, &r)
}

// Users lists the users by name: those that were revoked until they would have ended; with
// all those that never end, too. Errors: Unavailable.
func (c *Client) Users(ctx context.Context, all bool) ([]kbroker.UserRow, error) {
	var rows []kbroker.UserRow
	return rows, c.read(ctx, subjects.VerbUsers, kbroker.ListRequest{All: all}, &rows)
}

// RevokeUser takes back what was signed for a user. Errors: NotFound; NoLeader,
// Unavailable - it may have been done.
func (c *Client) RevokeUser(ctx context.Context, name kbroker.UserName) (kbroker.RevokeUserReply, error) {
	var r kbroker.RevokeUserReply
	return r, c.write(ctx, subjects.VerbUserRevoke, kbroker.RevokeUserRequest{Name: name}, &r)
}
