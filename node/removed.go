package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/broker"
	"github.com/kbroker/kbroker/subjects"
)

// A removed host ends what it runs, once it knows:
//
//	a core answers its heartbeat so ----+-> "removed" in membership.json
//	a worker is refused, and asks ------+     |
//	its broker sees itself put out -------> "removed" beside the broker's store
//	started without a store, it asks          |
//	without a leader, it asks                 |
//	                                          v
//	                           its applications are ended, at every start
//
// The broker of a core runs on until it is put out: a majority may need it. A core
// that was off meanwhile is refused by the brokers of the others, and hears of it
// from their client ports alone.

const (
	// removedGrace is how long applications on a removed host may take to leave.
	removedGrace = 10 * time.Second
	// A core without a leader asks the others whether it was removed after askAfter,
	// at its start and later, and again every askEvery.
	askAfter = time.Second
	askEvery = 2 * time.Second
)

// isOut reports, before anything runs, whether this host was a core that the
// others have put out of their group, and of a removed one that never was in it.
// A core without its store asks the others: when it was removed, its server drops
// the store a moment before the removal is noted.
func (m *membership) isOut(ctx context.Context, dir string) (bool, error) {
	expelled, err := broker.Removed(brokerDir(dir))
	if err != nil || expelled {
		return expelled, err
	}
	joined, err := broker.Joined(brokerDir(dir))
	if err != nil || !joined {
		return m.Removed, err
	}
	g, err := m.grants()
	if err != nil {
		return false, err
	}
	gone, err := broker.StoreGone(brokerDir(dir), g.System())
	return err == nil && gone && (m.Removed || m.standing(ctx) != member), err
}

// standing is what the cluster says of a core of it.
type standing int

const (
	member  standing = iota // or nobody answers
	removed                 // but still a member of the broker's group
	out                     // of that, too
)

// standing asks the other cores, all at once, what they say of this one. Both that
// it was removed and that it is out are true for ever, as the name of a core is used
// once: the one that knows most is right.
func (m *membership) standing(ctx context.Context) standing {
	m.mu.Lock()
	others := slices.Clone(m.Cores)
	m.mu.Unlock()
	said := make(chan standing, len(others))
	for _, c := range others {
		go func() {
			rows, err := m.askHosts(ctx, c.Client)
			i := slices.IndexFunc(rows, func(r kbroker.HostRow) bool { return r.Name == m.Host && r.State == kbroker.HostRemoved })
			switch {
			case err != nil || i < 0:
				said <- member
			case rows[i].Out:
				said <- out
			default:
				said <- removed
			}
		}()
	}
	is := member
	for range others {
		is = max(is, <-said)
	}
	return is
}

// awaitStanding returns true when the others say that this host stands so, or worse,
// and false when ctx ends. They are asked while this core's broker has no leader: with
// one it hears by itself.
func (c *core) awaitStanding(ctx context.Context, want standing) bool {
	for pause := askAfter; ; pause = askEvery {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
		if !c.broker.Members().Leader && c.m.standing(ctx) >= want {
			return true
		}
	}
}

// askHosts asks one core for all hosts that it knows, the removed ones too.
func (m *membership) askHosts(ctx context.Context, addr string) ([]kbroker.HostRow, error) {
	conn, err := m.connectTo(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if cluster := conn.ConnectedClusterName(); cluster != m.ClusterID {
		return nil, fmt.Errorf("%s belongs to cluster %q now", addr, cluster)
	}
	body, err := json.Marshal(kbroker.ListRequest{All: true})
	if err != nil {
		return nil, fmt.Errorf("marshal request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := conn.RequestWithContext(ctx, subjects.Core(subjects.VerbHosts, kbroker.DefaultTenant), body)
	if err != nil {
		return nil, fmt.Errorf("ask core %s: %w", addr, err)
	}
	var rows []kbroker.HostRow
	if err := json.Unmarshal(reply.Data, &rows); err != nil {
		return nil, fmt.Errorf("unreadable answer from %s: %w", addr, err)
	}
	return rows, nil
}

// leave ends what a removed host runs, whether ctx ends or not; its directory
// never runs anything again.
func (m *membership) leave(ctx context.Context, dir *agent.Dir) error {
	m.mu.Lock()
	m.Removed = true
	m.mu.Unlock()
	err := m.save()
	if _, sweepErr := agent.Sweep(context.WithoutCancel(ctx), dir.Path, removedGrace); sweepErr != nil {
		err = errors.Join(err, fmt.Errorf("end the applications of a removed host: %w", sweepErr))
	}
	return err
}

// Past tells what became of the host of a data directory.
type Past struct {
	// ClusterID is the cluster of which it is, empty when it is of none yet.
	ClusterID string
	// RescuedFrom is the cluster of which it was until it was rescued, if it was.
	RescuedFrom string
	// Removed: the cluster has removed it.
	Removed bool
}

// PastOf reads what became of the host of a data directory, which may not be
// one yet.
func PastOf(dir string) (Past, error) {
	m, err := readMember(dir)
	if errors.Is(err, kbroker.NotFound) {
		return Past{}, nil
	}
	if err != nil {
		return Past{}, err
	}
	return Past{ClusterID: m.ClusterID, RescuedFrom: m.RescuedFrom, Removed: m.Removed}, nil
}
