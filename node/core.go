package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/broker"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/super"
)

// core is a host with a broker.
type core struct {
	cfg     Config
	dir     *agent.Dir
	m       *membership
	broker  *broker.Broker
	id      *identity
	counted *metrics
	planner atomic.Pointer[super.Super] // nil until the broker listens
	revoked *revocations                // users whose credentials were taken back
	early   atomic.Int64                // refusals before there was a planner
	keeping sync.Mutex                  // held while it changes who is kept out
	told    told                        // guarded by keeping
	gone    atomic.Bool                 // the host was removed
	out     atomic.Bool                 // and the others say that it is no member of the broker's group
}

// runCore runs a host with a broker. On one that was removed nothing else runs:
// its applications are ended, and the broker leaves when it is no member any more.
// agent.ErrRemoved: the broker alone knows of the removal.
func runCore(ctx context.Context, cfg Config, dir *agent.Dir, m *membership, counted *metrics) error {
	c := &core{cfg: cfg, dir: dir, m: m, counted: counted}
	c.gone.Store(m.Removed)
	var err error
	if c.id, err = m.openIdentity(time.Now, cfg.Log.With("component", "node")); err != nil {
		return err
	}
	c.id.life = cmp.Or(cfg.CredentialLife, credentialLife)
	if !m.Removed {
		if err := m.writeContext(); err != nil {
			cfg.Log.Warn("the context of this host is not written; `kbroker agent creds` makes a credential", "component", "node", "err", err)
		}
	}
	c.broker, err = broker.New(broker.Config{
		Host: m.Host, Dir: brokerDir(dir.Path), ClusterID: m.ClusterID, Routes: c.id.routes(), Clients: c.id.clients(), Grants: c.id.grants,
		ClientAddr: m.Client, RouteAddr: m.Route, Found: m.Founded, Cores: m.Cores,
		Removed: c.removed, Refused: c.refused, StockRaft: cfg.StockRaft, Log: cfg.Log.With("component", "broker"),
	})
	if err != nil {
		return err
	}
	if c.revoked, err = openRevocations(filepath.Join(dir.Path, revokedFile), c.id.now); err != nil {
		return err
	}
	c.told.until = c.revoked.all()
	if err := c.broker.Revoke(c.told.until); err != nil {
		return err
	}
	counted.MustRegister(c.broker.Collector())
	partsCtx, stopParts := context.WithCancel(ctx)
	defer stopParts()
	brokerCtx, stopBroker := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBroker()
	beatCtx, stopBeat := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBeat()

	var both sync.WaitGroup
	var brokerErr, partsErr error
	both.Go(func() { _ = c.id.run(brokerCtx, c.expelled) }) // nil
	both.Go(func() {
		if err := c.admitClients(brokerCtx); err != nil {
			cfg.Log.Error("this core may let in whose credential was taken back", "component", "node", "err", err)
		}
	})
	both.Go(func() {
		brokerErr = c.broker.Run(brokerCtx)
		stopBroker()
		stopParts()
		stopBeat()
	})
	both.Go(func() {
		defer stopBroker()
		if !m.Removed {
			partsErr = c.runParts(partsCtx, beatCtx, stopBroker, stopBeat)
		}
		if !c.gone.Load() {
			return
		}
		if !m.Removed {
			partsErr = m.leave(ctx, dir)
		}
		cfg.Log.Info("this host was removed; its broker waits until it is no member any more", "component", "node", "host", m.Host)
		c.out.Store(c.awaitStanding(partsCtx, out))
	})
	both.Wait()
	if c.out.Load() {
		brokerErr = errors.Join(brokerErr, broker.NoteRemoved(brokerDir(dir.Path)))
	}
	expelled, err := broker.Removed(brokerDir(dir.Path))
	switch {
	case expelled && m.Removed:
		brokerErr = nil // it said so
	case expelled:
		brokerErr = agent.ErrRemoved
	case brokerErr != nil:
		brokerErr = fmt.Errorf("broker: %w", brokerErr)
	}
	return errors.Join(brokerErr, partsErr, err)
}

// removed are the hosts that were removed. This one may have heard of it from
// another core, before its own store knew.
func (c *core) removed() []kbroker.HostID {
	var all []kbroker.HostID
	if s := c.planner.Load(); s != nil {
		all = s.Removed()
	}
	if c.gone.Load() && !slices.Contains(all, c.m.Host) {
		all = append(all, c.m.Host)
	}
	return all
}

// who has a key, and from where, as the servers know it.
func (c *core) who(ctx context.Context, key string) (kbroker.Caller, error) {
	visit, err := c.broker.Who(ctx, key)
	if err != nil {
		return kbroker.Caller{}, err
	}
	who, ok := c.id.grants.Caller(visit.Credential)
	if !ok {
		return who, kbroker.Errorf(kbroker.NotFound, "the credential of key %s is not of this cluster", key)
	}
	who.Address = visit.Address
	return who, nil
}

