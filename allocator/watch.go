package allocator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// receive hands the messages of sub to handle, one at a time, until ctx ends or
// the connection is closed.
func receive(ctx context.Context, sub *nats.Subscription, handle func(*nats.Msg)) {
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case err == nil:
			handle(m)
		case ctx.Err() != nil, errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrBadSubscription):
			return
		}
		// Anything else (messages lost by a slow consumer) is passing: a slow
		// round reads what an announcement would have told.
	}
}

// watchConnection looks at everything again after a reconnect, since what was
// announced meanwhile is lost, and ends Run when there will be no other.
func (a *Allocator) watchConnection(ctx context.Context, status <-chan nats.Status, leave context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case s, open := <-status:
			if !open {
				return
			}
			if s == nats.CLOSED {
				leave(errClosed)
				return
			}
			a.lookApp.ring()
			a.lookPlace.ring()
			a.demandNow.ring()
			a.shards.lookLeases.ring()
			a.shards.anew.Store(true)
			a.shards.lookShards.ring()
			a.shards.lookPlaced.ring()
		}
	}
}

func (a *Allocator) onPing(m *nats.Msg) {
	if !subjects.IsPong(m.Reply, a.own.Tenant, a.own.Host) && !subjects.IsInbox(m.Reply) {
		return
	}
	b, err := json.Marshal(kbroker.PingReply{Incarnation: a.own.Incarnation, Ready: true, Allocator: true})
	if err == nil {
		err = m.Respond(b)
	}
	if err != nil {
		a.log.Debug("ping not answered", "err", err)
	}
}

// onApp notes which version is wanted now and has it read.
func (a *Allocator) onApp(m *nats.Msg) {
	var r kbroker.AppRecord
	if err := json.Unmarshal(m.Data, &r); err == nil && r.Tenant == a.own.Tenant && r.App == a.own.App {
		a.announced.Store(int64(r.Version))
	}
	a.lookApp.ring()
}

// readApp reads the app's wanted version from a core. The core's replica may be
// a moment behind the announcement; then the round counts as failed and is
// repeated soon, but what it read is used: an announcement can be missed, so
// it is no floor.
func (a *Allocator) readApp(ctx context.Context) error {
	var v kbroker.AppVersion
	request := kbroker.ListRequest{Tenant: a.own.Tenant, App: a.own.App}
	if err := ask(ctx, a.cfg.Conn, a.pace.attempt, subjects.Core(subjects.VerbVersion, a.own.Tenant), request, &v); err != nil {
		return err
	}
	if v.App.Name != a.own.App || v.Version < 1 {
		return kbroker.Errorf(kbroker.Internal, "asked for app %q, got version %d of %q", a.own.App, v.Version, v.App.Name)
	}
	if a.setView(View{App: v.App, Version: v.Version}) {
		a.demandNow.ring()
		a.lookInstances.ring()     // a service may be scaled now
		a.shards.lookLeases.ring() // it may have objects now
		a.shards.lookShards.ring()
		a.shards.lookPlaced.ring()
	}
	if announced := a.announced.Load(); int64(v.Version) < announced {
		return kbroker.Errorf(kbroker.Unavailable, "version %d read, but %d is announced", v.Version, announced)
	}
	return nil
}

// onPlacement leaves if the announced record supersedes this process. Epochs
// only grow, so a record that does so once does so for ever; it is not
// necessary to read it again. A deletion announces nothing to act on.
func (a *Allocator) onPlacement(m *nats.Msg, leave context.CancelCauseFunc) {
	var p kbroker.Placement
	if err := json.Unmarshal(m.Data, &p); err == nil && a.superseded(p) {
		leave(errSuperseded)
		return
	}
	a.lookPlace.ring()
}

// readPlacement asks a core for this instance's placement. A core that does not
// have it may be behind: that says nothing.
func (a *Allocator) readPlacement(ctx context.Context, leave context.CancelCauseFunc) error {
	var p kbroker.Placement
	request := kbroker.PlacementRequest{Host: a.own.Host, Instance: a.own.Instance}
	err := ask(ctx, a.cfg.Conn, a.pace.attempt, subjects.Core(subjects.VerbPlacement, a.own.Tenant), request, &p)
	switch {
	case errors.Is(err, kbroker.NotFound):
		return nil
	case err != nil:
		return fmt.Errorf("read placement: %w", err)
	}
	if a.superseded(p) {
		leave(errSuperseded)
	}
	return nil
}

// superseded reports whether p tells this process to leave, and logs why.
func (a *Allocator) superseded(p kbroker.Placement) bool {
	if p.Tenant != a.own.Tenant || p.Instance != a.own.Instance || p.Host != a.own.Host {
		return false
	}
	if p.Epoch > a.own.Epoch || (p.Stop && p.Epoch == a.own.Epoch) {
		a.log.Info("placement is superseded, leaving", "epoch", p.Epoch)
		return true
	}
	return false
}
