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
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
)

// Times of the membership loop.
const (
	// startEvery until the server was current once, changeEvery while there
	// is something to change or to wait for, calmEvery otherwise.
	startEvery  = 50 * time.Millisecond
	changeEvery = 200 * time.Millisecond
	calmEvery   = 500 * time.Millisecond

	// Streams are looked at less often than members: when all is calm, by the
	// core that may have to raise one and by the others, who only tell; and by
	// the others while one is being raised.
	streamsEvery     = 2 * time.Second
	streamsElsewhere = 5 * time.Second
	streamsRaising   = time.Second

	// metaTimeout bounds a question to the meta leader, streamsTimeout one
	// look at all streams, changeTimeout one change. A witness that leads and
	// is removed does not answer: waiting longer only delays the next look.
	metaTimeout    = 500 * time.Millisecond
	streamsTimeout = time.Second
	changeTimeout  = time.Second

	// leaderlessFor this long is told to the operator.
	leaderlessFor = 10 * time.Second

	// A restarted founder without a meta leader is nudged after nudgeAfter,
	// then again, core and witness in turn: the other's log may be longer.
	nudgeAfter = 50 * time.Millisecond
	nudgeEvery = time.Second
)

// Members is what the membership loop saw last.
type Members struct {
	// Leader: the meta group has one. If not, the rest is empty.
	Leader bool
	// Current has every core of the meta group; true if it is caught up and
	// was heard lately. The witness is not among them.
	Current map[kbroker.HostID]bool
	// Size of the meta group, the witness included.
	Size int
	// Witness: one is still a member.
	Witness bool
	// Replicas is the lowest number over all streams; 0 until it is known.
	Replicas int
}

// membership observes, makes one step, and observes again.
type membership struct {
	b       *Broker
	system  *nats.Conn // in SYS
	conn    *nats.Conn // in the account of everybody else
	restart bool       // this core had joined before this start

	streams      []stream
	streamsKnown bool
	streamsAt    time.Time

	leaderless time.Time // since when; zero: there is a leader
	told       bool
	nudged     time.Time
	nudges     int
}

// run keeps going until ctx ends, then returns nil. An error is a failure of
// the node.
func (m *membership) run(ctx context.Context) error {
	var asked chan<- struct{} // by Look, for the round that comes
	for {
		pause, err := m.round(ctx)
		if err != nil {
			return err
		}
		if asked != nil {
			close(asked)
			asked = nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case asked = <-m.b.looks:
			timer.Stop()
			m.streamsAt = time.Time{}
		case <-timer.C:
		}
	}
}

// round is one observation and at most one step; it says when to look again.
func (m *membership) round(ctx context.Context) (time.Duration, error) {
	b := m.b
	if !b.core.Running() || !b.core.JetStreamEnabled() {
		return 0, fmt.Errorf("nats server %s: JetStream is off: its disk failed or filled up, or the host was removed from the cluster", b.cfg.Host)
	}
	o := m.observe(ctx)
	b.note(o)
	if o.leader == "" {
		m.withoutLeader(time.Now())
		return startEvery, nil
	}
	m.leaderless, m.told = time.Time{}, false
	if err := b.noteReady(o); err != nil {
		return 0, err
	}
	fresh := m.observeStreams(ctx, &o)
	b.note(o)
	a := step(o)
	if a.deed == raiseStream && !fresh {
		// What is acted on is seen in the same round.
		m.streamsAt = time.Time{}
		m.observeStreams(ctx, &o)
		a = step(o)
	}
	if a.deed == nothing {
		return m.pause(o), nil
	}
	if err := m.act(ctx, a); err != nil && ctx.Err() == nil {
		b.log.Warn("membership step failed; the next round looks again", "step", a.String(), "err", err)
	}
	m.streamsAt = time.Time{}
	return changeEvery, nil
}

// pause is short while this core is not current, or has work that waits for
// others.
func (m *membership) pause(o observation) time.Duration {
	switch {
	case !m.b.isReady():
		return startEvery
	case o.witness && len(o.cores()) > 1, !o.whole(), o.leads() && len(o.cores()) >= replicasWanted && !m.calm(o):
		return changeEvery
	default:
		return calmEvery
	}
}

