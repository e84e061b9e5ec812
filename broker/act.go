package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
)

// act makes one step. An error says nothing of whether it was made.
func (m *membership) act(ctx context.Context, a action) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	m.b.log.Info("membership step", "step", a.String())
	switch a.deed {
	case removeWitness:
		return m.removeServer(ctx, witnessName(m.b.cfg.Host))
	case retireWitness:
		return m.b.retireWitness()
	case raiseStream:
		return m.raise(ctx, a.stream)
	case makeMirror:
		return m.makeMirror(ctx, a)
	case dropMirror:
		return m.dropMirror(ctx, a.stream)
	case removeCore:
		return m.removeServer(ctx, string(a.host))
	default:
		return nil
	}
}

// removeServer removes a member of the meta group. nil if there was no answer
// in time: a member that leads and is removed gives none.
func (m *membership) removeServer(ctx context.Context, name string) error {
	body, err := json.Marshal(server.JSApiMetaServerRemoveRequest{Server: name})
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	var r server.JSApiMetaServerRemoveResponse
	if err := ask(ctx, m.system, server.JSApiRemoveServer, body, &r); errors.Is(err, context.DeadlineExceeded) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if r.Error != nil {
		return fmt.Errorf("remove %s: %w", name, r.Error)
	}
	return nil
}

// retireWitness stops the witness, which is no member any more, and sees to it
// that it never starts again: a removed server that starts is a new member.
func (b *Broker) retireWitness() error {
	if err := durable.Replace(filepath.Join(b.cfg.Dir, retiredFile), nil, 0o600); err != nil {
		return err
	}
	if w := b.takeWitness(); w != nil {
		w.Shutdown()
		w.WaitForShutdown()
	}
	if err := os.RemoveAll(filepath.Join(b.cfg.Dir, witnessDir)); err != nil {
		return fmt.Errorf("delete the witness's store: %w", err)
	}
	return nil
}

// expelled: the operator has removed this core, and it is no member of the meta
// group: its server says so, or the meta leader does not have it. A core that was
// down when it was removed hears nothing from that leader, and so asks.
func (m *membership) expelled(ctx context.Context, o observation) bool {
	if !slices.Contains(o.removed, o.host) {
		return false
	}
	if m.b.putOut() {
		return true
	}
	if o.leader == "" {
		meta, err := m.askMetaLeader(ctx, server.EventFilterOptions{})
		if err != nil || meta == nil {
			return false
		}
		o.leader, o.size, o.peers = meta.Leader, meta.Size, peersOf(meta.Leader, meta.Replicas)
	}
	return o.size == len(o.peers) && !o.member(string(o.host))
}

// putOut: the core's server says that it was removed from the meta group, and has
// turned its JetStream off, as it does then. What it says alone is no more than a
// line of a log.
func (b *Broker) putOut() bool { return b.saidRemoved.Load() && !b.core.JetStreamEnabled() }

// awaitRecord is the round of a core that was put out, and that knows of no
// removal by the operator: that is on its way, or there was none.
func (m *membership) awaitRecord(now time.Time) (time.Duration, error) {
	if m.putOutAt.IsZero() {
		m.putOutAt = now
	}
	if now.Sub(m.putOutAt) < recordWithin {
		return changeEvery, nil
	}
	return 0, fmt.Errorf("nats server %s was removed from the meta group, and host %s is not known as removed", m.b.core.Name(), m.b.cfg.Host)
}

// leaveForGood remembers that this core was removed, and says so.
func (b *Broker) leaveForGood() error {
	return errors.Join(refuseRemoved(b.cfg.Host, b.cfg.Dir), NoteRemoved(b.cfg.Dir))
}

// refuseRemoved is the error of a core that was removed from its cluster.
func refuseRemoved(host kbroker.HostID, dir string) error {
	return kbroker.Errorf(kbroker.Refused, "host %s was removed from its cluster; what is in %s is not used any more", host, dir).
		WithHint("to have this machine back, join with an empty directory under another name")
}
