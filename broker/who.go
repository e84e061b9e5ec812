package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
)

// Visit is how somebody is, or was, connected.
type Visit struct {
	Credential string // as the servers have checked it (a JWT)
	Address    string // of the client
	Since      time.Time
}

// pingConnections asks all servers for their connections (nats-server, monitoring by the
// system account).
const pingConnections = "$SYS.REQ.SERVER.PING.CONNZ"

// Who asks all servers for the last connection of a key, also one that has been closed,
// until ctx ends or each of the members has answered. NotFound: no server knows it.
func (b *Broker) Who(ctx context.Context, key string) (Visit, error) {
	select {
	case <-b.listening:
	default:
		return Visit{}, kbroker.Errorf(kbroker.Unavailable, "the broker of host %s does not listen yet", b.cfg.Host)
	}
	question, err := json.Marshal(server.ConnzEventOptions{ConnzOptions: server.ConnzOptions{Username: true, User: key, State: server.ConnAll}})
	if err != nil {
		return Visit{}, fmt.Errorf("encode a question: %w", err)
	}
	inbox := b.system.NewRespInbox()
	answers, err := b.system.SubscribeSync(inbox)
	if err != nil {
		return Visit{}, fmt.Errorf("ask who has key %s: %w", key, err)
	}
	defer func() { _ = answers.Unsubscribe() }()
	if err := b.system.PublishRequest(pingConnections, inbox, question); err != nil {
		return Visit{}, fmt.Errorf("ask who has key %s: %w", key, err)
	}
	var last Visit
	lastOpen := false // one that is there counts before those that were
	for range b.servers() {
		m, err := answers.NextMsgWithContext(ctx)
		if errors.Is(err, nats.ErrNoResponders) || ctx.Err() != nil {
			break
		}
		if err != nil {
			return last, fmt.Errorf("ask who has key %s: %w", key, err)
		}
		var r struct {
			Data server.Connz `json:"data"`
		}
		if err := json.Unmarshal(m.Data, &r); err != nil {
			continue // another version's; the others answer
		}
		for _, c := range r.Data.Conns {
			if !isOf(c, key) {
				continue
			}
			if open := c.Stop == nil; open && !lastOpen || open == lastOpen && c.Start.After(last.Since) {
				last, lastOpen = Visit{c.JWT, c.IP, c.Start}, open
			}
		}
	}
	if last.Since.IsZero() {
		return last, kbroker.Errorf(kbroker.NotFound, "no server knows a connection of key %s", key)
	}
	return last, nil
}

// isOf reports whether a connection was let in with a credential of the key. The server
// also finds those that merely name it, or have shown the credential of somebody else.
func isOf(c *server.ConnInfo, key string) bool {
	if c.Reason == server.AuthenticationViolation.String() || c.Reason == server.AuthenticationTimeout.String() {
		return false
	}
	claims, err := jwt.DecodeUserClaims(c.JWT)
	return err == nil && claims.Subject == key
}

// servers is how many answer a question to all: at least this one does.
func (b *Broker) servers() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := max(1, len(b.members.Current))
	if b.witness != nil {
		n++
	}
	return n
}
