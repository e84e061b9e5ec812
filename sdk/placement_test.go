package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func TestMustLeaveNeedsARecordThatSaysSo(t *testing.T) {
	own := instance("", "echo-echo-1") // epoch 5
	base := kbroker.Placement{Tenant: own.Tenant, Instance: own.Instance, Host: own.Host, Epoch: own.Epoch}
	for _, c := range []struct {
		name   string
		change func(*kbroker.Placement)
		want   bool
	}{
		{"its own placement", func(*kbroker.Placement) {}, false},
		{"a tombstone of a newer epoch", func(p *kbroker.Placement) { p.Stop, p.Epoch = true, 6 }, true},
		{"a tombstone of its own epoch", func(p *kbroker.Placement) { p.Stop = true }, true},
		{"a newer epoch", func(p *kbroker.Placement) { p.Epoch = 6 }, true},
		{"an older epoch, read late", func(p *kbroker.Placement) { p.Epoch = 4 }, false},
		{"an older tombstone, read late", func(p *kbroker.Placement) { p.Stop, p.Epoch = true, 4 }, false},
		{"another instance's tombstone", func(p *kbroker.Placement) { p.Stop, p.Epoch, p.Instance = true, 6, "echo-echo-2" }, false},
		{"the same name of another tenant", func(p *kbroker.Placement) { p.Stop, p.Epoch, p.Tenant = true, 6, "other" }, false},
		{"the same name on another host", func(p *kbroker.Placement) { p.Stop, p.Epoch, p.Host = true, 6, "h2" }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := base
			c.change(&p)
			if got := mustLeave(own, p); got != c.want {
				t.Errorf("mustLeave(%+v) = %v, want %v", p, got, c.want)
			}
		})
	}
}

// placed is the record of an instance.
func placed(t *testing.T, i kbroker.InstanceFile, epoch uint64, stop bool) []byte {
	t.Helper()
	b, err := json.Marshal(kbroker.Placement{Tenant: i.Tenant, Instance: i.Instance, Host: i.Host, Epoch: epoch, Stop: stop})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnInstanceLeavesOnItsTombstone(t *testing.T) {
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	entered, hold := make(chan struct{}), make(chan struct{})
	Handle(a, "m", func(context.Context, struct{}) (string, error) { close(entered); <-hold; return "finished", nil })
	r := start(t, a)
	c := dial(t, s.URL)
	result := make(chan error, 1)
	go func() {
		_, err := Call[string](context.Background(), c.Service("echo"), "m", struct{}{})
		result <- err
	}()
	<-entered

	nc := s.Connect(t)
	changed := subjects.Changed(subjects.KeyPlacement("h1", kbroker.DefaultTenant, "echo-echo-1"))
	deleted := &nats.Msg{Subject: changed, Header: nats.Header{"KV-Operation": {"DEL"}}}
	for _, m := range []*nats.Msg{deleted, {Subject: changed, Data: []byte("{")}, {Subject: changed, Data: placed(t, a.identity, 5, false)}} {
		if err := nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := nc.Request(subjects.Ping(a.identity.Tenant, a.identity.Incarnation), nil, patience); err != nil {
		t.Fatalf("ping: %v", err)
	}
	if got := a.phase.Load(); got != phaseReady {
		t.Fatalf("phase %d after a deletion, garbage and its own record; want %d", got, phaseReady)
	}
	if err := nc.Publish(changed, placed(t, a.identity, 6, true)); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, patience, func() error {
		if a.phase.Load() != phaseDraining {
			return errors.New("not draining")
		}
		return nil
	})
	close(hold)
	if err := <-result; err != nil {
		t.Errorf("the request under way: %v, want its answer", err)
	}
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v, want nil", err)
	}
}

func TestAnInstanceAsksWhenItsConnectionIsBack(t *testing.T) {
	s := natstest.Start(t)
	p := newProxy(t, s)
	a := newApp(p.url, "echo-echo-1")
	var record atomic.Pointer[[]byte] // stays once it is written: the first question may be answered late
	core := s.Connect(t)
	_, err := core.QueueSubscribe(subjects.Core(subjects.VerbPlacement, kbroker.DefaultTenant), subjects.QueueCore, func(m *nats.Msg) {
		var q kbroker.PlacementRequest
		if err := json.Unmarshal(m.Data, &q); err != nil || q.Host != "h1" || q.Instance != "echo-echo-1" {
			t.Errorf("asked %s, want host and instance", m.Data)
		}
		if b := record.Load(); b != nil {
			_ = m.Respond(*b)
			return
		}
		_ = m.RespondMsg(errorReply(m.Reply, nil, kbroker.Errorf(kbroker.NotFound, "no placement"))) // no reason to leave
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := core.Flush(); err != nil {
		t.Fatal(err)
	}
	r := start(t, a)
	p.cut()
	written := placed(t, a.identity, 6, true) // and published to nobody
	record.Store(&written)
	p.lead(s)
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v, want nil", err)
	}
}

func TestAnInstanceAsksEveryMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		core := b.connect(connEvents{connected: func() {}, closed: func() {}})
		i := instance("", "echo-echo-1")
		answers := [][]byte{nil, placed(t, i, 5, false), placed(t, i, 6, false)}
		asked := 0
		if _, err := core.subscribe(subjects.Core(subjects.VerbPlacement, i.Tenant), "", func(m *nats.Msg) {
			data := answers[min(asked, len(answers)-1)]
			asked++
			if data == nil {
				_ = core.publish(errorReply(m.Reply, nil, kbroker.Errorf(kbroker.NotFound, "no placement")))
				return
			}
			_ = core.publish(&nats.Msg{Subject: m.Reply, Data: data})
		}); err != nil {
			t.Fatal(err)
		}
		a := New(on(b, &i))
		began := time.Now()
		if err := a.Run(t.Context()); err != nil {
			t.Errorf("Run: %v, want nil", err)
		}
		least, most := 2*(placementEvery-placementJitter), 2*(placementEvery+placementJitter)
		if took := time.Since(began); asked != 3 || took < least || took > most {
			t.Errorf("left after %v and %d questions, want 3 questions in %v to %v", took, asked, least, most)
		}
	})
}
