package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// asks asks the owner "a" as a core does.
func (c *core) asks(r kbroker.KeeperRequest) (reply kbroker.KeeperReply, err error) {
	c.t.Helper()
	body, err := json.Marshal(r)
	if err != nil {
		c.t.Fatal(err)
	}
	on := subjects.Kept(kbroker.DefaultTenant, incarnation("a"), "c1", nats.NewInbox()[7:])
	sub, err := c.nc.SubscribeSync(on)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := c.nc.PublishRequest(subjects.Keeper(kbroker.DefaultTenant, incarnation("a")), on, body); err != nil {
		c.t.Fatal(err)
	}
	m, err := sub.NextMsg(10 * time.Second)
	if err != nil {
		c.t.Fatalf("%+v is not answered: %v", r, err)
	}
	if m.Header.Get(subjects.HeaderCode) != "" {
		e := &kbroker.Error{}
		if err := json.Unmarshal(m.Data, e); err != nil {
			c.t.Fatal(err)
		}
		return reply, e
	}
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		c.t.Fatalf("%+v is answered %q: %v", r, m.Data, err)
	}
	return reply, nil
}

func of(o kbroker.Object, verb string) kbroker.KeeperRequest {
	return kbroker.KeeperRequest{Verb: verb, ID: "1", Kind: o.Kind, Object: o.ID}
}

func TestAnOwnerSaysWhatItKnowsOfObjects(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", nil))
	c := dial(t, s.URL)
	for range 3 {
		c.deposit(t, "1", 5)
	}
	if _, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "deposit", -1); err == nil {
		t.Fatal("a deposit of -1 is taken")
	}
	reply, err := core.asks(of(acc("1"), ""))
	if err != nil {
		t.Fatal(err)
	}
	if o := reply.Object; o == nil || !o.Serves || !o.Active || o.Turns != 4 || o.TurnsPerS <= 0 || o.Mailbox != 0 || o.Phase != "idle" ||
		o.LastError != "no_debts: -1 cents" || o.Quarantine != "" || o.Durable != kbroker.ObjectEach {
		t.Errorf("the owner says %+v, want it active and idle, with 4 turns and the last error", o)
	}
	reply, err = core.asks(kbroker.KeeperRequest{})
	if k := reply.Keeper; err != nil || k == nil || k.Shards != 1 || k.Active["account"] != 1 || len(k.Hot) != 1 || k.Hot[0].Object != "bank/account:1" {
		t.Errorf("the owner says %+v (%v) of itself, want one shard, one active object, which is the hot one", k, err)
	}
	if _, err := core.asks(kbroker.KeeperRequest{Kind: "room", Object: "1"}); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("of a kind that it does not have: %v, want NotFound", err)
	}
	if reply, err = core.asks(of(acc("1"), kbroker.ObjectDeactivate)); err != nil || reply.Object.Active || !strings.Contains(reply.Message, "not in memory any more") {
		t.Errorf("deactivate: %+v %v, want it out of memory", reply, err)
	}
	if got := c.balance(t, "1"); got != 15 {
		t.Errorf("after it was put away it has %d cents, want 15", got)
	}
	other := acc("2")
	for n := 3; other.Shard() == acc("1").Shard(); n++ {
		other = acc(fmt.Sprint(n))
	}
	if _, err := core.asks(of(other, kbroker.ObjectRemove)); !errors.Is(err, kbroker.Moved) {
		t.Errorf("rm of an object that it does not own: %v, want Moved", err)
	}
}

// TestAnOwnerIsAskedOfPlacedObjects: of a kind that is placed an object is looked for in the
// shard of its own.
func TestAnOwnerIsAskedOfPlacedObjects(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	i := instance(s.URL, "a")
	i.App, i.Service, i.Objects, i.ObjectStreams, i.Placed = "bank", "ledger", []kbroker.KindName{"account"}, testStreams, []kbroker.KindName{"account"}
	start(t, bank(s.URL, "a", nil, Option(as(s.URL, &i))))
	o := acc("1")
	o.Placed = true
	if _, err := core.asks(of(o, kbroker.ObjectDeactivate)); !errors.Is(err, kbroker.Moved) {
		t.Errorf("of one that is not there: %v, want Moved", err)
	}
	value, err := json.Marshal(ownership.Assignment{Owner: incarnation("a"), Epoch: 7, Placed: &ownership.Placed{Kind: "account", ID: "1"}})
	if err != nil {
		t.Fatal(err)
	}
	told, err := kbroker.OwnReadReply{Records: []kbroker.Stored{{Key: subjects.KeyAssign(o.Shard()), Revision: 7, Value: value}}}.MarshalBinary()
	if err == nil {
		err = core.nc.Publish(subjects.PlacedOn(kbroker.DefaultTenant, "bank", incarnation("a")), told)
	}
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, patience, func() error {
		reply, err := core.asks(of(o, kbroker.ObjectDeactivate))
		if err == nil && (!reply.Object.Serves || reply.Message != "account:1 was not in memory") {
			err = fmt.Errorf("it says %+v", reply)
		}
		return err
	})
}

