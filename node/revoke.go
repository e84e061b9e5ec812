package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
	"github.com/kbroker/kbroker/super"
)

// A core that starts:
//
//	its broker listens; its client port refuses everybody
//	it answers others with what its disk knows, and asks each of them over its routes
//	all have answered, or 2 s have passed: its broker knows who is out
//	its client port opens

const (
	// revokeEvery is how often it is looked at which credentials were taken back.
	revokeEvery = 500 * time.Millisecond
	// revokeAtMost once in this time the broker is told: it goes through all of its
	// clients then, and JetStream's API is not there for a moment. With revokeEvery,
	// and what a report takes, it is within five seconds.
	revokeAtMost = 3 * time.Second
	// revokeAhead is how long before the end of a revocation that was put off the
	// broker is told the later one.
	revokeAhead = time.Minute
)

// renews answers the processes that have their credentials signed again, on a
// connection of this core, until ctx ends. It needs no store and no leader; what it
// knows of who is out, it knows from both.
func (c *core) renews(ctx context.Context, conn *nats.Conn) error {
	sub, err := conn.QueueSubscribe(subjects.AllRenews, subjects.QueueCore, func(m *nats.Msg) {
		if !subjects.IsInbox(m.Reply) {
			return
		}
		renewed, err := c.renewed(m)
		answer := nats.NewMsg(m.Reply)
		if err != nil {
			e := kbroker.Errorf(kbroker.Refused, "credential not renewed: %v", err)
			key, _ := subjects.RenewKey(m.Subject)
			c.refused(kbroker.AuditRecord{Actor: kbroker.Caller{Key: key}, Action: "renew", Code: e.Code, Message: e.Message, Count: 1}, 0)
			answer.Header.Set(subjects.HeaderCode, string(e.Code))
			answer.Data, err = json.Marshal(e)
		} else {
			answer.Data, err = json.Marshal(kbroker.SignReply{Credential: renewed})
		}
		if err == nil {
			err = m.RespondMsg(answer)
		}
		if err != nil {
			c.cfg.Log.Warn("cannot answer", "component", "node", "subject", m.Subject, "err", err)
		}
	})
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", subjects.AllRenews, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	<-ctx.Done()
	return nil
}

// renewed signs the credential of who asks again: the servers let each ask by its own
// key alone.
func (c *core) renewed(m *nats.Msg) (string, error) {
	asks, ok := subjects.RenewKey(m.Subject)
	var r kbroker.RenewRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return "", fmt.Errorf("unreadable request: %w", err)
	}
	host, of, err := c.id.signed(r.Credential) // which checks the signature
	switch {
	case err != nil:
		return "", err
	case !ok || of.User != asks:
		return "", fmt.Errorf("it is that of %s, and was asked for on %s", of.User, m.Subject)
	case slices.Contains(c.removed(), host) || slices.Contains(c.m.outs(), host):
		return "", fmt.Errorf("its host %s was removed", host)
	}
	return c.id.grants.Renew(r.Credential, c.id.now(), c.id.life, c.isRevoked)
}

// isRevoked reports whether the credentials of a user were taken back, as far as this core
// knows.
func (c *core) isRevoked(user string) bool {
	_, out := c.allRevoked()[user]
	return out
}

// allRevoked are the users that this core's disk or its store knows to be out.
func (c *core) allRevoked() map[string]time.Time {
	all := c.revoked.all()
	s := c.planner.Load()
	if s == nil {
		return all
	}
	return latest(all, s.Revoked())
}

// latest is all that is known of some, of each user the latest end.
func latest(some ...map[string]time.Time) map[string]time.Time {
	all := map[string]time.Time{}
	for _, known := range some {
		for user, until := range known {
			if until.After(all[user]) {
				all[user] = until
			}
		}
	}
	return all
}

// told is what the broker was told last of who is to be kept out.
type told struct {
	at    time.Time // when, by the monotonic clock; zero: never while it ran
	until map[string]time.Time
}

// behind reports whether the broker lets somebody in who is out by now: one that it does
// not know, or one whose end was put off and is near. What has ended is no reason: it
// goes with the next that is one.
func (t told) behind(all map[string]time.Time, now time.Time) bool {
	for user, until := range all {
		at, known := t.until[user]
		if !known || at.Before(until) && at.Before(now.Add(revokeAhead)) {
			return true
		}
	}
	return false
}

// revoke keeps the broker from those whose credentials were taken back, until ctx ends.
func (c *core) revoke(ctx context.Context, s *super.Super) error {
	tick := time.NewTicker(revokeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := c.keepOut(s.Revoked(), false); err != nil {
			c.cfg.Log.Error("credentials that were taken back still hold here; trying again", "component", "node", "err", err)
		}
	}
}

// keepOut has this core's disk, and the broker, know more users that are out: the broker
// when it was told long enough ago, as whoever calls calls again; or at once.
func (c *core) keepOut(more map[string]time.Time, once bool) error {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	if _, err := c.revoked.add(more); err != nil {
		c.cfg.Log.Warn("which credentials were taken back is not stored; a restart will ask the other cores", "component", "node", "err", err)
	}
	all := c.revoked.all()
	if !c.told.behind(all, c.id.now()) || !once && !c.told.at.IsZero() && time.Since(c.told.at) < revokeAtMost {
		return nil
	}
	// From its end on: a server that is slow must not be asked again while it works.
	err := c.broker.Revoke(all)
	c.told.at = time.Now()
	if err == nil {
		c.told.until = all
	}
	return err
}

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

// catchUp asks every other core that this one knows, over the routes: their client ports
// may be shut for the same reason as its own. Who does not answer within catchUpWithin is
// not waited for.
func (c *core) catchUp(ctx context.Context, conn *nats.Conn) error {
	c.m.mu.Lock()
	others := slices.Clone(c.m.Cores)
	c.m.mu.Unlock()
	asking, cancel := context.WithTimeout(ctx, catchUpWithin)
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
