package sdk

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// placementEvery is how often an instance asks for its placement, give or
	// take placementJitter: changes are published, but a message can be lost.
	placementEvery  = time.Minute
	placementJitter = 12 * time.Second
	// placementAsk bounds one question.
	placementAsk = 2 * time.Second
	// afterReconnect spreads the questions of all instances that lost the same
	// core.
	afterReconnect = 500 * time.Millisecond
)

// watch follows the instance's placement, agent or no agent. Only a record
// ends the instance, never the absence of one: a view can be incomplete, and a
// deleted placement was a tombstone first.
type watch struct {
	own     kbroker.InstanceFile
	t       transport
	log     *slog.Logger
	back    *broadcast
	changed chan kbroker.Placement // a record that ends the instance, at most one
}

func newWatch(a *App, t transport) (*watch, error) {
	w := &watch{
		own: a.identity, t: t, log: a.log, back: &a.client.back,
		changed: make(chan kbroker.Placement, 1),
	}
	key := subjects.KeyPlacement(w.own.Host, w.own.Tenant, w.own.Instance)
	_, err := t.subscribe(subjects.Changed(key), "", func(m *nats.Msg) { w.receive(m.Data) })
	return w, err
}

// receive hands a record to run, if it matters. What is no record (the marker
// of a deletion) does not.
func (w *watch) receive(data []byte) {
	var p kbroker.Placement
	if err := json.Unmarshal(data, &p); err != nil || !mustLeave(w.own, p) {
		return
	}
	select {
	case w.changed <- p:
	default: // the one that waits says the same
	}
}

// mustLeave says whether a placement record ends an instance. Pure.
func mustLeave(own kbroker.InstanceFile, p kbroker.Placement) bool {
	if p.Instance != own.Instance || p.Tenant != own.Tenant || p.Host != own.Host {
		return false
	}
	return p.Epoch > own.Epoch || (p.Stop && p.Epoch >= own.Epoch)
}

// run calls leave once the placement says so, or returns when ctx ends.
func (w *watch) run(ctx context.Context, leave func()) {
	next := time.NewTimer(0)
	defer next.Stop()
	back := w.back.wait()
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-w.changed:
			w.log.Info("placement ended", "instance", p.Instance, "epoch", p.Epoch, "stop", p.Stop)
			leave()
			return
		case <-back:
			back = w.back.wait()
			next.Reset(rand.N(afterReconnect))
		case <-next.C:
			next.Reset(placementEvery - placementJitter + rand.N(2*placementJitter))
			w.question()
		}
	}
}

// question asks a core for the record. No answer, or one that there is none,
// says nothing.
func (w *watch) question() {
	body, err := json.Marshal(kbroker.PlacementRequest{Host: w.own.Host, Instance: w.own.Instance})
	if err != nil {
		return
	}
	m := &nats.Msg{Subject: subjects.Core(subjects.VerbPlacement, w.own.Tenant), Data: body}
	slot, err := w.t.request(m, func(_ uint64, m *nats.Msg) {
		if e, nobody := answerOf(m); e == nil && !nobody {
			w.receive(m.Data)
		}
	})
	if err == nil {
		time.AfterFunc(placementAsk, func() { w.t.forget(slot) })
	}
}
