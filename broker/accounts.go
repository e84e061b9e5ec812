package broker

import (
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/kbroker/kbroker/internal/grants"
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
