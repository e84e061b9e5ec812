package broker

import (
	"crypto/rand"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// The accounts of a core's server: SYS, whose user only this process can be,
// and one for control and applications, in which everybody else lands who can
// reach the client port.
const (
	systemAccount = "SYS"
	systemUser    = "sys"
	everyoneUser  = "everyone"
)

// accounts is the part of a server's options that says who may connect, with
// the secret by which this process enters SYS. The secret is new at every
// start: it never leaves the process.
type accounts struct {
	secret string
}

func newAccounts() accounts { return accounts{secret: rand.Text()} }

// apply writes the accounts into the options of a server.
func (a accounts) apply(o *server.Options) {
	system := server.NewAccount(systemAccount)
	everyone := server.NewAccount(server.DEFAULT_GLOBAL_ACCOUNT)
	o.Accounts = []*server.Account{system, everyone}
	o.SystemAccount = systemAccount
	o.Users = []*server.User{
		{Username: systemUser, Password: a.secret, Account: system},
		{Username: everyoneUser, Password: rand.Text(), Account: everyone},
	}
	o.NoAuthUser = everyoneUser
}

// Bounds of an in-process connection that lives as long as its owner.
const (
	reconnectWait   = 50 * time.Millisecond
	reconnectJitter = 50 * time.Millisecond
	// writeWithin bounds one write. A server that is about to stop may take a
	// connection and never read from it; until the write ends, Close waits, by
	// default for a minute.
	writeWithin = 2 * time.Second
)

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
		nats.FlusherTimeout(writeWithin),
	}, opts...)...)
}

// connectSystem opens an in-process connection in SYS.
func (a accounts) connectSystem(s *server.Server) (*nats.Conn, error) {
	return connect(s, nats.UserInfo(systemUser, a.secret))
}
