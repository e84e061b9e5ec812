package client

import (
	"context"
	"errors"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// EventQuery says which events to read.
type EventQuery struct {
	App    kbroker.AppName // empty: all, those of hosts too
	Since  time.Time       // zero: whatever is kept
	Limit  int             // the newest so many; 0: kbroker.MaxEventsPerRequest
	Follow bool            // go on until ctx ends
	// Notice (may be nil) hears, once, that no core answers while following,
	// and with nil that one does again.
	Notice func(error)
}

// Events calls emit with the newest events of the query, oldest first; with
// Follow also with what comes, until ctx ends (then nil). What comes is asked
// of whichever core answers, from the last event that was seen: none is skipped
// and none comes twice. An error of emit ends it. Errors: Unavailable when no
// core answered in the beginning.
func (c *Client) Events(ctx context.Context, q EventQuery, emit func(kbroker.Event) error) error {
	req := kbroker.EventsRequest{Tenant: c.tenant, App: q.App, Since: q.Since, Limit: q.Limit}
	silent := false
	notice := func(err error) {
		if q.Notice != nil && silent != (err != nil) {
			q.Notice(err)
		}
		silent = err != nil
	}
	for {
		var page kbroker.EventsReply
		err := c.read(ctx, subjects.VerbEvents, req, &page)
		switch {
		case ctx.Err() != nil && req.After != nil:
			return nil
		case err == nil:
			notice(nil)
		case req.After != nil && errors.Is(err, kbroker.Unavailable):
			notice(err)
			continue // it was asked for long
		default:
			return err
		}
		for _, e := range page.Events {
			if err := emit(e); err != nil {
				return err
			}
		}
		if !q.Follow {
			return nil
		}
		req.After, req.Limit = &page.Next, 0
		if page.More {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.pace.eventEvery):
		}
	}
}
