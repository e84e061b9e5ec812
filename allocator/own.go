package allocator

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// writeOwn sends a batch of the app's ownership to a core, once.
func (a *Allocator) writeOwn(ctx context.Context, r kbroker.OwnWriteRequest) (reply kbroker.OwnWriteReply, err error) {
	body, err := r.MarshalBinary()
	if err != nil {
		return reply, err
	}
	subject := subjects.Own(a.own.Tenant, a.own.App, subjects.VerbOwnWrite, a.own.Incarnation)
	answer, err := request(ctx, a.cfg.Conn, a.pace.attempt, subject, body)
	if err != nil {
		return reply, err
	}
	if err := json.Unmarshal(answer, &reply); err != nil {
		return reply, fmt.Errorf("decode answer of %s: %w", subject, err)
	}
	return reply, nil
}

// readOwn asks a core once, which reads through the stream's leader.
func (a *Allocator) readOwn(ctx context.Context, r kbroker.OwnReadRequest) (reply kbroker.OwnReadReply, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return reply, fmt.Errorf("encode a request to read: %w", err)
	}
	subject := subjects.Own(a.own.Tenant, a.own.App, subjects.VerbOwnRead, a.own.Incarnation)
	answer, err := request(ctx, a.cfg.Conn, a.pace.attempt, subject, body)
	if err != nil {
		return reply, err
	}
	if err := reply.UnmarshalBinary(answer); err != nil {
		return reply, fmt.Errorf("decode answer of %s: %w", subject, err)
	}
	return reply, nil
}

// readBelow reads all records that exist below a beginning of keys.
func (a *Allocator) readBelow(ctx context.Context, match string) ([]kbroker.Stored, error) {
	all, _, err := a.readSince(ctx, match, 0)
	return all, err
}

// readSince is readBelow, but reads none if none of them was written after a revision. The one
// that it returns is until when all is known that was.
func (a *Allocator) readSince(ctx context.Context, match string, since kbroker.Revision) (all []kbroker.Stored, at kbroker.Revision, err error) {
	r := kbroker.OwnReadRequest{Match: match, Since: since}
	for {
		reply, err := a.readOwn(ctx, r)
		switch {
		case err != nil:
			return nil, 0, err
		case reply.Same:
			return nil, since, nil
		case r.After == "":
			at = reply.At // later pages know of what may be missing in the first
		}
		all = append(all, reply.Records...)
		if !reply.More {
			return all, at, nil
		}
		if len(reply.Records) == 0 || reply.Records[len(reply.Records)-1].Key <= r.After {
			return nil, 0, kbroker.Errorf(kbroker.Internal, "a core says that more is below %s, and does not come behind %q", match, r.After)
		}
		r.After, r.Since = reply.Records[len(reply.Records)-1].Key, 0
	}
}

// readKeys reads records, those too that there are not: all of the keys, in their order.
func (a *Allocator) readKeys(ctx context.Context, keys []string) ([]kbroker.Stored, error) {
	var all []kbroker.Stored
	for some := range slices.Chunk(keys, kbroker.MaxReadKeys) {
		for len(some) > 0 {
			reply, err := a.readOwn(ctx, kbroker.OwnReadRequest{Keys: some})
			if err != nil {
				return nil, err
			}
			n := len(reply.Records)
			if n == 0 || n > len(some) {
				return nil, kbroker.Errorf(kbroker.Internal, "a core answers %d records to %d keys", n, len(some))
			}
			all, some = append(all, reply.Records...), some[n:]
		}
	}
	return all, nil
}
