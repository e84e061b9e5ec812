package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
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
	start, of, err := c.id.signed(r.Credential) // which checks the signature
	switch {
	case err != nil:
		return "", err
	case !ok || of.User != asks:
		return "", fmt.Errorf("it is that of %s, and was asked for on %s", of.User, m.Subject)
	case slices.Contains(c.removed(), start.Host) || slices.Contains(c.m.outs(), start.Host):
		return "", fmt.Errorf("its host %s was removed", start.Host)
	}
	return c.id.grants.Renew(r.Credential, c.id.now(), c.id.life, c.isRevoked)
}
