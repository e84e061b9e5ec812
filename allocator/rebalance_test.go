package allocator

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// What an even load moves leaves nobody farther from the average than tolerance does; when it
// is done nothing is left to move, also with the tolerance that there is otherwise.
func TestARebalanceIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := placed(t)
		tolerant := apply(v, balanced(v))
		v.Exact = true
		where := balanced(v)
		v = apply(v, where)
		if is, was := farthest(newBalance(v)), farthest(newBalance(tolerant)); is > was+exact {
			t.Errorf("loads are %.3f off the average, %.3f with tolerance", is, was)
		}
		for _, v.Exact = range []bool{true, false} {
			for n, to := range balanced(v) {
				if to != where[n] {
					t.Errorf("exact %t: shard %d moves again", v.Exact, n)
				}
			}
		}
		for n := range v.Shards {
			v.Shards[n].Fresh = false
		}
		for n, to := range balanced(v) {
			if to != where[n] {
				t.Errorf("shard %d moves back, once nothing is fresh", n)
			}
		}
	})
}

// newBalanced is newObjects, of two instances and the policy balanced.
func newBalanced(t *testing.T) *world {
	t.Helper()
	w := newObjects(t)
	web := service("web", 2, 2)
	web.Objects = []kbroker.KindName{"account"}
	spec := app(web)
	spec.Policy = kbroker.PolicyBalanced
	w.want(kbroker.AppVersion{Tenant: tenant, Version: 1, App: spec})
	return w
}

// TestARebalanceMovesWhatToleranceLeaves: asked for alone nothing moves; otherwise loads are
// even, and stay so.
func TestARebalanceMovesWhatToleranceLeaves(t *testing.T) {
	w := newBalanced(t)
	w.fake(webA, "web")
	active := w.start("shop-allocator-1", objectPace).alloc
	w.shared(webA)
	w.fake(webB, "web")
	owned := func() (has map[kbroker.InstanceID]int, moving int) { return active.shards.owned() }
	wait.Until(t, 3*within, func() error {
		if has, moving := owned(); moving > 0 || float64(has["shop-web-2"]) < (1-even)*kbroker.Shards/2-2 || has["shop-web-2"] > 500 {
			return fmt.Errorf("owned %v, %d on their way; want it even but for the tolerance", has, moving)
		}
		return nil
	})
	before, _ := owned()
	plan, err := active.answerRebalance(true)
	if err != nil {
		t.Fatal(err)
	}
	need := (before["shop-web-1"] - before["shop-web-2"]) / 2
	if n := len(plan.Moves); n == 0 || float64(n) < float64(need)-exact*kbroker.Shards || n > need+1 {
		t.Errorf("%d shards would move of %v, want about %d", n, before, need)
	}
	if len(plan.Owners) != 2 || plan.Owners[0].Now.Shards != before["shop-web-1"] || plan.Owners[0].Then.Shards != before["shop-web-1"]-len(plan.Moves) ||
		plan.Owners[1].Then.Shards != before["shop-web-2"]+len(plan.Moves) {
		t.Errorf("owners are %+v, %d shards move", plan.Owners, len(plan.Moves))
	}
	if is := active.shards.rebalancing(1); is != nil {
		t.Errorf("%+v is done for a dry run", is)
	}
	done, err := active.answerRebalance(false)
	if err != nil || len(done.Moves) != len(plan.Moves) {
		t.Fatalf("%d shards move (%v), %d would", len(done.Moves), err, len(plan.Moves))
	}
	wait.Until(t, within, func() error {
		if is := active.shards.rebalancing(1); is == nil || is.Left > 0 || is.Dropped > 0 || is.Number != 1 {
			return fmt.Errorf("the rebalance is %+v, want that all is where it is to be", is)
		}
		return nil
	})
	now := w.assignments()
	has := map[kbroker.Incarnation]int{}
	for _, as := range now {
		has[as.Owner]++
	}
	if want := plan.Owners[0].Then.Shards; has[webA] != want || has[webA]+has[webB] != kbroker.Shards {
		t.Errorf("owned %v, want %d by the first", has, want)
	}
	if again, err := active.answerRebalance(true); err != nil || len(again.Moves) > 0 {
		t.Errorf("%d shards would move again (%v)", len(again.Moves), err)
	}
}

// An allocator that has just begun does not know what is even.
func TestARebalanceNeedsTurns(t *testing.T) {
	w := newBalanced(t)
	w.fake(webA, "web")
	pace := objectPace
	pace.turnsOver = time.Hour
	a := w.start("shop-allocator-1", pace).alloc
	w.shared(webA)
	if _, err := a.answerRebalance(false); !errors.Is(err, kbroker.Unavailable) || kbroker.AsError(err).Hint == "" {
		t.Errorf("before turns can be known: %v, want unavailable, with a hint", err)
	}
}

// A place that is gone ends what is to move there.
func TestARebalanceToWhoIsGoneEnds(t *testing.T) {
	w := newObjects(t)
	a := w.start("shop-allocator-1", objectPace).alloc
	w.fake(webA, "web")
	b := w.fake(webB, "web")
	w.shared(webA, webB)
	b.leave()
	w.shared(webA)
	a.shards.beginRebalance([]kbroker.RebalanceMove{{ShardLoad: kbroker.ShardLoad{Shard: 1}, From: webA, To: webB}, {ShardLoad: kbroker.ShardLoad{Shard: 2}, From: webB, To: webA}})
	wait.Until(t, within, func() error {
		if is := a.shards.rebalancing(1); is == nil || is.Left > 0 || is.Dropped != 1 {
			return fmt.Errorf("the rebalance is %+v, want that the shard of who is gone stays", is)
		}
		return nil
	})
}

// What an operator moves elsewhere meanwhile is not waited for.
func TestARebalanceYieldsToAnOperator(t *testing.T) {
	w := newObjects(t)
	a := w.start("shop-allocator-1", objectPace).alloc
	w.fake(webA, "web")
	w.fake(webB, "web")
	first := w.shared(webA, webB)
	n := kbroker.Shard(0)
	for first[subjects.KeyAssign(n)].Owner != webA {
		n++
	}
	a.shards.mu.Lock()
	a.shards.wishes = kbroker.ObjectWishes{webA: {n}}
	a.shards.mu.Unlock()
	a.shards.beginRebalance([]kbroker.RebalanceMove{{ShardLoad: kbroker.ShardLoad{Shard: n}, From: webA, To: webB}})
	wait.Until(t, within, func() error {
		if is := a.shards.rebalancing(1); is == nil || is.Left > 0 || is.Dropped != 1 {
			return fmt.Errorf("the rebalance is %+v, want that the shard stays where it was moved to", is)
		}
		return nil
	})
}

// Nothing is said to be even while the app's own policy is refused, or nobody may own anything.
func TestARebalanceNeedsAPolicy(t *testing.T) {
	w := newObjects(t)
	a := w.startOwn("shop-allocator-1", objectPace, func(View) Decision { panic("no") }).alloc
	wait.Until(t, within, func() error {
		if _, err := a.answerRebalance(true); !errors.Is(err, kbroker.Unavailable) || !strings.Contains(err.Error(), "no instance") {
			return fmt.Errorf("without an owner it answers %v", err)
		}
		return nil
	})
	w.fake(webA, "web")
	w.shared(webA)
	wait.Until(t, within, func() error { // in its first seconds it knows no turns
		if _, err := a.answerRebalance(true); !errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), "panicked") {
			return fmt.Errorf("with a policy that panics it answers %v", err)
		}
		return nil
	})
}
