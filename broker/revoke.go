package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
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
