package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// A rollback without a number that was done twice would undo itself.
func TestARepeatedWriteCarriesTheSameRequest(t *testing.T) {
	c := newCluster(t)
	api := c.client()
	for verb, call := range map[string]func() (kbroker.DeployReply, error){
		subjects.VerbRollback: func() (kbroker.DeployReply, error) { return api.Rollback(t.Context(), "hello", 0) },
		subjects.VerbRestart:  func() (kbroker.DeployReply, error) { return api.Restart(t.Context(), "hello", "", "") },
	} {
		asked := make(chan string, 10)
		c.serve(subjects.Super(verb, kbroker.DefaultTenant, subjects.NoKey), func(m *nats.Msg) any {
			asked <- parse[kbroker.RollbackRequest](t, m).Request // as in a RestartRequest
			if len(asked)%2 == 1 {
				return nil // done, but the answer is lost
			}
			return kbroker.DeployReply{Version: 3}
		})
		for range 2 {
			if r, err := call(); err != nil || r.Version != 3 {
				t.Fatalf("%s: %+v, %v", verb, r, err)
			}
		}
		var got []string
		for range 4 {
			got = append(got, <-asked)
		}
		if got[0] == "" || got[0] != got[1] || got[2] != got[3] || got[0] == got[2] {
			t.Errorf("%s: two calls, each asked twice, carry %q; want the same within a call, another for each", verb, got)
		}
	}
}

func TestFollowReplacedWaitsForTheSuccessor(t *testing.T) {
	c := newCluster(t)
	var looks atomic.Int32
	old, next := kbroker.InstanceID("hello-hello-1"), kbroker.InstanceID("hello-hello-2")
	c.app(func() kbroker.AppRow {
		ready := 1
		if looks.Add(1) == 4 {
			ready = 0
		}
		return kbroker.AppRow{App: "hello", Version: 1, Wanted: 1, Ready: ready, Rollout: kbroker.RolloutDone}
	}, func() []kbroker.InstanceRow {
		rows := []kbroker.InstanceRow{{Instance: &next, State: kbroker.StateReady}}
		if looks.Load() < 3 {
			rows = append(rows, kbroker.InstanceRow{Instance: &old, State: kbroker.StateReady})
		}
		if looks.Load() == 3 {
			rows = append(rows, kbroker.InstanceRow{Instance: &old, State: kbroker.StateDraining})
		}
		return rows
	})
	if err := c.client().FollowReplaced(t.Context(), "hello", old, nil); err != nil {
		t.Fatalf("follow: %v", err)
	}
	if n := looks.Load(); n != 5 {
		t.Fatalf("ended at look %d, want 5: the old one has left and as many are ready as are wanted", n)
	}
}

// story serves the events of a cluster: those up to the number that may be
// seen, by one core that lags and one that does not.
func (c *cluster) story(seen *atomic.Int64, fails func(n int64) error) {
	var asked atomic.Int64
	c.serve(subjects.Core(subjects.VerbEvents, kbroker.DefaultTenant), func(m *nats.Msg) any {
		n := asked.Add(1)
		if err := fails(n); err != nil {
			return err
		}
		r := parse[kbroker.EventsRequest](c.t, m)
		top := uint64(seen.Add(2))
		if n%2 == 0 && top > 3 {
			top -= 3 // a core behind
		}
		page := kbroker.EventsReply{Events: []kbroker.Event{}}
		from := uint64(1)
		if r.After != nil {
			from, page.Next = *r.After+1, *r.After
		}
		for i := from; i <= top; i++ {
			page.Events, page.Next = append(page.Events, kbroker.Event{Sequence: i, Kind: kbroker.EventPlaced}), i
		}
		return page
	})
}

func TestEventsFollowWithoutGapsOrRepetitions(t *testing.T) {
	c := newCluster(t)
	var seen atomic.Int64
	c.story(&seen, func(n int64) error {
		if n > 5 && n < 9 {
			return kbroker.Errorf(kbroker.Unavailable, "the core died")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []uint64
	err := c.client().Events(ctx, EventQuery{Follow: true}, func(e kbroker.Event) error {
		if got = append(got, e.Sequence); len(got) == 30 {
			cancel()
		}
		return nil
	})
	if err != nil {
		t.Fatalf("following that was ended: %v, want nil", err)
	}
	for i, n := range got {
		if n != uint64(i+1) {
			t.Fatalf("events are %v, want every number once, in order", got)
		}
	}
	if len(got) < 30 {
		t.Fatalf("%d events are seen, want 30", len(got))
	}
}

func TestEventsTellOnceThatNobodyAnswers(t *testing.T) {
	c := newCluster(t)
	var down atomic.Bool
	var seen atomic.Int64
	c.story(&seen, func(int64) error {
		if down.Load() {
			return kbroker.Errorf(kbroker.Unavailable, "nobody")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	api := c.client()
	api.pace.readBudget = 50 * time.Millisecond
	var notices []string
	err := api.Events(ctx, EventQuery{Follow: true, Notice: func(err error) {
		notices = append(notices, fmt.Sprint(err != nil))
		if err != nil {
			time.AfterFunc(200*time.Millisecond, func() { down.Store(false) })
			return
		}
		cancel()
	}}, func(e kbroker.Event) error {
		if e.Sequence == 5 {
			down.Store(true)
		}
		return nil
	})
	if err != nil || !slices.Equal(notices, []string{"true", "false"}) {
		t.Errorf("notices are %v, %v; want one when nobody answers and one when somebody does", notices, err)
	}
}

func TestEventsThatNobodyAnswersAtAllAreAnError(t *testing.T) {
	c := newCluster(t)
	var seen atomic.Int64
	c.story(&seen, func(int64) error { return kbroker.Errorf(kbroker.Unavailable, "nobody") })
	api := c.client()
	api.pace.readBudget = 50 * time.Millisecond
	if err := api.Events(t.Context(), EventQuery{Follow: true}, nil); !errors.Is(err, kbroker.Unavailable) {
		t.Errorf("events: %v, want unavailable", err)
	}
}
