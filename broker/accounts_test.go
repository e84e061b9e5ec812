package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"

	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// dialAs connects as one of callers.
func dialAs(t *testing.T, addr string, c caller) *nats.Conn {
	t.Helper()
	options := []nats.Option{nats.CustomInboxPrefix(subjects.GateInbox)}
	if c.user.jwt != "" {
		var err error
		if options, err = c.user.options(); err != nil {
			t.Fatal(err)
		}
	}
	nc, err := nats.Connect("nats://"+addr, append(options, nats.NoReconnect())...)
	if err != nil {
		t.Fatalf("%s connects: %v", c.name, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func callerNamed(t *testing.T, name string) caller {
	t.Helper()
	all := callers(t)
	i := slices.IndexFunc(all, func(c caller) bool { return c.name == name })
	if i < 0 {
		t.Fatalf("there is no %s", name)
	}
	return all[i]
}

// TestAccountsMeet: what crosses from one account to another does so as it is, with
// the subject that its answer is wanted on, and the answer comes back.
func TestAccountsMeet(t *testing.T) {
	cfg := configOf(t, "c1", true)
	start(t, cfg).awaitReady(30 * time.Second)
	core, worker := dialAs(t, cfg.ClientAddr, callerNamed(t, "core")), dialAs(t, cfg.ClientAddr, callerNamed(t, "worker w1"))
	instance, operator := callerNamed(t, "instance shop-web-1, calls all"), callerNamed(t, "operator")
	other := callerNamed(t, "instance shop-web-1 of tenant other")
	for _, c := range []struct {
		asks    caller
		subject string
		answers *nats.Conn
		on      string
		queue   string
	}{
		{operator, subjects.Super(subjects.VerbDrain, "default", operator.key), core, subjects.SuperAll(), ""},
		{operator, subjects.Core(subjects.VerbHosts, "default"), core, subjects.CoreAll(), subjects.QueueCore},
		{operator, subjects.Upload("c1", "default", "s"), core, subjects.Upload("c1", "*", "*"), ""},
		{operator, subjects.Host("w1", subjects.VerbLogs, "default"), worker, subjects.Host("w1", subjects.VerbLogs, "*"), ""},
		{instance, subjects.Core(subjects.VerbPlacement, "default"), core, subjects.CoreAll(), subjects.QueueCore},
		{other, subjects.Core(subjects.VerbPlacement, "other"), core, subjects.CoreAll(), subjects.QueueCore},
		{callerNamed(t, "allocator of shop"), subjects.Demand("default", "shop"), core, subjects.AllDemands, ""},
		{callerNamed(t, "allocator of shop"), subjects.Lease("default", "shop"), core, subjects.AllLeases, subjects.QueueCore},
		{instance, subjects.Renew(instance.key), core, subjects.AllRenews, subjects.QueueCore},
		{instance, subjects.Endpoints("default", "bank", "api"), core, subjects.AllEndpoints, subjects.QueueCore},
		{nobody(t), subjects.Join, core, subjects.Join, ""},
	} {
		t.Run(c.asks.name+" asks "+c.subject, func(t *testing.T) {
			asks := dialAs(t, cfg.ClientAddr, c.asks)
			if _, err := asks.Request(c.subject, nil, 5*time.Second); !errors.Is(err, nats.ErrNoResponders) {
				t.Errorf("without anybody who answers: %v, want %v", err, nats.ErrNoResponders)
			}
			heard := make(chan string, 4)
			sub, err := c.answers.QueueSubscribe(c.on, c.queue, func(m *nats.Msg) {
				heard <- m.Subject
				_ = m.Respond([]byte(m.Reply))
			})
			if err == nil {
				err = c.answers.Flush()
			}
			if err != nil {
				t.Fatal(err)
			}
			defer sub.Unsubscribe()
			m, err := asks.Request(c.subject, nil, 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if got := <-heard; got != c.subject || string(m.Data) != m.Subject || len(heard) > 0 {
				t.Errorf("heard on %q, answer to %q comes on %q, %d more; want it once, as it was sent", got, m.Data, m.Subject, len(heard))
			}
		})
	}
	t.Run("a worker pings a process", func(t *testing.T) {
		process, inc := dialAs(t, cfg.ClientAddr, instance), subjects.Ping("default", "shop-web-1.1")
		if _, err := process.Subscribe(inc, func(m *nats.Msg) { _ = m.Respond([]byte("here")) }); err != nil {
			t.Fatal(err)
		}
		pong := subjects.Pong("default", "w1", "q")
		answers, err := worker.SubscribeSync(subjects.Pong("*", "w1", "*"))
		if err := errors.Join(err, process.Flush(), worker.PublishRequest(inc, pong, nil)); err != nil {
			t.Fatal(err)
		}
		if m, err := answers.NextMsg(5 * time.Second); err != nil || m.Subject != pong || string(m.Data) != "here" {
			t.Errorf("got %+v, %v, want the answer on %s", m, err, pong)
		}
	})
}

// TestAccountsAreApart: what does not cross reaches nobody in another account, also
// where names and permissions are the same; nobody but who is in the account of
// control has anything of JetStream; and no answer of a core, or of the server's own,
// can be sent to where the one who asks may not publish.
func TestAccountsAreApart(t *testing.T) {
	cfg := configOf(t, "c1", true)
	h := start(t, cfg)
	h.awaitReady(30 * time.Second)
	core := dialAs(t, cfg.ClientAddr, callerNamed(t, "core"))
	all := callers(t)

	t.Run("services of tenants", func(t *testing.T) {
		here, there := dialAs(t, cfg.ClientAddr, callerNamed(t, "instance shop-web-1, calls all")), dialAs(t, cfg.ClientAddr, callerNamed(t, "instance shop-web-1 of tenant other"))
		subject := subjects.Method("shop", "web", "m")
		for nc, answer := range map[*nats.Conn]string{here: "default", there: "other"} {
			if _, err := nc.QueueSubscribe(subject, subjects.QueueService, func(m *nats.Msg) { _ = m.Respond([]byte(answer)) }); err != nil {
				t.Fatal(err)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		for nc, want := range map[*nats.Conn]string{here: "default", there: "other"} {
			for range 20 {
				if m, err := nc.Request(subject, nil, 5*time.Second); err != nil || string(m.Data) != want {
					t.Fatalf("tenant %s is answered %v, %v", want, m, err)
				}
			}
		}
		if _, err := core.Request(subject, nil, 5*time.Second); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("control asks a service: %v, want %v", err, nats.ErrNoResponders)
		}
	})
	t.Run("JetStream", func(t *testing.T) {
		for public, c := range testGrants.Accounts(nil) {
			acc, err := h.core.LookupAccount(public)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := acc.JetStreamEnabled(), public == testGrants.Control(); got != want {
				t.Errorf("account %s has JetStream: %t, want %t", c.Name, got, want)
			}
		}
	})
	t.Run("what a core answers", func(t *testing.T) {
		// A core that does not look answers where it is asked to: the server lets it.
		// What it must look at is what it sees.
		seen := make(chan string, 1)
		if _, err := core.Subscribe(subjects.CoreAll(), func(m *nats.Msg) { seen <- m.Reply }); err != nil {
			t.Fatal(err)
		}
		if err := core.Flush(); err != nil {
			t.Fatal(err)
		}
		asks := dialAs(t, cfg.ClientAddr, callerNamed(t, "viewer"))
		for _, to := range []string{subjects.Control("place.w1.default.x"), subjects.Super(subjects.VerbStop, "default", "K"), subjects.AllocatorLease("default", "shop")} {
			if err := asks.PublishRequest(subjects.Core(subjects.VerbHosts, "default"), to, nil); err != nil {
				t.Fatal(err)
			}
			select {
			case got := <-seen:
				if got != to {
					t.Errorf("an answer is wanted on %q, the core sees %q", to, got)
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("nobody hears a request that is to be answered on %q", to)
			}
		}
	})
	t.Run("inboxes", func(t *testing.T) {
		owner, spy := all[slices.IndexFunc(all, func(c caller) bool { return c.name == "admin" })], dialAs(t, cfg.ClientAddr, callerNamed(t, "worker w1"))
		heard := make(chan *nats.Msg, 1)
		nc := dialAs(t, cfg.ClientAddr, owner)
		if _, err := nc.ChanSubscribe(subjects.Inbox(owner.key)+".>", heard); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(nc.Flush(), spy.Publish(subjects.Inbox(owner.key)+".x", []byte("answer"))); err != nil {
			t.Fatal(err)
		}
		wait.Until(t, 5*time.Second, func() error {
			if len(heard) == 0 {
				return fmt.Errorf("an answer from control does not come")
			}
			return nil
		})
	})
}

// TestWhoHasAKey, of a connection that is there, and of one that was.
func TestWhoHasAKey(t *testing.T) {
	cfg := configOf(t, "c1", true)
	h := start(t, cfg)
	h.awaitReady(30 * time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	viewer := callerNamed(t, "viewer")
	if v, err := h.Who(ctx, viewer.key); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("who never came: %+v, %v", v, err)
	}
	nc := dialAs(t, cfg.ClientAddr, viewer)
	for range 2 {
		// A server takes a connection that ends from one list, then puts it on another.
		wait.Until(t, 5*time.Second, func() error {
			v, err := h.Who(ctx, viewer.key)
			if err != nil || v.Credential != viewer.user.jwt || v.Address != "127.0.0.1" || v.Since.IsZero() {
				return fmt.Errorf("%+v, %w; want the viewer, from 127.0.0.1", v, err)
			}
			return nil
		})
		nc.Close()
	}
}
