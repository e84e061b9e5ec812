package broker

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// While a server takes over the claims of an account (UpdateAccountClaims), nothing is
// imported into it for a moment. Who subscribes in that moment hears nothing of another
// account, for ever, and does not know. So after each update it is looked who is deaf,
// and that connection is cut: it comes back, and subscribes again.

const (
	// hearingSettles is how long a subscription may take from its own account into that
	// which it imports from.
	hearingSettles = 50 * time.Millisecond
	// allSubscriptions is no bound.
	allSubscriptions = 1 << 30
)

// hearing is a subscription of a connection.
type hearing struct {
	connection uint64
	id         string
}

// heal cuts the connections that an update has left deaf, and says how many.
func (a *accounts) heal(s *server.Server) (cut int, err error) {
	deaf, err := a.deaf(s)
	if len(deaf) == 0 || err != nil {
		return 0, err
	}
	<-time.After(hearingSettles) // those that are being made hear by now
	again, err := a.deaf(s)
	if err != nil {
		return 0, err
	}
	connections := map[uint64]bool{}
	for h := range deaf {
		if again[h] {
			connections[h.connection] = true
		}
	}
	for _, c := range slices.Sorted(maps.Keys(connections)) {
		if s.DisconnectClientByID(c) == nil { // it may have gone
			cut++
		}
	}
	return cut, nil
}

// deaf are the subscriptions that should be heard in another account and are not.
func (a *accounts) deaf(s *server.Server) (map[hearing]bool, error) {
	in := map[string][]server.SubDetail{}
	for public := range a.imports {
		subs, err := s.Subsz(&server.SubszOptions{Subscriptions: true, Account: public, Limit: allSubscriptions})
		if err != nil {
			return nil, fmt.Errorf("list the subscriptions of account %s: %w", public, err)
		}
		in[public] = subs.Subs
	}
	out := map[hearing]bool{}
	for public, all := range a.imports {
		for from, imported := range all {
			heard := map[hearing]bool{}
			for _, sub := range in[from] {
				heard[hearing{sub.Cid, sub.Sid}] = true
			}
			for _, sub := range in[public] {
				h := hearing{sub.Cid, sub.Sid}
				// Those of other accounts that hear of this one are listed here, too.
				if sub.Account == public && !heard[h] && slices.ContainsFunc(imported, func(i string) bool { return server.SubjectsCollide(sub.Subject, i) }) {
					out[h] = true
				}
			}
		}
	}
	return out, nil
}
