package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// AuditQuery says which records of the audit trail to read.
type AuditQuery struct {
	// Actor is a name, a key, a host, an instance, an app or an address; empty: everybody.
	Actor   string
	Refused bool      // only what was refused
	Since   time.Time // zero: whatever is kept
	Limit   int       // the newest so many; 0: all
	Follow  bool      // go on until ctx ends
	// Notice is that of EventQuery.
	Notice func(error)
}

func (q AuditQuery) wants(r kbroker.AuditRecord) bool {
	if q.Refused && r.Outcome != kbroker.AuditRefused || r.Time.Before(q.Since) {
		return false
	}
	a := r.Actor
	return q.Actor == "" || slices.Contains([]string{a.Name, a.Key, string(a.Host), string(a.Instance), string(a.App), a.Address}, q.Actor)
}

// Audit calls emit with the newest records of the query, oldest first; with Follow also
// with what comes, until ctx ends (then nil). An error of emit ends it. Errors: Failed -
// something that is stored there is no record, and all others were emitted; Refused;
// Unavailable when no core answered in the beginning.
func (c *Client) Audit(ctx context.Context, q AuditQuery, emit func(kbroker.AuditRecord) error) error {
	found, next, broken, err := c.newestAudit(ctx, q)
	if err != nil {
		return err
	}
	for _, r := range found {
		if err := emit(r); err != nil {
			return err
		}
	}
	silent := false
	for q.Follow && broken == nil {
		var page kbroker.AuditReply
		err := c.read(ctx, subjects.VerbAudit, kbroker.AuditRequest{After: &next}, &page)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, kbroker.Unavailable):
			return err
		}
		if q.Notice != nil && silent != (err != nil) {
			q.Notice(err)
		}
		if silent = err != nil; silent {
			continue // it was asked for long
		}
		for _, r := range page.Records {
			if q.wants(r) {
				err = emit(r)
			}
			if err != nil {
				return err
			}
		}
		if broken = unreadable(page); broken != nil {
			break
		}
		if next = page.Next; page.More {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.pace.eventEvery):
		}
	}
	return broken
}

// newestAudit reads back from the end until there is enough; next is where what comes
// begins, broken what was found that is no record.
func (c *Client) newestAudit(ctx context.Context, q AuditQuery) (found []kbroker.AuditRecord, next uint64, broken, err error) {
	for before := uint64(0); ; {
		var page kbroker.AuditReply
		if err := c.read(ctx, subjects.VerbAudit, kbroker.AuditRequest{Before: before}, &page); err != nil {
			return nil, 0, nil, err
		}
		broken = cmp.Or(broken, unreadable(page))
		if before == 0 {
			next = page.Next
		}
		for _, r := range slices.Backward(page.Records) {
			if q.wants(r) {
				found = append(found, r)
			}
			if len(found) == q.Limit && q.Limit > 0 {
				break
			}
		}
		// Records are written in the order of their sequence, not quite of their times.
		if enough := q.Limit > 0 && len(found) >= q.Limit; enough || !page.More || len(page.Records) == 0 ||
			page.Records[len(page.Records)-1].Time.Before(q.Since.Add(-auditSkew)) {
			slices.Reverse(found)
			return found, next, broken, nil
		}
		before = page.Records[0].Sequence
	}
}

// auditSkew is how much later than another one a record may be written that is older: it
// was gathered with others, or waited.
const auditSkew = 10 * time.Minute

func unreadable(page kbroker.AuditReply) error {
	if page.Unreadable == "" {
		return nil
	}
	return kbroker.Errorf(kbroker.Failed, "the audit trail is broken: %s", page.Unreadable).WithHint("kbroker audit --verify says up to where it is intact")
}

// auditTries is how often a trail without a leader is asked again for its end.
const auditTries = 10

// VerifyAudit reads the whole audit trail, and returns the chain as far as it is intact.
// Errors: Failed - it is broken, and how; Invalid - a newer build has written it;
// Unavailable - no core answered, or its stream has no leader, which knows its end.
func (c *Client) VerifyAudit(ctx context.Context) (kbroker.AuditChain, error) {
	var chain kbroker.AuditChain
	tries := 0
	for next := uint64(0); ; {
		var page kbroker.AuditReply
		if err := c.read(ctx, subjects.VerbAudit, kbroker.AuditRequest{After: &next}, &page); err != nil {
			return chain, err
		}
		for _, r := range page.Records {
			if err := chain.Add(r); err != nil {
				return chain, err
			}
		}
		after := fmt.Sprintf("record %d", chain.Last.Number)
		if chain.Records == 0 {
			after = "the beginning"
		}
		switch next = page.Next; {
		case page.Unreadable != "":
			return chain, kbroker.Errorf(kbroker.Failed, "broken after %s: %s", after, page.Unreadable)
		case page.Missing:
			return chain, kbroker.Errorf(kbroker.Failed, "broken after %s: the trail goes on to sequence %d, and what follows was removed", after, page.Last)
		case page.More:
			continue
		case page.Last > 0 && next >= page.Last && chain.Records > 0:
			return chain, nil
		case page.Last > 0:
			// the replica that answered lags: it is asked again
		default:
			tries++
		}
		if tries >= auditTries {
			if chain.Records == 0 {
				return chain, kbroker.Errorf(kbroker.Failed, "broken: the audit trail has no record")
			}
			return chain, kbroker.Errorf(kbroker.Unavailable, "the end of the audit trail is not known: its stream has no leader").
				WithHint("%d records are intact, up to %s; a leader needs a majority of the cores", chain.Records, after)
		}
		select {
		case <-ctx.Done():
			return chain, ctx.Err()
		case <-time.After(c.pace.eventEvery):
		}
	}
}
