package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
)

// purse is what an account has become in schema 2: cents by currency.
type purse struct {
	Of map[string]int64 `json:"of"`
}

// purses is an instance of a version of the bank with schema 2. writes is the write schema
// that it is told.
func purses(url, name string, writes int, down bool) *App {
	i := instance(url, name)
	i.App, i.Service, i.Objects, i.ObjectStreams = "bank", "ledger", []kbroker.KindName{"account"}, testStreams
	i.Schemas = map[kbroker.KindName]kbroker.Schema{"account": {Number: 2, Lowest: 2}}
	i.WriteSchemas = map[kbroker.KindName]int{"account": writes}
	opts := []SchemaOption{Upgrade(func(old []byte, from int) ([]byte, error) {
		var a account
		if err := json.Unmarshal(old, &a); err != nil || from != 1 {
			return nil, fmt.Errorf("from %d: %w", from, err)
		}
		return json.Marshal(purse{map[string]int64{"EUR": a.Cents}})
	})}
	if down {
		i.Schemas["account"] = kbroker.Schema{Number: 2, Lowest: 1}
		opts = append(opts, Downgrade(func(state []byte, to int) ([]byte, error) {
			var p purse
			if err := json.Unmarshal(state, &p); err != nil || to != 1 {
				return nil, fmt.Errorf("to %d: %w", to, err)
			}
			if len(p.Of) > 1 {
				return nil, fmt.Errorf("%d currencies", len(p.Of))
			}
			return json.Marshal(account{Cents: p.Of["EUR"]})
		}))
	}
	a := New(as(url, &i), Grace(time.Second))
	a.leases = func(*kbroker.InstanceFile) ownership.Times { return quick }
	k := Objects[purse](a, "account", Schema(2, opts...))
	Method(k, "deposit", func(p *purse, _ context.Context, cents int64) (int64, error) {
		if p.Of == nil {
			p.Of = map[string]int64{}
		}
		p.Of["EUR"] += cents
		if cents == 13 {
			p.Of["GBP"] = 1
		}
		return p.Of["EUR"], nil
	})
	ReadOnly(k, "balance", func(p *purse, _ context.Context, _ struct{}) (int64, error) { return p.Of["EUR"], nil })
	return a
}

// stored is the state of an object with its schema.
func (c *core) stored(id string) string {
	r := c.record(acc(id))
	return fmt.Sprintf("%d %s", r.Schema, r.State)
}

func (c *core) wants(id, stored string) {
	c.t.Helper()
	if got := c.stored(id); got != stored {
		c.t.Errorf("stored of %s is %s, want %s", id, got, stored)
	}
}

// A version with a new schema comes, goes, and comes again: nothing is lost, and older code
// reads what newer code has written, as long as that is told to write so.
func TestSchemasOverARollout(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	one, two := acc("1"), acc("2")
	core.give(incarnation("a"), one, two)
	start(t, bank(s.URL, "a", nil))
	start(t, purses(s.URL, "b", 1, true))
	start(t, purses(s.URL, "c", 2, true))
	c := dial(t, s.URL)
	c.deposit(t, "1", 5)
	core.move(incarnation("b"), one)
	if got := c.balance(t, "1"); got != 5 {
		t.Errorf("after the upgrade there are %d cents, want 5", got)
	}
	core.wants("1", `0 {"cents":5}`) // who reads writes nothing
	c.deposit(t, "1", 1)
	core.wants("1", `0 {"cents":6}`)
	// What schema 1 has no room for is taken back.
	_, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "deposit", 13)
	if e := wantError(t, err, Internal, kbroker.ExecutedYes); !strings.Contains(e.Message, "downgrade it to schema 1: 2 currencies") {
		t.Errorf("the error is %q", e.Message)
	}
	core.move(incarnation("a"), one) // the rollback
	if got := c.deposit(t, "1", 1); got != 7 {
		t.Errorf("the old code has %d cents, want 7", got)
	}
	core.move(incarnation("c"), one)
	core.wants("1", `0 {"cents":7}`)
	if got, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), "balance", nil, Linearizable()); err != nil || got != 7 {
		t.Errorf("a linearizable read: %d, %v", got, err)
	}
	core.wants("1", `0 {"cents":7}`) // it confirms what is there
	c.deposit(t, "1", 0)             // a turn that changes nothing of it
	core.wants("1", `2 {"of":{"EUR":7}}`)
	c.deposit(t, "1", 13)
	// Old code does not touch it.
	core.move(incarnation("a"), one)
	for _, method := range []string{"deposit", "balance"} {
		_, err := Call[int64](within(t, 5*time.Second), c.Object("bank/account:1"), method, 1)
		if e := wantError(t, err, Refused, kbroker.ExecutedNo); !strings.Contains(e.Message, "has schema 2, and this version of the program knows schemas up to 1") {
			t.Errorf("the error is %q", e.Message)
		}
	}
	core.wants("1", `2 {"of":{"EUR":20,"GBP":1}}`)
	core.move(incarnation("b"), one) // it reads it, and is to write schema 1
	if got := c.balance(t, "1"); got != 20 {
		t.Errorf("then there are %d cents, want 20", got)
	}
}

