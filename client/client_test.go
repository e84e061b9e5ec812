package client

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestAReadWaitsUntilACoreIsThere(t *testing.T) {
	c := newCluster(t)
	api := c.client()
	done := make(chan error, 1)
	var rows []kbroker.HostRow
	go func() {
		var err error
		rows, err = api.Hosts(t.Context(), false)
		done <- err
	}()
	c.serve(subjects.Core(subjects.VerbHosts, kbroker.DefaultTenant), func(m *nats.Msg) any {
		return []kbroker.HostRow{{Name: "h1", Super: true}}
	})
	if err := <-done; err != nil {
		t.Fatalf("hosts: %v", err)
	}
	if len(rows) != 1 || rows[0].Name != "h1" || !rows[0].Super {
		t.Fatalf("hosts are %+v, want h1 as super", rows)
	}
}

func TestAReadThatNobodyAnswersIsUnavailable(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	if _, err := c.client().Apps(ctx); !errors.Is(err, kbroker.Unavailable) {
		t.Fatalf("apps of an empty cluster: %v, want code unavailable", err)
	}
}

func TestAReadThatOneCoreSwallowsIsAskedAgain(t *testing.T) {
	c := newCluster(t)
	var asked atomic.Int32
	c.serve(subjects.Core(subjects.VerbStatus, kbroker.DefaultTenant), func(m *nats.Msg) any {
		if asked.Add(1) == 1 {
			return nil
		}
		return kbroker.StatusReply{Core: "h2"}
	})
	s, err := c.client().Status(t.Context())
	if err != nil || s.Core != "h2" {
		t.Fatalf("status is %+v, %v, want the answer of h2", s, err)
	}
	if n := asked.Load(); n != 2 {
		t.Fatalf("asked %d times, want 2", n)
	}
}

func TestAWriteWithoutALeaderIsNoLeaderWhenTheDeadlinePasses(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	if err := c.client().Stop(ctx, "hello"); !errors.Is(err, kbroker.NoLeader) {
		t.Fatalf("stop: %v, want code no_leader", err)
	}
}

func TestAWriteIsSentAgainToTheNextLeader(t *testing.T) {
	c := newCluster(t)
	var asked atomic.Int32
	c.serve(subjects.Super(subjects.VerbScale, kbroker.DefaultTenant, subjects.NoKey), func(m *nats.Msg) any {
		r := parse[kbroker.ScaleRequest](t, m)
		if r.App != "hello" || r.Count != 5 || r.Tenant != kbroker.DefaultTenant {
			t.Errorf("request is %+v", r)
		}
		switch asked.Add(1) {
		case 1: // it died after it took the request
			return nil
		case 2: // it was deposed meanwhile
			return kbroker.Errorf(kbroker.NoLeader, "not the leader any more")
		}
		return kbroker.DeployReply{Version: 7}
	})
	r, err := c.client().Scale(t.Context(), "hello", "", 5)
	if err != nil || r.Version != 7 {
		t.Fatalf("scale: %+v, %v, want version 7", r, err)
	}
}

func TestAnErrorKeepsCodeMessageAndHintAndIsNotRepeated(t *testing.T) {
	c := newCluster(t)
	var asked atomic.Int32
	c.serve(subjects.Super(subjects.VerbDeploy, kbroker.DefaultTenant, subjects.NoKey), func(m *nats.Msg) any {
		asked.Add(1)
		return kbroker.Errorf(kbroker.Invalid, "no host has a gpu").WithHint("label one")
	})
	_, err := c.client().Check(t.Context(), kbroker.App{Name: "hello"})
	e := kbroker.AsError(err)
	if !errors.Is(err, kbroker.Invalid) || e.Message != "no host has a gpu" || e.Hint != "label one" {
		t.Fatalf("deploy: %#v, want what super answered", e)
	}
	if n := asked.Load(); n != 1 {
		t.Fatalf("asked %d times, want 1", n)
	}
}

func TestAnAppThatIsNotListedIsNotFound(t *testing.T) {
	c := newCluster(t)
	c.serve(subjects.Core(subjects.VerbApps, kbroker.DefaultTenant), func(*nats.Msg) any { return []kbroker.AppRow{} })
	if _, err := c.client().App(t.Context(), "hello"); !errors.Is(err, kbroker.NotFound) {
		t.Fatalf("app: %v, want code not_found", err)
	}
}

func TestACancelledRequestEndsAtOnce(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.client().Apps(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("apps: %v, want context.Canceled", err)
	}
}
