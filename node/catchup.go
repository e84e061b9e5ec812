package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// A core that starts:
//
//	its broker listens; its client port refuses everybody
//	it answers others with what its disk knows, and asks each of them over its routes
//	all have answered, or 2 s have passed: its broker knows who is out
//	its client port opens

const (
	// catchUpWithin is how long a core that starts takes no clients while it asks the
	// others which credentials were taken back meanwhile.
	catchUpWithin = 2 * time.Second
	// catchUpAttempt bounds one question, catchUpAgain is the pause before one is asked
	// again that does not answer yet.
	catchUpAttempt = 500 * time.Millisecond
	catchUpAgain   = 50 * time.Millisecond
	// revokedPage bounds the users in one answer, of 90 bytes each: far below what a
	// message may have.
	revokedPage = 4000
)

// admitClients has the broker know who is to be kept out, then opens it to clients: as
// this core's disk has it, and every core that answers in time. Until ctx ends it answers
// others that start.
func (c *core) admitClients(ctx context.Context) error {
	select {
	case <-c.broker.Listening():
	case <-ctx.Done():
		return nil
	}
	open := sync.OnceFunc(c.id.tls.Open)
	defer open()
	conn, err := c.broker.Connect(nats.Name("kbroker revocations " + string(c.m.Host)))
	if err != nil {
		return fmt.Errorf("connect to the own broker: %w", err)
	}
	defer conn.Close()
	subject := subjects.Revoked(c.m.Host)
	// Before it asks: of cores that start at once, each may be the one that knows.
	sub, err := conn.Subscribe(subject, c.tellRevoked)
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", subject, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := c.catchUp(ctx, conn); err != nil {
		return err
	}
	open()
	<-ctx.Done()
	return nil
}

// catchUp asks every other core that this one knows, over the routes: their client ports
// may be shut for the same reason as its own. Who does not answer within catchUpWithin is
// not waited for.
func (c *core) catchUp(ctx context.Context, conn *nats.Conn) error {
	c.m.mu.Lock()
	others := slices.Clone(c.m.Cores)
	c.m.mu.Unlock()
	asking, cancel := context.WithTimeout(ctx, cmp.Or(c.cfg.catchUp, catchUpWithin))
	defer cancel()
	answers := make(chan map[string]time.Time, len(others))
	for _, o := range others {
		go func() { answers <- askRevoked(asking, conn, o.Host) }()
	}
	more := map[string]time.Time{}
	for range others {
		more = latest(more, <-answers)
	}
	if ctx.Err() != nil {
		return nil
	}
	return c.keepOut(more, true)
}

// askRevoked asks another core which credentials were taken back, page by page, until it
// has told all or ctx ends: it returns what it was told by then.
func askRevoked(ctx context.Context, conn *nats.Conn, host kbroker.HostID) map[string]time.Time {
	all := map[string]time.Time{}
	for ask := (revokedAsk{}); ; {
		page, err := askRevokedPage(ctx, conn, host, ask)
		if err == nil {
			for user, until := range page.Revoked {
				all[user] = until
				ask.After = max(ask.After, user)
			}
			if !page.More || len(page.Revoked) == 0 {
				return all
			}
			continue
		}
		select {
		case <-ctx.Done():
			return all
		case <-time.After(catchUpAgain):
		}
	}
}

func askRevokedPage(ctx context.Context, conn *nats.Conn, host kbroker.HostID, ask revokedAsk) (page revokedTold, err error) {
	body, err := json.Marshal(ask)
	if err != nil {
		return page, fmt.Errorf("marshal request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpAttempt)
	defer cancel()
	reply, err := conn.RequestWithContext(ctx, subjects.Revoked(host), body)
	if err != nil {
		return page, fmt.Errorf("ask core %s: %w", host, err)
	}
	return page, json.Unmarshal(reply.Data, &page)
}

// tellRevoked answers a core that starts.
func (c *core) tellRevoked(m *nats.Msg) {
	if !subjects.IsInbox(m.Reply) {
		return
	}
	var ask revokedAsk
	if len(m.Data) > 0 {
		if err := json.Unmarshal(m.Data, &ask); err != nil {
			c.cfg.Log.Warn("unreadable question", "component", "node", "subject", m.Subject, "err", err)
			return
		}
	}
	body, err := json.Marshal(pageOf(c.allRevoked(), ask, revokedPage))
	if err == nil {
		err = m.Respond(body)
	}
	if err != nil {
		c.cfg.Log.Warn("cannot answer", "component", "node", "subject", m.Subject, "err", err)
	}
}

// revokedAsk is the question of a core that starts: for the users that are out, in the
// order of their names, behind the one that it has last. revokedTold is the answer; More:
// there are further ones.
type revokedAsk struct {
	After string `json:"after,omitempty"`
}

type revokedTold struct {
	Revoked map[string]time.Time `json:"revoked"`
	More    bool                 `json:"more,omitempty"`
}

// pageOf is the part of all that an answer has.
func pageOf(all map[string]time.Time, ask revokedAsk, size int) revokedTold {
	var users []string
	for user := range all {
		if user > ask.After {
			users = append(users, user)
		}
	}
	slices.Sort(users)
	out := revokedTold{Revoked: map[string]time.Time{}, More: len(users) > size}
	for _, user := range users[:min(size, len(users))] {
		out.Revoked[user] = all[user]
	}
	return out
}