// TestAnInstanceCountsForItsAgent: what objects do is in the answer to the agent's ping.
func TestAnInstanceCountsForItsAgent(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	r := start(t, bank(s.URL, "a", nil))
	c := dial(t, s.URL)
	for range 3 {
		c.deposit(t, "1", 5)
	}
	c.balance(t, "1")
	nc := s.Connect(t)
	figures := func(holds func(kbroker.ObjectFigures) bool) (f kbroker.ObjectFigures) {
		t.Helper()
		wait.Until(t, patience, func() error {
			m, err := nc.Request(subjects.Ping(r.identity.Tenant, r.identity.Incarnation), nil, patience)
			if err != nil {
				return err
			}
			p := kbroker.PingReply{Objects: &f}
			if err := json.Unmarshal(m.Data, &p); err != nil || p.Objects == nil || !holds(f) {
				return fmt.Errorf("ping says %s (%v)", m.Data, err)
			}
			return nil
		})
		return f
	}
	f := figures(func(f kbroker.ObjectFigures) bool { return f.Turns == 3 && f.Reads == 1 })
	if f.Commits != 4 || f.CommitsRefused != 0 || f.Refused != 0 || f.Activations != 1 || f.Active != 1 || f.Shards != 1 || f.ShardsTaken != 1 ||
		f.TakingS <= 0 || f.TakingS > 1 || f.ShardsReleased != 0 || f.ReleasingS != 0 || f.Outbox != 0 {
		t.Errorf("after three turns and a read the instance has counted %+v", f)
	}
	start(t, bank(s.URL, "b", nil))
	core.move(incarnation("b"), acc("1"))
	f = figures(func(f kbroker.ObjectFigures) bool { return f.ShardsReleased == 1 })
	if f.ReleasingS <= 0 || f.ReleasingS > 5 || f.Shards != 0 || f.Active != 0 {
		t.Errorf("after it was moved away the instance has counted %+v", f)
	}
}

func TestAnOwnerDeletesForAnOperator(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", nil))
	c := dial(t, s.URL)
	wait.Until(t, patience, func() error { // until it owns it
		if _, err := core.asks(of(acc("1"), kbroker.ObjectRemove)); !errors.Is(err, kbroker.NotFound) {
			return fmt.Errorf("rm of what is not stored: %w, want NotFound", err)
		}
		return nil
	})
	c.deposit(t, "1", 5)
	if reply, err := core.asks(of(acc("1"), kbroker.ObjectRemove)); err != nil || !strings.Contains(reply.Message, "deleted") {
		t.Fatalf("rm: %+v %v", reply, err)
	}
	if core.record(acc("1")).Exists {
		t.Error("it is still stored")
	}
	if got := c.deposit(t, "1", 7); got != 7 {
		t.Errorf("the first deposit after it was deleted leaves %d, want 7", got)
	}
	// The same request, late: what it would delete is another one.
	if _, err := core.asks(of(acc("1"), kbroker.ObjectRemove)); err != nil {
		t.Errorf("the same rm again: %v, want the same answer", err)
	}
	if got := c.balance(t, "1"); got != 7 {
		t.Errorf("after the same rm again it has %d cents, want 7", got)
	}
}

func TestAnOperatorEndsAQuarantine(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	start(t, bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "panic", func(*account, context.Context, struct{}) (int, error) { panic("on purpose") })
	}))
	c := dial(t, s.URL)
	wait.Until(t, patience, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Call[int](ctx, c.Object("bank/account:1"), "panic", nil); !errors.Is(err, kbroker.Refused) {
			return fmt.Errorf("the object is not in quarantine: %w", err)
		}
		return nil
	})
	reply, err := core.asks(of(acc("1"), ""))
	if err != nil || !strings.Contains(reply.Object.Quarantine, "panicked 6 times") {
		t.Errorf("the owner says %+v (%v), want the quarantine and why", reply.Object, err)
	}
	reply, err = core.asks(kbroker.KeeperRequest{})
	if err != nil || len(reply.Keeper.Quarantined) != 1 {
		t.Errorf("the owner says %+v (%v), want one object in quarantine", reply.Keeper, err)
	}
	if reply, err = core.asks(of(acc("1"), kbroker.ObjectRelease)); err != nil || reply.Object.Quarantine != "" {
		t.Fatalf("release: %+v %v", reply, err)
	}
	if got := c.deposit(t, "1", 5); got != 5 {
		t.Errorf("a deposit after the quarantine leaves %d, want 5", got)
	}
}
