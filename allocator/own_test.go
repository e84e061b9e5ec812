package allocator

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestPagesAreOfTheTimeOfTheFirst: what a later page knows of may be missing in it.
func TestPagesAreOfTheTimeOfTheFirst(t *testing.T) {
	server := natstest.Start(t)
	a := &Allocator{own: instance("shop-allocator-1"), pace: normalPace}
	a.cfg.Conn = server.Connect(t)
	record := func(key string) []kbroker.Stored {
		return []kbroker.Stored{{Key: key, Revision: 1, Value: []byte("{}")}}
	}
	natstest.Listen(t, server.Connect(t), subjects.Own(tenant, shop, subjects.VerbOwnRead, a.own.Incarnation), func(m *nats.Msg) {
		var r kbroker.OwnReadRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Error(err)
		}
		reply := kbroker.OwnReadReply{Same: true}
		switch {
		case r.After != "":
			reply = kbroker.OwnReadReply{Records: record("assign.2"), At: 20}
		case r.Since < 10:
			reply = kbroker.OwnReadReply{Records: record("assign.1"), More: true, At: 10}
		}
		b, err := reply.MarshalBinary()
		if err == nil {
			err = m.Respond(b)
		}
		if err != nil {
			t.Error(err)
		}
	})
	for _, step := range []struct {
		since   kbroker.Revision
		records int
	}{{0, 2}, {9, 2}, {10, 0}} {
		all, at, err := a.readSince(t.Context(), subjects.MatchAssigns, step.since)
		if err != nil || len(all) != step.records || at != 10 {
			t.Errorf("since %d: %d records until %d (%v), want %d until 10", step.since, len(all), at, err, step.records)
		}
	}
}

// TestWhoOwnsWhatIsReadWhenItWasWritten: all of it behind a new connection, as that may be to
// another store.
func TestWhoOwnsWhatIsReadWhenItWasWritten(t *testing.T) {
	w := newObjects(t)
	looks := func() (since []kbroker.Revision) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, r := range w.reads {
			if r.Match == subjects.MatchAssigns && r.After == "" {
				since = append(since, r.Since)
			}
		}
		return since
	}
	w.fake(webA, "web")
	p := objectPace
	p.lookShards = objectPace.lookLeases
	pr := w.start("shop-allocator-1", p)
	w.shared(webA)
	var before int
	wait.Until(t, within, func() error {
		since := looks()
		if before = len(since); before == 0 || since[before-1] == 0 {
			return fmt.Errorf("looks since %v, want the last since a revision", since)
		}
		return nil
	})
	if err := pr.conn.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, within, func() error {
		if since := looks()[before:]; !slices.Contains(since, 0) {
			return fmt.Errorf("behind a new connection looks since %v, want one at all", since)
		}
		return nil
	})
}