// calm: every stream is as it should be.
func (m *membership) calm(o observation) bool {
	return o.streamsKnown && !slices.ContainsFunc(o.streams, func(s stream) bool { return !s.settled() || s.replicas < replicasWanted })
}

// observe looks at the members. What was seen of the streams last is kept.
func (m *membership) observe(ctx context.Context) observation {
	o := observation{
		host: m.b.cfg.Host, founder: m.b.id.Founder, witness: m.b.witnessServer() != nil,
		streams: m.streams, streamsKnown: m.streamsKnown,
	}
	meta, err := m.meta(ctx)
	if err != nil {
		m.b.log.Debug("the meta leader did not answer", "err", err)
	}
	if meta != nil {
		o.leader, o.size = meta.Leader, meta.Size
		o.peers = peersOf(meta.Leader, meta.Replicas)
	}
	return o
}

// observeStreams looks at the streams when it is time to, and reports whether
// it did.
func (m *membership) observeStreams(ctx context.Context, o *observation) bool {
	every := streamsElsewhere
	switch busy := len(o.cores()) >= replicasWanted && !m.calm(*o); {
	case o.leads() && busy:
		every = changeEvery
	case busy:
		every = streamsRaising
	case o.leads():
		every = streamsEvery
	}
	if !m.streamsAt.IsZero() && time.Since(m.streamsAt) < every {
		return false
	}
	var err error
	m.streams, err = m.lookAtStreams(ctx)
	m.streamsAt, m.streamsKnown = time.Now(), err == nil
	if err != nil && ctx.Err() == nil {
		m.b.log.Debug("streams are not all known", "err", err)
	}
	o.streams, o.streamsKnown = m.streams, m.streamsKnown
	return true
}

