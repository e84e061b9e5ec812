package broker

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
)

// Whom a server turns away it tells in its log alone. What is read of it is the format of a
// line, as the server (2.15.2) makes it: the name that a client has given itself is quoted
// in it, so that nobody can have a line say what it does not. Who they are is asked of the
// server, by the number of their connection.

const (
	// maxRefused bounds the refusals that wait to be handed over; equal ones are one.
	maxRefused = 256
	// objectsOfOne is how many different objects of one connection are told apart at once.
	objectsOfOne = 8
	// refusedEvery is between two times that they are handed over.
	refusedEvery = 100 * time.Millisecond
	// maxKnown bounds the connections of which is remembered who they are.
	maxKnown = 1024
)

// Actions that a server refuses.
const (
	actionConnect   = "connect"
	actionPublish   = "publish"
	actionSubscribe = "subscribe"
)

// lineForm is how a line of a connection begins: its address, its kind and number, and
// what a client says of itself.
var lineForm = regexp.MustCompile(`(?s)^(\S+) - ([cr])id:(\d+)(?: - "(?:[^"\\]|\\.)*"){0,2} - (.*)$`)

// userForm is a user of whom the server knows who they are.
var userForm = regexp.MustCompile(`^JWT User "([A-Z0-9]+)"$`)

// refused is what a line of the log says of a connection.
type refused struct {
	address string
	cid     uint64 // of a client that was let in; else 0
	action  string
	object  string
	key     string // of who was let in before, and is not any more
	message string
}

// parseRefused reads a line of the server's log, in the form in which it is given to the
// logger; false: it is not one of a refusal.
func parseRefused(format string, v []any) (refused, bool) {
	parts := lineForm.FindStringSubmatch(format)
	if parts == nil {
		return refused{}, false
	}
	r := refused{address: parts[1]}
	if host, _, err := net.SplitHostPort(r.address); err == nil {
		r.address = host
	}
	said := parts[4]
	argument := func(n int) string {
		switch a := append(v, nil, nil)[n].(type) {
		case []byte:
			return string(a)
		case nil:
			return ""
		default:
			return fmt.Sprint(a)
		}
	}
	switch {
	case said == "Publish Violation - Subject %q" || said == "Publish Violation - Reply %q":
		r.action, r.object, r.message = actionPublish, "subject "+argument(0), "its credential does not allow it to publish there"
	case strings.HasPrefix(said, "Subscription Violation"):
		_, rest, _ := strings.Cut(said, "Subject ")
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return refused{}, false
		}
		subject, _ := strconv.Unquote(quoted)
		r.action, r.object, r.message = actionSubscribe, "subject "+subject, "its credential does not allow it to subscribe to that"
	case said == server.ErrAuthentication.Error() || said == "%v - %s" && argument(0) == server.ErrAuthentication.Error():
		r.action, r.message = actionConnect, "no credential that is good"
		if user := userForm.FindStringSubmatch(argument(1)); user != nil {
			r.key = user[1]
		}
	case said == "TLS handshake error: %v%s" || said == "TLS %s handshake error: %v%s":
		r.action, r.message = actionConnect, "no TLS as it has to be: "+argument(strings.Count(said, "%")-2)
	default:
		return refused{}, false
	}
	if r.action == actionConnect {
		r.object = "clients"
		if parts[2] == "r" {
			r.object = "routes"
		}
		return r, true
	}
	r.cid, _ = strconv.ParseUint(parts[3], 10, 64)
	return r, true
}

// refusals are those of the core's server that wait to be handed over. Safe for
// concurrent use.
type refusals struct {
	mu      sync.Mutex
	waiting map[refusedKey]*refusedGroup
	dropped int
}

// refusedKey is what makes refusals equal.
type refusedKey struct {
	address, action, object string // no object: of many of one connection
	cid                     uint64
}

type refusedGroup struct {
	first refused
	at    time.Time
	count int
}

// note takes a line of the log. It is called with locks of the server held: it waits for
// nothing.
func (s *refusals) note(format string, v []any) {
	r, ok := parseRefused(format, v)
	if !ok {
		return
	}
	k := refusedKey{address: r.address, action: r.action, cid: r.cid, object: r.object}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[k] == nil && s.objects(k) >= objectsOfOne {
		k.object = ""
	}
	if g := s.waiting[k]; g != nil {
		g.count++
		return
	}
	if len(s.waiting) >= maxRefused {
		s.dropped++
		return
	}
	if s.waiting == nil {
		s.waiting = map[refusedKey]*refusedGroup{}
	}
	s.waiting[k] = &refusedGroup{first: r, at: time.Now().UTC(), count: 1}
}

// objects is how many objects are told apart of a connection that does the same.
func (s *refusals) objects(k refusedKey) (n int) {
	for other := range s.waiting {
		if k.object = other.object; other == k && other.object != "" {
			n++
		}
	}
	return n
}

// take are the groups that wait, and how many were dropped since.
func (s *refusals) take() (groups []*refusedGroup, dropped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.waiting {
		groups = append(groups, g)
	}
	dropped, s.waiting, s.dropped = s.dropped, nil, 0
	return groups, dropped
}

// tellRefused hands over who was refused until ctx ends.
func (b *Broker) tellRefused(ctx context.Context) {
	known := map[uint64]kbroker.Caller{}
	tick := time.NewTicker(refusedEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		groups, dropped := b.refused.take()
		for _, g := range groups {
			who := kbroker.Caller{Key: g.first.key, Address: g.first.address}
			if cid := g.first.cid; cid != 0 {
				c, ok := known[cid]
				if !ok {
					if len(known) >= maxKnown {
						clear(known)
					}
					c = b.whoIs(cid)
					known[cid] = c
				}
				if c != (kbroker.Caller{}) {
					who = c
				}
				who.Address = g.first.address
			}
			b.cfg.Refused(kbroker.AuditRecord{
				Time: g.at, Actor: who, Action: g.first.action, Object: g.first.object, Code: kbroker.Refused, Message: g.first.message,
				Count: g.count, By: "broker " + string(b.cfg.Host),
			}, 0)
		}
		if dropped > 0 {
			b.cfg.Refused(kbroker.AuditRecord{}, dropped)
		}
	}
}

// whoIs asks the server whose connection has a number, also of one that has just ended.
// The zero Caller: it does not know.
func (b *Broker) whoIs(cid uint64) kbroker.Caller {
	found, err := b.core.Connz(&server.ConnzOptions{CID: cid, Username: true, State: server.ConnAll})
	if err != nil || len(found.Conns) != 1 {
		return kbroker.Caller{}
	}
	c := found.Conns[0]
	if who, ok := b.cfg.Grants.Caller(c.JWT); ok {
		return who
	}
	return kbroker.Caller{Name: string(grants.Gate), Role: string(grants.Gate), Key: c.AuthorizedUser} // they show none
}
