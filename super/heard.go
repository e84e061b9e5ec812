package super

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// heard is whom this core has heard, and when, on its own boottime clock. It
// also knows who leads: the leader names itself in its question.
type heard struct {
	host    kbroker.HostID
	clock   state.Clock
	suspect time.Duration

	mu     sync.Mutex
	since  time.Duration // when this process began to listen, or went on after a pause
	deafTo time.Duration // until when what it has not heard since a pause says nothing
	beats  map[kbroker.HostID]beat
	leader leaderSeen
}

type beat struct {
	at  time.Duration
	msg kbroker.Heartbeat
}

type leaderSeen struct {
	at time.Duration
	heardAsk
}

// heardAsk is the leader's question.
type heardAsk struct {
	Leader kbroker.HostID `json:"leader"`
	Epoch  uint64         `json:"epoch"`
	Alarms []string       `json:"alarms,omitempty"`
}

// newHeard begins to listen; suspect is for how long a host may be silent.
func newHeard(host kbroker.HostID, clock state.Clock, suspect time.Duration) *heard {
	return &heard{host: host, clock: clock, suspect: suspect, since: clock(), beats: map[kbroker.HostID]beat{}}
}

func (h *heard) beat(m kbroker.Heartbeat) {
	now := h.clock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.Host == h.host && h.missed(now) {
		h.since, h.deafTo = now, now+h.suspect
		clear(h.beats)
	}
	h.beats[m.Host] = beat{now, m}
}

// missed: this core has not even heard itself for as long as makes a host suspect.
// It was paused, or its connection was gone, and the silence of others says
// nothing: where one core judges alone nobody else would know better. Called
// with mu held.
func (h *heard) missed(now time.Duration) bool {
	return now-max(h.since, h.beats[h.host].at) >= h.suspect
}

// answer is this core's word on every host that it ever heard.
func (h *heard) answer(ask heardAsk, m Members) kbroker.HeardReply {
	now := h.clock()
	h.mu.Lock()
	defer h.mu.Unlock()
	r := kbroker.HeardReply{
		Core: h.host, Looking: now - h.since, Current: m.Current, Witness: m.Witness, Deaf: h.missed(now) || now < h.deafTo,
		Age: map[kbroker.HostID]time.Duration{}, Beat: map[kbroker.HostID]kbroker.Heartbeat{},
	}
	if ask.Epoch >= h.leader.Epoch {
		h.leader = leaderSeen{now, ask}
	}
	for host, b := range h.beats {
		r.Age[host], r.Beat[host] = now-b.at, b.msg
	}
	return r
}

// deaf reports whether this core was paused a moment ago: what it hears may be old.
func (h *heard) deaf() bool {
	now := h.clock()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.missed(now) || now < h.deafTo
}

// age is how long ago this core heard a host; never: since it listens.
func (h *heard) age(host kbroker.HostID) (age time.Duration, last kbroker.Heartbeat, ever bool) {
	now := h.clock()
	h.mu.Lock()
	defer h.mu.Unlock()
	b, ok := h.beats[host]
	if !ok {
		return now - h.since, kbroker.Heartbeat{}, false
	}
	return now - b.at, b.msg, true
}

// leads is who asked as the leader within the bound, if anybody.
func (h *heard) leads(within time.Duration) (heardAsk, bool) {
	now := h.clock()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.leader.heardAsk, h.leader.Leader != "" && now-h.leader.at <= within
}

// removed reports whether a host that was admitted under the given generation
// has been removed, as far as this core knows. That it was is true for ever.
func (s *Super) removed(host kbroker.HostID, generation int) bool {
	store := s.store.Load()
	return store != nil && store.Host(host).Removed(generation)
}

// hear starts to listen to heartbeats and to the leader's question; stop ends
// it.
func (s *Super) hear() (stop func(), err error) {
	onBeat := func(m *nats.Msg) {
		var b kbroker.Heartbeat
		host, ok := subjects.HostOf(m.Subject)
		if err := json.Unmarshal(m.Data, &b); err != nil || !ok || b.Host != host {
			s.log.Warn("unreadable heartbeat", "subject", m.Subject, "err", err)
			return
		}
		if !s.removed(host, b.Generation) {
			s.heard.beat(b)
		}
		if m.Reply == "" {
			return
		}
		reply := kbroker.HeartbeatReply{Core: s.cfg.Host}
		if store := s.store.Load(); store != nil {
			reply.HeadRevision = store.HeadRevision(host)
		}
		reply.Removed = s.removed(host, b.Generation)
		reply.Cores = s.Cores()
		respond(s.log, m, reply)
	}
	onAsk := func(m *nats.Msg) {
		var ask heardAsk
		if err := json.Unmarshal(m.Data, &ask); err != nil {
			s.log.Warn("unreadable question", "subject", m.Subject, "err", err)
			return
		}
		respond(s.log, m, s.heard.answer(ask, s.cfg.Members()))
	}
	var subs []*nats.Subscription
	stop = func() {
		for _, sub := range subs {
			_ = sub.Unsubscribe() // the connection may be gone already
		}
	}
	for subject, handle := range map[string]nats.MsgHandler{subjects.AllHeartbeats: onBeat, subjects.AllFigures: s.figures.take, subjects.Heard: onAsk} {
		sub, err := s.cfg.Conn.Subscribe(subject, handle)
		if err != nil {
			stop()
			return nil, fmt.Errorf("subscribe %s: %w", subject, err)
		}
		subs = append(subs, sub)
	}
	return stop, nil
}
