package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// behindFor is how long the cores may know of a newer head before the agent
// concludes that it has missed the change message.
const behindFor = time.Second

// heart says each second that this host is there, and hears what the cores
// answer. It depends on nothing else in the agent.
type heart struct {
	conn  *nats.Conn
	every time.Duration
	beat  kbroker.Heartbeat
	// behind is called when the cores know a newer head for behindFor.
	behind func()

	mu    sync.Mutex
	held  uint64             // revision of the view that is held
	since time.Duration      // boottime since a core knows more; 0: none does
	cores []kbroker.CoreAddr // as last heard
	// answered is when a core last did, at first when this began; boottime.
	answered      time.Duration
	sent, skipped uint64 // beats; skipped: there was no connection
}

// run beats until ctx ends; the first beat leaves at once. removed is called when
// a core knows that this host was removed.
func (h *heart) run(ctx context.Context, removed func()) error {
	body, err := json.Marshal(h.beat)
	if err != nil {
		return fmt.Errorf("encode heartbeat: %w", err)
	}
	inbox := h.conn.NewRespInbox()
	sub, err := h.conn.Subscribe(inbox, func(m *nats.Msg) {
		if h.hear(m) {
			removed() // no core can know less of it later
		}
	})
	if err != nil {
		return fmt.Errorf("subscribe to heartbeat replies: %w", err)
	}
	defer sub.Unsubscribe()
	tick := time.NewTicker(h.every)
	defer tick.Stop()
	for {
		// A beat that waits in a buffer for the connection would be a lie by
		// the time it arrives; one that cannot be sent is followed by another.
		connected := h.conn.IsConnected()
		if connected {
			_ = h.conn.PublishRequest(subjects.Heartbeat(h.beat.Host), inbox, body)
		}
		h.count(connected)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// hear takes one core's answer; true if it says that this host was removed.
func (h *heart) hear(m *nats.Msg) (removed bool) {
	var r kbroker.HeartbeatReply
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return false // a core of another version: the next one may be understood
	}
	now := state.Boottime()
	h.mu.Lock()
	h.answered = now
	if r.Removed {
		h.mu.Unlock()
		return true
	}
	if len(r.Cores) > 0 {
		h.cores = r.Cores
	}
	late := false
	if r.HeadRevision > h.held {
		if h.since == 0 {
			h.since = now
		}
		late = now-h.since >= behindFor
	}
	h.mu.Unlock()
	if late {
		h.behind()
	}
	return false
}

// count notes a beat.
func (h *heart) count(sent bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if sent {
		h.sent++
	} else {
		h.skipped++
	}
}

// counted is what count has noted, and how long ago a core answered.
func (h *heart) counted() (sent, skipped uint64, silent time.Duration) {
	now := state.Boottime()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent, h.skipped, max(0, now-h.answered)
}

// holds tells which revision the agent has.
func (h *heart) holds(revision uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held, h.since = revision, 0
}

// known returns the cores that the last answer named; nil before the first.
func (h *heart) known() []kbroker.CoreAddr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.cores)
}

// servers returns the URLs that instances connect to: own first, then those
// that the cores told.
func (h *heart) servers(own []string) []string {
	all := slices.Clone(own)
	for _, c := range h.known() {
		all = append(all, c.Client)
	}
	var urls []string
	for _, s := range all {
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		if !slices.Contains(urls, s) {
			urls = append(urls, s)
		}
	}
	return urls
}

func newHeart(cfg Config, behind func()) *heart {
	return &heart{
		conn: cfg.Conn, every: cfg.Times.Heartbeat, behind: behind, answered: state.Boottime(),
		beat: kbroker.Heartbeat{
			Host: cfg.Host, Role: cfg.Role, Process: cfg.Dir.Process, PID: os.Getpid(), Generation: cfg.Generation,
			Labels: cfg.Labels, Capacity: cfg.Capacity, Client: cfg.Client, Route: cfg.Route, Address: cfg.Address, Version: cfg.Version, CredentialLife: cfg.CredentialLife,
		},
	}
}
