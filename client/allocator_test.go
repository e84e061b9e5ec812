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

// TestAnAllocatorIsAskedForUntilOneIsActive: they change within a moment. What is said of an
// app that is not there is said once.
func TestAnAllocatorIsAskedForUntilOneIsActive(t *testing.T) {
	c := newCluster(t)
	var asked atomic.Int32
	c.serve(subjects.Core(subjects.VerbAllocator, kbroker.DefaultTenant), func(m *nats.Msg) any {
		n := asked.Add(1)
		switch r := parse[kbroker.ListRequest](c.t, m); {
		case r.Tenant != kbroker.DefaultTenant || r.App == "nobody":
			return kbroker.Errorf(kbroker.NotFound, "there is no app %q", r.App)
		case r.App == "lost" || n == 1:
			return kbroker.Errorf(kbroker.Unavailable, "no allocator of app %q is active", r.App).WithHint("why")
		case n == 2:
			<-time.After(200 * time.Millisecond) // more than other reads have
		}
		return kbroker.AllocatorReply{App: "shop", Allocator: "shop-allocator-1", AllocatorSeen: kbroker.AllocatorSeen{
			Epoch: 7, Services: []kbroker.AllocatorNeed{{Service: "web", Wanted: 4}},
		}}
	})
	api := c.client()
	r, err := api.Allocator(t.Context(), "shop")
	if err != nil || r.Allocator != "shop-allocator-1" || r.Epoch != 7 || len(r.Services) != 1 || r.Services[0].Wanted != 4 || asked.Load() != 2 {
		t.Errorf("%+v, %v after %d questions, want what shop-allocator-1 says after 2", r, err, asked.Load())
	}
	if _, err := api.Allocator(t.Context(), "nobody"); !errors.Is(err, kbroker.NotFound) || asked.Load() != 3 {
		t.Errorf("an app that is none: %v after %d questions, want not found after 3", err, asked.Load())
	}
	if _, err := api.Rebalance(t.Context(), "shop"); !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == "" {
		t.Errorf("a core of an earlier build, which says nothing of a rebalance: %v", err)
	}
	asked.Store(3)
	soon, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	_, err = api.Allocator(soon, "lost")
	if e := kbroker.AsError(err); !errors.Is(err, kbroker.Unavailable) || e.Hint != "why" || asked.Load() < 5 {
		t.Errorf("one that stays away: %+v after %d questions, want the core's own word, asked for again", e, asked.Load())
	}
}
