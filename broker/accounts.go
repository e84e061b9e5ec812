package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/subjects"
)

// accounts is the part of a server's options that says who may connect, and the
// credentials by which this process does: their keys are made at each start and never
// leave it.
type accounts struct {
	grants   *grants.Authority
	operator *jwt.OperatorClaims
	claims   map[string]string // of each account, signed, by its public key
	imports  map[string]imports
	gate     string // the credential of who shows none
	core     user
	system   user
}

// imports are the subjects that an account hears of others, by their public keys.
type imports map[string][]string

// user is one credential with its key.
type user struct {
	jwt string
	key nkeys.KeyPair
}

func newAccounts(g *grants.Authority) (*accounts, error) {
	a := &accounts{grants: g}
	var err error
	if a.operator, err = g.Operator(); err != nil {
		return nil, err
	}
	if err := a.revoke(nil); err != nil {
		return nil, err
	}
	if a.gate, err = g.Gate(); err != nil {
		return nil, err
	}
	if a.core, err = newUser(func(key string) (string, error) {
		return g.Sign(grants.User{Role: grants.Core, Name: "core", Key: key}, time.Now())
	}); err != nil {
		return nil, err
	}
	a.system, err = newUser(g.SignSystem)
	return a, err
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

// apply writes the accounts into the options of a server. Each server has a resolver
// of its own: what it needs to start is in its memory.
func (a *accounts) apply(o *server.Options) error {
	resolver := &server.MemAccResolver{}
	for public, c := range a.claims {
		if err := resolver.Store(public, c); err != nil {
			return fmt.Errorf("store account %s: %w", public, err)
		}
	}
	o.TrustedOperators = []*jwt.OperatorClaims{a.operator}
	o.SystemAccount = a.grants.System()
	o.AccountResolver = resolver
	o.DefaultSentinel = a.gate
	return nil
}

// Bounds of an in-process connection that lives as long as its owner.
const (
	reconnectWait   = 50 * time.Millisecond
	reconnectJitter = 50 * time.Millisecond
	// inProcessWrite bounds one write to an in-process connection. A lame duck
	// greets who comes back to it and then neither reads nor closes the pipe: with
	// the usual minute, the connection, and who closes it, hang that long.
	inProcessWrite = 2 * time.Second
)

// Revoke keeps users out, by the public keys of their credentials, with a time after
// all that was signed for them, and cuts those off who are there. It replaces what was
// revoked before. Without a server, those that start later know it. One call at a time.
//
// It is not for every moment: each server reads the credentials of all of its clients
// for it, has no responders on JetStream's API for some milliseconds, and may leave
// connections deaf, which are cut (deaf.go).
func (b *Broker) Revoke(revoked map[string]time.Time) error {
	servers, err := b.updateAccounts(revoked)
	for _, s := range servers {
		cut, healErr := b.acc.heal(s)
		if healErr != nil {
			err = errors.Join(err, fmt.Errorf("nats server %s: %w", s.Name(), healErr))
		}
		if cut > 0 {
			b.cfg.Log.Info("connections that did not hear all they subscribe to were cut; they come back", "server", s.Name(), "connections", cut)
		}
	}
	return err
}

// updateAccounts has the servers that run take over accounts with these users out.
func (b *Broker) updateAccounts(revoked map[string]time.Time) (servers []*server.Server, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.acc.revoke(revoked); err != nil {
		return nil, err
	}
	for _, s := range []*server.Server{b.core, b.witness} {
		if s == nil {
			continue
		}
		servers = append(servers, s)
		if updateErr := b.acc.update(s); updateErr != nil {
			err = errors.Join(err, fmt.Errorf("nats server %s: %w", s.Name(), updateErr))
		}
	}
	return servers, err
}

// revoke signs the accounts anew.
func (a *accounts) revoke(revoked map[string]time.Time) error {
	claims, all := map[string]string{}, map[string]imports{}
	for public, c := range a.grants.Accounts(revoked) {
		var err error
		if claims[public], err = a.grants.Encode(c); err != nil {
			return err
		}
		all[public] = imports{}
		for _, i := range c.Imports {
			all[public][i.Account] = append(all[public][i.Account], string(i.Subject))
		}
	}
	a.claims, a.imports = claims, all
	return nil
}

// update has a server that runs take over the accounts, but that of the servers.
func (a *accounts) update(s *server.Server) error {
	for public, signed := range a.claims {
		if public == a.grants.System() {
			continue
		}
		if err := s.AccountResolver().Store(public, signed); err != nil {
			return err
		}
		acc, err := s.LookupAccount(public)
		if err != nil {
			return err
		}
		claims, err := jwt.DecodeAccountClaims(signed)
		if err != nil {
			return err
		}
		s.UpdateAccountClaims(acc, claims)
	}
	return nil
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