// meta is what the leader of the meta group says of it: a follower's view of
// the others is wrong for ever. nil if no leader is known or it does not answer.
func (m *membership) meta(ctx context.Context) (*server.MetaClusterInfo, error) {
	own, err := jsz(m.b.core)
	if err != nil || own == nil || own.Leader == "" || own.Leader == string(m.b.cfg.Host) {
		if own != nil && own.Leader == "" {
			own = nil
		}
		return own, err
	}
	if w := m.b.witnessServer(); w != nil && own.Leader == w.Name() {
		meta, err := jsz(w)
		if err != nil || meta == nil || meta.Leader != w.Name() {
			return nil, err
		}
		return meta, nil
	}
	body, err := json.Marshal(server.JszEventOptions{
		JSzOptions:         server.JSzOptions{LeaderOnly: true},
		EventFilterOptions: server.EventFilterOptions{Name: own.Leader, ExactMatch: true},
	})
	if err != nil {
		return nil, fmt.Errorf("encode question: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, metaTimeout)
	defer cancel()
	reply := struct {
		Data  *server.JSInfo   `json:"data"`
		Error *server.ApiError `json:"error"`
	}{}
	if err := ask(ctx, m.system, "$SYS.REQ.SERVER.PING.JSZ", body, &reply); err != nil {
		return nil, fmt.Errorf("ask meta leader %s: %w", own.Leader, err)
	}
	if reply.Error != nil {
		return nil, fmt.Errorf("ask meta leader %s: %w", own.Leader, reply.Error)
	}
	if reply.Data == nil || reply.Data.Meta == nil || reply.Data.Meta.Leader != own.Leader {
		return nil, nil
	}
	return reply.Data.Meta, nil
}

func jsz(s *server.Server) (*server.MetaClusterInfo, error) {
	info, err := s.Jsz(nil)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", s.Name(), err)
	}
	return info.Meta, nil
}

// peersOf a group as its leader sees it.
func peersOf(leader string, others []*server.PeerInfo) []peer {
	peers := []peer{{name: leader, current: true}}
	for _, p := range others {
		peers = append(peers, peer{name: p.Name, current: p.Current && !p.Offline && !p.Pending})
	}
	return peers
}

// lookAtStreams asks the leader of every stream; an error if one does not
// answer.
func (m *membership) lookAtStreams(ctx context.Context) ([]stream, error) {
	ctx, cancel := context.WithTimeout(ctx, streamsTimeout)
	defer cancel()
	names, err := m.streamNames(ctx)
	if err != nil {
		return nil, err
	}
	streams := make([]stream, 0, len(names))
	for _, name := range names {
		info, err := m.streamInfo(ctx, name)
		if err != nil {
			return nil, err
		}
		s := stream{name: name, replicas: info.Config.Replicas}
		if c := info.Cluster; c != nil && c.Leader != "" {
			s.peers, s.moving = peersOf(c.Leader, c.Replicas), c.Desired != nil
		}
		streams = append(streams, s)
	}
	return streams, nil
}

func (m *membership) streamNames(ctx context.Context) ([]string, error) {
	var names []string
	for {
		body, err := json.Marshal(server.JSApiStreamNamesRequest{ApiPagedRequest: server.ApiPagedRequest{Offset: len(names)}})
		if err != nil {
			return nil, fmt.Errorf("encode question: %w", err)
		}
		var r server.JSApiStreamNamesResponse
		if err := ask(ctx, m.conn, server.JSApiStreams, body, &r); err != nil {
			return nil, fmt.Errorf("list streams: %w", err)
		}
		if r.Error != nil {
			return nil, fmt.Errorf("list streams: %w", r.Error)
		}
		names = append(names, r.Streams...)
		if len(r.Streams) == 0 || len(names) >= r.Total {
			return names, nil
		}
	}
}

func (m *membership) streamInfo(ctx context.Context, name string) (*server.StreamInfo, error) {
	var r server.JSApiStreamInfoResponse
	if err := ask(ctx, m.conn, fmt.Sprintf(server.JSApiStreamInfoT, name), nil, &r); err != nil {
		return nil, fmt.Errorf("look at stream %s: %w", name, err)
	}
	if r.Error != nil {
		return nil, fmt.Errorf("look at stream %s: %w", name, r.Error)
	}
	if r.StreamInfo == nil {
		return nil, fmt.Errorf("look at stream %s: empty answer", name)
	}
	return r.StreamInfo, nil
}

// withoutLeader tells an operator of a lasting lack of a meta leader, and
// shortens the wait of a restarted founder for its first. Tried for {core,
// witness} only, and so done there only.
func (m *membership) withoutLeader(now time.Time) {
	if m.leaderless.IsZero() {
		m.leaderless = now
	}
	since := now.Sub(m.leaderless)
	if since >= leaderlessFor && !m.told {
		m.told = true
		m.b.log.Warn("no meta leader: a majority of the cores must be up and reach each other")
	}
	core, w := m.b.core, m.b.witnessServer()
	if !m.restart || m.b.cfg.StockRaft || w == nil || core.NumRoutes() == 0 ||
		since < nudgeAfter || now.Sub(m.nudged) < nudgeEvery {
		return
	}
	if meta, err := jsz(core); err != nil || meta == nil || meta.Size != 2 || meta.Leader != "" {
		return
	}
	s := core
	if m.nudges%2 == 1 {
		s = w
	}
	m.nudged, m.nudges = now, m.nudges+1
	if err := nudge(s); err != nil {
		m.b.log.Debug("nudge failed", "err", err)
	}
}

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

// raise asks for more replicas of a stream. Everything else of its
// configuration is sent back as it was read just now; the server has no
// compare-and-set for it. A write that is in flight at the switch may get no
// answer.
func (m *membership) raise(ctx context.Context, name string) error {
	info, err := m.streamInfo(ctx, name)
	if err != nil {
		return err
	}
	config := info.Config
	if config.Replicas >= replicasWanted {
		return nil
	}
	config.Replicas = replicasWanted
	placement := server.Placement{}
	if config.Placement != nil {
		placement = *config.Placement
	}
	if !slices.Contains(placement.Tags, tagCore) {
		placement.Tags = append(slices.Clone(placement.Tags), tagCore)
	}
	config.Placement = &placement
	body, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode stream %s: %w", name, err)
	}
	var r server.JSApiStreamUpdateResponse
	if err := ask(ctx, m.conn, fmt.Sprintf(server.JSApiStreamUpdateT, name), body, &r); err != nil {
		return fmt.Errorf("raise stream %s: %w", name, err)
	}
	if r.Error != nil {
		return fmt.Errorf("raise stream %s: %w", name, r.Error)
	}
	return nil
}

// retireWitness stops the witness, which is no member any more, and sees to it
// that it never starts again: a removed server that starts is a new member.
func (b *Broker) retireWitness() error {
	if err := writeDurably(filepath.Join(b.cfg.Dir, retiredFile), nil); err != nil {
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