func TestAProgramWithoutADowngradeWritesItsOwnSchema(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("b"), acc("1"))
	start(t, purses(s.URL, "b", 1, false))
	c := dial(t, s.URL)
	c.deposit(t, "1", 5)
	core.wants("1", `2 {"of":{"EUR":5}}`)
}

func TestASchemaThatIsNotThatOfTheSpec(t *testing.T) {
	for _, c := range []struct {
		name   string
		spec   map[kbroker.KindName]kbroker.Schema
		option KindOption
		want   string // nothing: it holds
	}{
		{"neither says one", nil, Schema(1), ""},
		{"the spec says none", nil, Schema(2), "the program has schema 2 of kind account, and the spec of service bank/ledger says none"},
		{"the program says none", map[kbroker.KindName]kbroker.Schema{"account": {Number: 3, Lowest: 3}}, Schema(1), "has schema 1"},
		{"no downgrade", map[kbroker.KindName]kbroker.Schema{"account": {Number: 2, Lowest: 1}}, Schema(2), "has no Downgrade"},
		{"below 1", nil, Schema(0), "has a schema below 1"},
		{"both say it", map[kbroker.KindName]kbroker.Schema{"account": {Number: 2, Lowest: 2}}, Schema(2), ""},
	} {
		a := bank("nats://nobody", "a", nil, c.option)
		a.identity.Schemas = c.spec
		err := a.checkKinds()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: the error is %v, want %q", c.name, err, c.want)
		}
		a.client.Close()
	}
}

func TestWhichSchemaIsWritten(t *testing.T) {
	for _, c := range []struct{ number, lowest, told, want int }{
		{1, 1, 0, 1}, // an agent that says nothing
		{3, 1, 0, 1},
		{3, 1, 2, 2},
		{3, 2, 1, 2}, // no lower than the program can
		{3, 3, 1, 3},
		{3, 1, 5, 3}, // no higher than it knows
	} {
		s := schema{number: c.number}
		s.decide(&kbroker.InstanceFile{
			Schemas: map[kbroker.KindName]kbroker.Schema{"a": {Number: c.number, Lowest: c.lowest}}, WriteSchemas: map[kbroker.KindName]int{"a": c.told},
		}, "a")
		if s.writes != c.want {
			t.Errorf("%+v: schema %d is written", c, s.writes)
		}
	}
	raw := []byte(`{"cents":1}`)
	k := &kind{load: loadState[account], schema: schema{number: 2, upgrade: func([]byte, int) ([]byte, error) { return nil, fmt.Errorf("no way") }}}
	if _, err := k.read(acc("1"), raw, 0); err == nil || !strings.Contains(err.Error(), "cannot be upgraded from schema 1: no way") {
		t.Errorf("the error is %v", err)
	}
	if v, err := k.read(acc("1"), raw, 2); err != nil || v.(*account).Cents != 1 || !bytes.Equal(raw, []byte(`{"cents":1}`)) {
		t.Errorf("a state of its own schema: %v, %v", v, err)
	}
}
