package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/internal/credential"
)

// A worker that no core lets in any more asks what became of it, as one that shows no
// credential, with the proof by its host's key:
//
//	it was removed ------------> it ends, as if its heartbeat had been answered so
//	its key was taken back ----> it makes another one, and asks again
//	it is a member ------------> it is given a credential, and connects with it
//	anything else, or nothing -> it asks again; what it runs runs on
//
// It believes a core of its own cluster alone, by the roots that it has.

const (
	// lookEvery is how often a worker looks whether it is connected; at awayLooks in a
	// row without a connection it looks why.
	lookEvery = time.Second
	awayLooks = 2
	// maxRest is how many looks it rests at most after the cluster has refused to answer,
	// doubled from one refusal to the next: each is a line in a log.
	maxRest = 30
)

// keyTakenBack is why a host asks once more.
const keyTakenBack = "the key of this host's credential was taken back; it has made another one"

// errConnectAnew ends what runs on the connection of a worker that cannot mend itself.
var errConnectAnew = errors.New("the connection to the cores is to be made anew")

// shown is the key of the credential that this worker connects with. One that is lost is
// replaced by the own key, for which nothing is signed yet.
func (m *membership) shown() (key string, err error) {
	c, err := credential.Load(m.credential())
	if !lost(err) {
		return c.Key(), err
	}
	if c, err = m.ownKey(); err != nil {
		return "", err
	}
	if err := makeDir(m.identityDir()); err != nil {
		return "", err
	}
	return c.Key(), c.Save(m.credential())
}

// stay has this worker let in by the cores again when they refuse the credential of a
// connection, whose key is given, until ctx ends. Errors: agent.ErrRemoved - the cluster
// says so; errConnectAnew.
func (m *membership) stay(ctx context.Context, conn *nats.Conn, key string, log *slog.Logger) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	away, rest, skip, said := 0, 0, 0, ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch {
		case conn.IsClosed():
			return errConnectAnew
		case conn.IsConnected():
			away, rest, skip, said = 0, 0, 0, ""
			continue
		}
		if away++; away < awayLooks {
			continue
		}
		if skip > 0 {
			skip--
			continue
		}
		takes, refused := m.refused(ctx)
		switch {
		case takes != "" && takes != key:
			return errConnectAnew
		case !refused:
			continue
		}
		now, err := m.becameOf(ctx)
		if errors.Is(err, kbroker.Refused) {
			rest = min(2*rest+1, maxRest)
			skip = rest
		}
		switch {
		case errors.Is(err, agent.ErrRemoved):
			return err
		case err == nil && now != key:
			return errConnectAnew
		case err == nil: // the connection finds it
			log.Info("the cluster has signed this host's credential again", "host", m.Host)
		case err.Error() != said && ctx.Err() == nil:
			said = err.Error()
			log.Warn("no core takes this host's credential; asking for another one, what runs here runs on", "host", m.Host, "err", err)
		}
	}
}

// refused reports whether this worker has nothing to show, or cores refuse it, and none
// lets it in; takes is the key that one lets in. That nobody answers is no refusal.
func (m *membership) refused(ctx context.Context) (takes string, refused bool) {
	c, err := credential.Load(m.credential())
	if err != nil || c.Check(time.Now()) != nil {
		return "", true
	}
	for _, addr := range m.servers() {
		if ctx.Err() != nil {
			return "", false
		}
		conn, err := m.connectTo(ctx, addr)
		if err == nil {
			conn.Close()
			return c.Key(), false
		}
		refused = refused || errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked)
	}
	return "", refused
}

// becameOf asks the cores what became of this worker, until the first answer. It returns
// the key of the credential that it was given. agent.ErrRemoved: it was removed.
func (m *membership) becameOf(ctx context.Context) (key string, err error) {
	a := &admission{was: m.Generation}
	if err := a.prepare(m, Config{}); err != nil {
		return "", err
	}
	var reply kbroker.JoinReply
	err = errors.New("no core is known")
	for _, addr := range m.servers() {
		reply, err = a.ask(ctx, addr)
		if _, answered := errors.AsType[*kbroker.Error](err); err == nil || answered {
			break
		}
	}
	switch {
	case err != nil:
		return "", err
	case reply.Removed && reply.Host == m.Host && reply.Generation == m.Generation:
		return "", agent.ErrRemoved
	case reply.KeyRevoked:
		_, err := m.newKey()
		return "", errors.Join(errors.New(keyTakenBack), err)
	case !reply.Admitted:
		return "", fmt.Errorf("told to wait: %s", reply.Wait)
	case reply.Generation != m.Generation:
		return "", fmt.Errorf("host %s was admitted as number %d of its name, and is known as number %d", m.Host, m.Generation, reply.Generation)
	}
	return a.request.User, m.keepCredential(reply.Credential)
}
