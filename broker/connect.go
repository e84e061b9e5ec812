package broker

import (
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker/subjects"
)

// Bounds of an in-process connection that lives as long as its owner.
const (
	reconnectWait   = 50 * time.Millisecond
	reconnectJitter = 50 * time.Millisecond
	// inProcessWrite bounds one write to an in-process connection. A lame duck
	// greets who comes back to it and then neither reads nor closes the pipe: with
	// the usual minute, the connection, and who closes it, hang that long.
	inProcessWrite = 2 * time.Second
)

// user is one credential with its key.
type user struct {
	jwt string
	key nkeys.KeyPair
}

func newUser(sign func(key string) (string, error)) (user, error) {
	key, err := nkeys.CreateUser()
	if err != nil {
		return user{}, fmt.Errorf("make a key: %w", err)
	}
	public, err := key.PublicKey()
	if err != nil {
		return user{}, fmt.Errorf("make a key: %w", err)
	}
	signed, err := sign(public)
	return user{signed, key}, err
}

// options are those of a connection as a user.
func (u user) options() ([]nats.Option, error) {
	public, err := u.key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("key of a user: %w", err)
	}
	return []nats.Option{
		nats.UserJWT(func() (string, error) { return u.jwt, nil }, u.key.Sign),
		nats.CustomInboxPrefix(subjects.Inbox(public)),
	}, nil
}

// connect opens an in-process connection to s, as the user, that comes back by itself.
func (u user) connect(s *server.Server, opts ...nats.Option) (*nats.Conn, error) {
	own, err := u.options()
	if err != nil {
		return nil, err
	}
	return connect(s, append(own, opts...)...)
}

// connect opens an in-process connection to s that comes back by itself.
func connect(s *server.Server, opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect("", append([]nats.Option{
		nats.InProcessServer(s),
		nats.IgnoreDiscoveredServers(),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPingsOut),
		nats.FlusherTimeout(inProcessWrite),
	}, opts...)...)
}
