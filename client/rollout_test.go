package client

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name string
		row  kbroker.AppRow
		done bool
		code kbroker.Code
	}{
		{"a core that does not know the version yet says nothing", kbroker.AppRow{Version: 2, Rollout: kbroker.RolloutDone}, false, ""},
		{"a running rollout goes on", kbroker.AppRow{Version: 3, Rollout: kbroker.RolloutRunning}, false, ""},
		{"a done rollout is done", kbroker.AppRow{Version: 3, Rollout: kbroker.RolloutDone}, true, ""},
		{"a failed rollout is an error", kbroker.AppRow{Version: 3, Rollout: kbroker.RolloutFailed, Reason: "it crashed"}, false, kbroker.Failed},
		{"a way back that goes on is waited for", kbroker.AppRow{Version: 2, Rollout: kbroker.RolloutRunning, Reason: "version 3 failed"}, false, ""},
		{"a way back that is done is a failure", kbroker.AppRow{Version: 2, Rollout: kbroker.RolloutDone, Reason: "version 3 failed"}, false, kbroker.Failed},
		{"a later version overtakes", kbroker.AppRow{Version: 4, Rollout: kbroker.RolloutDone}, false, kbroker.Refused},
		{"a stop overtakes", kbroker.AppRow{Version: 3, Stopped: true, Rollout: kbroker.RolloutDone}, false, kbroker.Refused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			done, err := judge(tc.row, 3)
			if done != tc.done || (err != nil) != (tc.code != "") || err != nil && !errors.Is(err, tc.code) {
				t.Fatalf("judge is %v, %v, want %v, %q", done, err, tc.done, tc.code)
			}
		})
	}
}

// app serves one app whose row each look asks for.
func (c *cluster) app(row func() kbroker.AppRow, instances func() []kbroker.InstanceRow) {
	c.serve(subjects.Core(subjects.VerbApps, kbroker.DefaultTenant), func(*nats.Msg) any {
		return []kbroker.AppRow{row()}
	})
	c.serve(subjects.Core(subjects.VerbInstances, kbroker.DefaultTenant), func(m *nats.Msg) any {
		return instances()
	})
}

func noInstances() []kbroker.InstanceRow { return []kbroker.InstanceRow{} }

func TestFollowShowsEachLookUntilTheRolloutIsDone(t *testing.T) {
	c := newCluster(t)
	var looks atomic.Int32
	c.app(func() kbroker.AppRow {
		state := kbroker.RolloutRunning
		if looks.Add(1) >= 3 {
			state = kbroker.RolloutDone
		}
		return kbroker.AppRow{App: "hello", Version: 1, Rollout: state}
	}, noInstances)
	shown := 0
	if err := c.client().Follow(t.Context(), "hello", 1, func(Progress) { shown++ }); err != nil {
		t.Fatalf("follow: %v", err)
	}
	if shown != 3 {
		t.Fatalf("shown %d times, want 3", shown)
	}
}

func TestFollowDoesNotTakeAStaleFailureForItsOwn(t *testing.T) {
	c := newCluster(t)
	var looks atomic.Int32
	c.app(func() kbroker.AppRow {
		if looks.Add(1) == 1 { // the stop before the deploy, from a core that is behind
			return kbroker.AppRow{App: "hello", Version: 1, Stopped: true, Rollout: kbroker.RolloutFailed}
		}
		return kbroker.AppRow{App: "hello", Version: 1, Rollout: kbroker.RolloutDone}
	}, noInstances)
	if err := c.client().Follow(t.Context(), "hello", 1, nil); err != nil {
		t.Fatalf("follow: %v", err)
	}
}

func TestFollowReportsAFailureWithItsReason(t *testing.T) {
	c := newCluster(t)
	c.app(func() kbroker.AppRow {
		return kbroker.AppRow{
			App: "hello", Version: 1, Rollout: kbroker.RolloutFailed, Reason: "no progress for 2m",
			Unplaced: []kbroker.Unplaced{{Service: "hello", Count: 2, Reason: "no memory"}},
		}
	}, noInstances)
	err := c.client().Follow(t.Context(), "hello", 1, nil)
	if !errors.Is(err, kbroker.Failed) || !strings.Contains(err.Error(), "no progress for 2m") || !strings.Contains(kbroker.AsError(err).Hint, "no memory") {
		t.Fatalf("follow: %v (hint %q), want the reason and what is not placed", err, kbroker.AsError(err).Hint)
	}
}

func TestFollowEndsAtItsDeadline(t *testing.T) {
	c := newCluster(t)
	c.app(func() kbroker.AppRow {
		return kbroker.AppRow{App: "hello", Version: 1, Rollout: kbroker.RolloutRunning}
	}, noInstances)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.client().Follow(ctx, "hello", 1, nil); !errors.Is(err, kbroker.DeadlineExceeded) {
		t.Fatalf("follow: %v, want code deadline_exceeded", err)
	}
}

func TestFollowStopWaitsForTheLastInstance(t *testing.T) {
	c := newCluster(t)
	var looks atomic.Int32
	c.app(func() kbroker.AppRow {
		return kbroker.AppRow{App: "hello", Version: 1, Stopped: looks.Add(1) > 1}
	}, func() []kbroker.InstanceRow {
		if looks.Load() < 4 {
			return []kbroker.InstanceRow{{Instance: ptr(kbroker.InstanceID("hello-hello-1")), State: kbroker.StateDraining}}
		}
		return []kbroker.InstanceRow{{Instance: ptr(kbroker.InstanceID("hello-hello-1")), State: kbroker.StateExited}}
	})
	if err := c.client().FollowStop(t.Context(), "hello", nil); err != nil {
		t.Fatalf("follow stop: %v", err)
	}
	if n := looks.Load(); n != 4 {
		t.Fatalf("ended at look %d, want 4, when the last had exited", n)
	}
}
