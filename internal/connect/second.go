package connect

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// nextServer is how long ConnectTo gives a server before it tries the next one
// beside it: a frozen one must not cost the time in which a server that shuts
// down keeps its clients.
const nextServer = 150 * time.Millisecond

// Others returns the servers that t names or conn was told of, but not the one
// that conn is on, in random order.
func (t Target) Others(conn *nats.Conn) []string {
	seen := map[string]bool{}
	if u, err := url.Parse(conn.ConnectedUrl()); err == nil {
		seen[u.Host] = true
	}
	var others []string
	var user *url.Userinfo
	for _, s := range slices.Concat(t.Servers, conn.Servers()) {
		u, err := url.Parse(s)
		if err != nil || seen[u.Host] {
			continue
		}
		seen[u.Host] = true
		if u.User == nil {
			u.User = user // servers do not tell whom they know us as
		}
		user = u.User
		others = append(others, u.String())
	}
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	return others
}

// ConnectTo is Connect to one of the given servers, for a process that has a
// connection and means to leave it. It begins with the first, with the next one
// after 150 ms or a failure, and takes whichever answers first. It never
// connects in the background, also not that of an instance: Unavailable if none
// answered within a second each, or before ctx ended. Once it is connected, all
// servers of t are there to reconnect to.
//
// extra, which may be nil, gives the options of the attempt on servers[i]; attempts
// that came second are closed, with whatever that calls. ConnectTo returns the i of
// the connection.
func (t Target) ConnectTo(ctx context.Context, servers []string, name string, extra func(i int) []nats.Option) (_ *nats.Conn, i int, _ error) {
	attempts, cancel := context.WithCancel(ctx)
	made := make(chan attempt, len(servers))
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
		close(made)
		for late := range made {
			late.conn.Close() // nil is fine
		}
	}()
	err := errors.New("no other server is known")
	next := time.NewTimer(0)
	defer next.Stop()
	for begun, failed := 0, 0; failed < len(servers); {
		select {
		case <-next.C:
			if begun < len(servers) {
				a := attempt{server: begun}
				var options []nats.Option
				if extra != nil {
					options = extra(begun)
				}
				running.Go(func() {
					a.conn, a.err = t.try(attempts, servers[a.server], name, options)
					made <- a
				})
				begun++
				next.Reset(nextServer)
			}
		case a := <-made:
			if a.err == nil {
				return a.conn, a.server, nil
			}
			failed++
			err = a.err
			next.Reset(0)
		case <-ctx.Done():
			return nil, 0, t.unreachable(servers, ctx.Err())
		}
	}
	return nil, 0, t.unreachable(servers, err)
}

type attempt struct {
	server int // which one
	conn   *nats.Conn
	err    error
}

// try connects to one server, with all of t known for later.
func (t Target) try(ctx context.Context, server, name string, extra []nats.Option) (*nats.Conn, error) {
	pool := []string{server}
	for _, s := range t.Servers {
		if s != server {
			pool = append(pool, s)
		}
	}
	secure, err := t.Secure()
	if err != nil {
		return nil, err
	}
	// One dial is one server only if nats.go leaves names to the dialer.
	own := []nats.Option{nats.DontRandomize(), nats.SkipHostLookup()}
	conn, err := dial(ctx, &dialer{once: true}, pool, name, slices.Concat(own, secure, extra))
	if errors.Is(err, errOneServer) {
		err = errors.New("no answer")
	}
	return conn, err
}