// refused has the audit trail tell whom the broker turned away.
func (c *core) refused(r kbroker.AuditRecord, more int) {
	s := c.planner.Load()
	switch {
	case s == nil:
		c.early.Add(int64(r.Count + more))
	case more > 0:
		s.RefusalsDropped(more)
	default:
		s.Refused(r)
	}
}

// expelled are the cores that were removed and are no members of the broker any
// more: until then its majority may need them. Who is out stays out, after a restart
// too; nobody comes to be while the group has no leader that says who is in it.
func (c *core) expelled() []kbroker.HostID {
	members := c.broker.Members()
	if !members.Leader {
		return c.m.outs()
	}
	gone := slices.DeleteFunc(c.removed(), func(h kbroker.HostID) bool {
		_, member := members.Current[h]
		return member || h == c.m.Host
	})
	if err := c.m.noteOut(gone); err != nil {
		c.cfg.Log.Warn("who was removed is not stored; a restart will learn it again", "component", "node", "err", err)
	}
	return c.m.outs()
}

// runParts runs what lives on the broker, agent and super, until ctx or one of
// them ends, or the host was removed. If not, it calls stopBroker then, and
// returns when beatCtx has ended: the broker waits for its clients, and a host
// that is silent for as long is lost to the others. stopBeat ends beatCtx.
func (c *core) runParts(ctx, beatCtx context.Context, stopBroker, stopBeat func()) error {
	select {
	case <-c.broker.Listening():
	case <-ctx.Done():
		return nil
	}
	conn, err := c.broker.Connect(nats.Name("kbroker agent " + string(c.m.Host)))
	if err != nil {
		return fmt.Errorf("connect to the own broker: %w", err)
	}
	defer conn.Close()
	a, s, err := c.parts(conn)
	if err != nil {
		return err
	}
	c.planner.Store(s)
	s.RefusalsDropped(int(c.early.Swap(0)))
	c.counted.MustRegister(a.Collector(), s.Collector())

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var beat sync.WaitGroup
	var beatErr error
	beat.Go(func() {
		defer cancel()
		beatErr = a.Beat(beatCtx)
		if errors.Is(beatErr, agent.ErrRemoved) {
			c.gone.Store(true)
		}
	})
	err = runAll(ctx, map[string]func(context.Context) error{
		"agent": a.Run, "super": s.Run,
		"revocations": func(ctx context.Context) error { return c.revoke(ctx, s) },
		"renewals":    func(ctx context.Context) error { return c.renews(ctx, conn) },
		"standing": func(ctx context.Context) error {
			if c.awaitStanding(ctx, removed) {
				c.gone.Store(true)
				stopBeat()
			}
			return nil
		},
		"upgrade": func(ctx context.Context) error {
			return onTrial(ctx, c.dir.Path, a.Missing, c.cfg.Log.With("component", "node"))
		},
		"membership": func(ctx context.Context) error {
			return c.m.follow(ctx, s.Cores, s.Removed, c.cfg.Log.With("component", "node"))
		},
	})
	if !c.gone.Load() {
		stopBroker()
	}
	beat.Wait()
	if beatErr != nil {
		beatErr = fmt.Errorf("heartbeat: %w", beatErr)
	}
	return errors.Join(err, beatErr)
}

// parts are what runs on the broker of a core.
func (c *core) parts(conn *nats.Conn) (*agent.Agent, *super.Super, error) {
	times := state.Tuned
	if !c.broker.RaftTuned() {
		times = state.Stock
	}
	checkup := func(ctx context.Context) kbroker.CoreCheckup { return coreCheckup(ctx, c.broker) }
	a, err := newAgent(c.cfg, c.dir, c.m, conn, times, checkup)
	if err != nil {
		return nil, nil, err
	}
	s, err := super.New(super.Config{
		Host: c.m.Host, Process: c.dir.Process, Earlier: c.dir.Earlier, ClusterID: c.m.ClusterID, Found: c.m.Founded,
		Dir: filepath.Join(c.dir.Path, "core"), Conn: conn, Times: times, Log: c.cfg.Log.With("component", "super"),
		Members: func() super.Members { return membersOf(c.broker) },
		Look:    c.broker.Look,
		Proved: func(r kbroker.JoinRequest) error {
			_, err := proved(r)
			return err
		},
		Admit: c.id.admit,
		Sign:  c.id.signInstance, SignUser: c.id.signUser,
		Develop: func(r kbroker.DevelopRequest, asks string) (string, error) {
			return c.id.signProgram(r, asks, c.isRevoked)
		},
		Signed: c.id.signed, CredentialLife: c.id.life,
		Who:  c.who,
		Root: pki.FingerprintOf(c.id.root),
	})
	return a, s, err
}
