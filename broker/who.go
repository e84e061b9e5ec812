package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
// until ctx ends or each core has answered; one that is no longer current is not waited
// for if another knows the key. NotFound: no server knows it.
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
	for waiting := b.askedCores(); waiting.matter(last); {
		m, err := answers.NextMsgWithContext(ctx)
		if errors.Is(err, nats.ErrNoResponders) || ctx.Err() != nil {
			break
		}
		if err != nil {
			return last, fmt.Errorf("ask who has key %s: %w", key, err)
		}
		var r struct {
			Server server.ServerInfo `json:"server"`
			Data   server.Connz      `json:"data"`
		}
		if err := json.Unmarshal(m.Data, &r); err != nil {
			continue // another version's; the others answer
		}
		delete(waiting, kbroker.HostID(r.Server.Name))
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

// awaited are the cores whose answers are still to come, and whether each is current. The
// witness, whom nobody connects to, is none.
type awaited map[kbroker.HostID]bool

// askedCores are those that answer a question to all: this one always.
func (b *Broker) askedCores() awaited {
	b.mu.Lock()
	defer b.mu.Unlock()
	cores := awaited{}
	maps.Copy(cores, b.members.Current)
	cores[b.cfg.Host] = true
	return cores
}

// matter reports whether one of them may know better than what was found.
func (a awaited) matter(found Visit) bool {
	for _, current := range a {
		if current || found.Since.IsZero() {
			return true
		}
	}
	return false
}
