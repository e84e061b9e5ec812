package allocator

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestAnAppsOwnPolicyDecides: until it is refused, which super is told, and when it is in order
// again. What the spec's own policy would have wanted is wanted meanwhile.
func TestAnAppsOwnPolicyDecides(t *testing.T) {
	t.Parallel()
	w := newScaled(t, 2)
	w.bear(2, 0.5)
	var bad atomic.Bool
	p := w.startOwn("shop-allocator-1", scaledPace, func(v View) Decision {
		d := Spread(v)
		if d.Wanted["web"] = 5; bad.Load() {
			d.Wanted["web"] = 21
		}
		return d
	})
	w.demand("for 5, by its own policy", func(d kbroker.Demand) bool { return d.Wanted["web"] == 5 && d.Refused == "" })
	seen := p.alloc.demanding.Load().seen()
	if seen.Policy != kbroker.PolicyOwn || seen.Instead != kbroker.PolicySpread || seen.Refused != "" {
		t.Errorf("a core sees %+v", seen)
	}
	bad.Store(true)
	w.demand("that says why it is refused", func(d kbroker.Demand) bool { return strings.Contains(d.Refused, "more than the 20 of its count") })
	if d := w.demand("for 2, by the built-in one", wants(2)); d.Refused == "" {
		t.Errorf("demand %+v, want one that says that the own policy is refused", d)
	}
	if seen := p.alloc.demanding.Load().seen(); seen.Policy != kbroker.PolicyOwn || !strings.Contains(seen.Refused, "more than the 20") {
		t.Errorf("a core sees %+v", seen)
	}
	bad.Store(false)
	heard := len(w.heard())
	wait.Until(t, within, func() error {
		if now := w.heard()[heard:]; len(now) == 0 || now[len(now)-1].Wanted["web"] != 5 {
			return fmt.Errorf("demands %+v, want one for 5, by the policy that is in order again", now)
		}
		return nil
	})
}

// TestABuiltInPolicyIsNamed: as the spec does.
func TestABuiltInPolicyIsNamed(t *testing.T) {
	t.Parallel()
	w := newScaled(t, 2)
	w.bear(2, 0.5)
	p := w.start("shop-allocator-1", scaledPace)
	w.demand("for 2", wants(2))
	if seen := p.alloc.demanding.Load().seen(); seen.Policy != kbroker.PolicySpread || seen.Refused+seen.Instead != "" {
		t.Errorf("a core sees %+v", seen)
	}
}

// TestShardsOfAnOwnPolicy: are where it puts them, and stay when it panics; those of who is out
// do not.
func TestShardsOfAnOwnPolicy(t *testing.T) {
	w := newObjects(t)
	a := w.fake(webA, "web")
	w.fake(webB, "web")
	var bad atomic.Bool
	p := w.startOwn("shop-allocator-1", objectPace, func(v View) Decision {
		if bad.Load() {
			panic("no")
		}
		if len(v.Owners) < 2 {
			return Decision{}
		}
		d := Decision{Shards: make([]kbroker.Incarnation, len(v.Shards))}
		for n := range d.Shards {
			d.Shards[n] = v.Owners[n/1000]
		}
		return d
	})
	are := func(wantA, wantB int) error {
		of, moving := p.alloc.shards.owned()
		if of["shop-web-1"] != wantA || of["shop-web-2"] != wantB || moving > 0 {
			return fmt.Errorf("shards are owned %v, %d on their way; want %d and %d", of, moving, wantA, wantB)
		}
		return nil
	}
	wait.Until(t, within, func() error { return are(1000, 24) })
	bad.Store(true)
	wait.Until(t, within, func() error {
		if p.alloc.guard.why() == "" {
			return errors.New("it is not refused")
		}
		return nil
	})
	for range 10 {
		<-time.After(100 * time.Millisecond)
		if err := are(1000, 24); err != nil {
			t.Fatal(err)
		}
	}
	a.stop()
	wait.Until(t, within, func() error { return are(0, 1024) })
}
