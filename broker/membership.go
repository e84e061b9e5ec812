package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
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

	// recordWithin is how long a core that the meta group has put out waits for
	// the word that the operator has removed it.
	recordWithin = 10 * time.Second

	// leaderlessFor this long is told to the operator.
	leaderlessFor = 10 * time.Second

	// A restarted founder without a meta leader is nudged after nudgeAfter,
	// then again, core and witness in turn: the other's log may be longer.
	nudgeAfter = 50 * time.Millisecond
	nudgeEvery = time.Second
)

// membership observes, makes one step, and observes again.
type membership struct {
	b       *Broker
	system  *nats.Conn // in SYS
	conn    *nats.Conn // in the account of everybody else
	restart bool       // this core had joined before this start

	streams   []stream
	listed    bool
	streamsAt time.Time

	leaderless time.Time // since when; zero: there is a leader
	told       bool
	putOutAt   time.Time // when this core's server was first seen put out
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
	o := m.observe(ctx)
	switch {
	case m.expelled(ctx, o):
		return 0, b.leaveForGood()
	case b.core.Running() && b.putOut():
		return m.awaitRecord(time.Now())
	case !b.core.Running() || !b.core.JetStreamEnabled():
		return 0, fmt.Errorf("nats server %s: JetStream is off: its disk failed or filled up", b.cfg.Host)
	}
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
	if a.deed > retireWitness && !fresh {
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
	case o.witness && len(o.cores()) > 1, !o.whole(), o.leads() && !o.calm():
		return changeEvery
	default:
		return calmEvery
	}
}

// observe looks at the members. What was seen of the streams last is kept.
func (m *membership) observe(ctx context.Context) observation {
	o := observation{
		host: m.b.cfg.Host, founder: m.b.id.Founder, witness: m.b.witnessServer() != nil,
		streams: m.streams, listed: m.listed,
	}
	if m.b.cfg.Removed != nil {
		o.removed = m.b.cfg.Removed()
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
	switch busy := o.listed && !o.calm(); {
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
	m.streamsAt, m.listed = time.Now(), err == nil
	if err != nil && ctx.Err() == nil {
		m.b.log.Debug("streams are not known", "err", err)
	}
	o.streams, o.listed = m.streams, m.listed
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
	meta, err := m.askMetaLeader(ctx, server.EventFilterOptions{Name: own.Leader, ExactMatch: true})
	if err != nil {
		return nil, fmt.Errorf("ask meta leader %s: %w", own.Leader, err)
	}
	if meta != nil && meta.Leader != own.Leader {
		return nil, nil
	}
	return meta, nil
}

// askMetaLeader asks the servers that the filter matches for what the one of
// them that leads the meta group says of it; nil if it has no name for itself.
func (m *membership) askMetaLeader(ctx context.Context, filter server.EventFilterOptions) (*server.MetaClusterInfo, error) {
	body, err := json.Marshal(server.JszEventOptions{JSzOptions: server.JSzOptions{LeaderOnly: true}, EventFilterOptions: filter})
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
		return nil, err
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	if reply.Data == nil || reply.Data.Meta == nil || reply.Data.Meta.Leader == "" {
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
		peers = append(peers, peer{name: p.Name, current: p.Current && !p.Offline && !p.Pending, lag: p.Lag})
	}
	return peers
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
