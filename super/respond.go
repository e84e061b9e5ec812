package super

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/subjects"
)

// gate runs functions beside each other until it is closed. A subscription may
// still deliver a message while it ends, which a WaitGroup alone does not bear.
type gate struct {
	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup
}

func (g *gate) run(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.work.Go(f)
	}
}

// close waits for what runs; nothing runs any more after it.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.work.Wait()
}

func respond(log *slog.Logger, m *nats.Msg, reply any) {
	body, err := json.Marshal(reply)
	if err != nil {
		respondError(log, m, fmt.Errorf("marshal reply: %w", err))
		return
	}
	respondMsg(log, m, &nats.Msg{Data: body})
}

func respondError(log *slog.Logger, m *nats.Msg, err error) {
	e := errorOf(err)
	body, mErr := json.Marshal(e)
	if mErr != nil {
		log.Error("cannot marshal an error", "err", mErr)
		return
	}
	respondMsg(log, m, &nats.Msg{Data: body, Header: nats.Header{subjects.HeaderCode: {string(e.Code)}}})
}

func respondMsg(log *slog.Logger, m, reply *nats.Msg) {
	if !subjects.IsInbox(m.Reply) {
		return
	}
	if err := m.RespondMsg(reply); err != nil {
		log.Warn("cannot answer", "subject", m.Subject, "err", err)
	}
}
