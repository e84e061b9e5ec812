package super

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// unownedWithin bounds the reads of who owns the objects of apps, in one round: what else
	// the leader does waits for them.
	unownedWithin = 300 * time.Millisecond
	// unownedAgain is how soon is looked again where something has no owner: nothing else
	// tells the leader that an allocator has given it one.
	unownedAgain = 200 * time.Millisecond
)

// unowned says, of apps with objects whose rollout is not done, what keeps these from being
// served: that is not in the control store. Where instances are not ready yet it is not looked
// for: the rollout waits for them first.
func (t *term) unowned(ctx context.Context, v *state.View) map[state.AppKey]string {
	ctx, cancel := context.WithTimeout(ctx, unownedWithin)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	out := map[state.AppKey]string{}
	for k, rec := range v.Apps {
		version := v.Versions[k][rec.Version]
		if rec.Stopped || rec.Rollout.State == kbroker.RolloutDone || !version.App.HasObjects() || !allReady(v, k) {
			continue
		}
		all.Go(func() {
			if why := t.unownedOf(ctx, v, k); why != "" {
				mu.Lock()
				defer mu.Unlock()
				out[k] = why
			}
		})
	}
	all.Wait()
	for k := range out {
		if v.Apps[k].Rollout.State == kbroker.RolloutRunning {
			t.again.Reset(unownedAgain)
		}
	}
	return out
}

// unownedOf is that of one app; empty: all is served.
func (t *term) unownedOf(ctx context.Context, v *state.View, k state.AppKey) string {
	found, err := t.store.OwnBelow(ctx, k, subjects.MatchAssigns)
	if err != nil {
		return "it is not known who owns its objects: " + kbroker.AsError(err).Message
	}
	assigned := map[kbroker.Shard]ownership.Assignment{}
	for _, r := range found {
		var a ownership.Assignment
		if json.Unmarshal(r.Value, &a) == nil {
			assigned[subjects.ParseOwnKey(r.Key).Shard] = a
		}
	}
	if n := kbroker.Shards - ownedShards(v, k, assigned); n > 0 {
		return fmt.Sprintf("%d of %d shards of its objects have no owner yet", n, kbroker.Shards)
	}
	return ""
}

// allReady reports whether all instances that an app is to have are ready. Pure.
func allReady(v *state.View, k state.AppKey) bool {
	for key, p := range v.Placements {
		if p.Tenant != k.Tenant || p.App != k.App || p.Stop || p.Service == kbroker.AllocatorService {
			continue
		}
		if s := v.Statuses[key]; s.State != kbroker.StateReady || s.Epoch != p.Epoch {
			return false
		}
	}
	return true
}

// ownedShards counts the shards of an app whose owner runs: also one that is to leave, which
// serves until another takes over. Pure.
func ownedShards(v *state.View, k state.AppKey, assigned map[kbroker.Shard]ownership.Assignment) (n int) {
	runs := map[kbroker.Incarnation]bool{}
	for key, p := range v.Placements {
		if s := v.Statuses[key]; p.Tenant == k.Tenant && p.App == k.App && s.PID != 0 && s.Incarnation != "" {
			runs[s.Incarnation] = true
		}
	}
	for _, a := range assigned {
		if runs[a.Owner] {
			n++
		}
	}
	return n
}

// awaitOwners has a rollout go on while its instances run and nobody serves some of its
// objects: their allocator has not given them to somebody yet.
func (a *appDraft) awaitOwners(app kbroker.App) {
	why := a.w.Unowned[a.key]
	hosts := func(s kbroker.Service) bool { return len(s.Objects) > 0 && wanted(s, a.demand) > 0 }
	if why != "" && !a.unfinished && slices.ContainsFunc(app.Services, hosts) {
		a.unfinished = true
		a.troubles = append(a.troubles, why)
	}
}
