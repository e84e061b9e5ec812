package allocator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func TestNewRefusesWhatCannotRun(t *testing.T) {
	conn := &nats.Conn{}
	noName, noEpoch := instance("a"), instance("a")
	noName.Incarnation, noEpoch.Epoch = "", 0
	for name, cfg := range map[string]Config{
		"an instance without a name":   {Instance: noName, Conn: conn},
		"an instance without an epoch": {Instance: noEpoch, Conn: conn},
		"no connection":                {Instance: instance("a")},
	} {
		if _, err := New(cfg); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("%s: error %v, want one of code invalid", name, err)
		}
	}
}

func TestActiveSendsDemandAndFollowsTheSpec(t *testing.T) {
	w := newWorld(t)
	w.super()
	w.start("shop-allocator-1", eventPace)
	first := w.demand("for 3", wants(3))
	if first.Epoch == 0 || first.Tenant != tenant || first.App != shop {
		t.Errorf("demand %+v, want epoch above 0 for app %s of %s", first, shop, tenant)
	}
	w.want(version(2, 4))
	w.announceVersion(2)
	if next := w.demand("for 4", wants(4)); next.Epoch != first.Epoch {
		t.Errorf("the demand after a change has epoch %d, want still %d", next.Epoch, first.Epoch)
	}
}

func TestDemandIsSentAgainWithoutAChange(t *testing.T) {
	w := newWorld(t)
	w.super()
	p := eventPace
	p.resend = 20 * time.Millisecond
	w.start("shop-allocator-1", p)
	wait.Until(t, within, func() error {
		if n := len(w.heard()); n < 5 {
			return fmt.Errorf("%d demands, want 5", n)
		}
		return nil
	})
}

func TestACoreThatIsBehindIsAskedAgain(t *testing.T) {
	w := newWorld(t)
	w.super()
	w.start("shop-allocator-1", eventPace)
	w.demand("for 3", wants(3))
	w.want(version(1, 3), version(1, 3), version(2, 4))
	w.announceVersion(2)
	w.demand("for 4", wants(4))
}

func TestAReconnectLooksAgain(t *testing.T) {
	w := newWorld(t)
	w.super()
	pr := w.start("shop-allocator-1", eventPace)
	w.demand("for 3", wants(3))
	w.want(version(2, 4)) // and nothing is announced
	if err := pr.conn.ForceReconnect(); err != nil {
		t.Fatalf("force reconnect: %v", err)
	}
	w.demand("for 4", wants(4))
}

func TestSuperAwayAndBack(t *testing.T) {
	w := newWorld(t)
	w.start("shop-allocator-1", eventPace)
	wait.Until(t, within, func() error { // it has something to send, and nobody to send it to
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.asked == 0 {
			return errors.New("the version was not asked for")
		}
		return nil
	})
	stop := w.super()
	w.demand("for 3", wants(3))
	stop()
	w.want(version(2, 4))
	w.announceVersion(2)
	wait.Until(t, within, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.asked < 2 {
			return errors.New("the new version was not asked for")
		}
		return nil
	})
	if got := w.heard(); slices.IndexFunc(got, wants(4)) >= 0 {
		t.Fatalf("super is away but heard %+v", got)
	}
	w.super()
	w.demand("for 4", wants(4))
}

// A standby answers its agent, sends nothing, and takes over with a higher
// epoch: at once when the active one leaves in order, after the lease's bound
// when it vanishes.
func TestStandbyTakesOver(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave func(*process)
		err   error
	}{
		{"an active one that leaves releases the lease", func(p *process) { p.stop() }, nil},
		{"an active one that vanishes is observed", func(p *process) { p.conn.Close() }, errClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.super()
			p := eventPace
			p.resend = 10 * time.Millisecond
			active := w.start("shop-allocator-1", p)
			first := w.demand("for 3", wants(3))
			standby := w.start("shop-allocator-2", p)
			wait.Until(t, within, func() error {
				if _, warm := standby.alloc.view(); !warm {
					return errors.New("the standby's view is cold")
				}
				return nil
			})
			sent := len(w.heard())
			wait.Until(t, within, func() error {
				if n := len(w.heard()) - sent; n < 20 {
					return fmt.Errorf("%d demands beside the standby, want 20", n)
				}
				return w.ping(standby)
			})
			for _, d := range w.heard() {
				if d.Epoch != first.Epoch {
					t.Fatalf("demand %+v while the holder of epoch %d is active", d, first.Epoch)
				}
			}
			c.leave(active)
			if err := active.ended(t); !errors.Is(err, c.err) {
				t.Errorf("the active one ended with %v, want %v", err, c.err)
			}
			w.demand("of a later epoch", above(first.Epoch))
		})
	}
}

// TestTheLastRenewalCountsFromWhenItWasHeard: the lease cannot be read when its holder dies,
// nor for long after, as when the stream's leader died with it.
func TestTheLastRenewalCountsFromWhenItWasHeard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.super()
	w.times.HolderStops, w.times.LeaseTerm, w.times.ObserverActs = 2*time.Second, 2500*time.Millisecond, 3*time.Second
	active := w.start("shop-allocator-1", eventPace)
	first := w.demand("for 3", wants(3))
	w.start("shop-allocator-2", eventPace)
	<-time.After(time.Second) // it looks twice a second
	w.blind.Store(true)
	<-time.After(3 * w.times.LeaseRenew) // renewals that are not read
	active.conn.Close()
	if err := active.ended(t); !errors.Is(err, errClosed) {
		t.Fatal(err)
	}
	<-time.After(w.times.ObserverActs)
	w.blind.Store(false)
	sees := time.Now()
	w.demand("of a later epoch", above(first.Epoch))
	if took := time.Since(sees); took >= w.times.ObserverActs {
		t.Errorf("taken over %v after it could be read, want at its next looks", took)
	}
}

func TestARefusedDemandDeposes(t *testing.T) {
	w := newWorld(t)
	w.mu.Lock()
	w.refuse = 1
	w.mu.Unlock()
	w.super()
	p := eventPace
	p.resend = 10 * time.Millisecond
	w.start("shop-allocator-1", p)
	w.demand("of a later epoch", above(1))
	refused := 0
	for _, d := range w.heard() {
		if d.Epoch <= 1 {
			refused++
		}
	}
	if refused != 1 {
		t.Errorf("%d demands of a refused epoch, want 1: a deposed allocator stops at once", refused)
	}
}

func TestASupersededPlacementEndsRun(t *testing.T) {
	key := subjects.KeyPlacement("h1", tenant, "shop-allocator-1")
	own := kbroker.Placement{Tenant: tenant, App: shop, Service: kbroker.AllocatorService, Instance: "shop-allocator-1", Host: "h1", Epoch: 5}
	stop, newer := own, own
	stop.Epoch, stop.Stop = 6, true
	newer.Epoch = 7
	for name, record := range map[string]kbroker.Placement{"tombstone": stop, "newer epoch": newer} {
		t.Run(name+" announced", func(t *testing.T) {
			w := newWorld(t)
			pr := w.start("shop-allocator-1", eventPace)
			w.announce(key, record)
			if err := pr.ended(t); err != nil {
				t.Errorf("Run returned %v, want nil", err)
			}
		})
		t.Run(name+" missed and read after a reconnect", func(t *testing.T) {
			w := newWorld(t)
			pr := w.start("shop-allocator-1", eventPace)
			w.mu.Lock()
			w.placements[own.Instance] = record
			w.mu.Unlock()
			if err := pr.conn.ForceReconnect(); err != nil {
				t.Fatalf("force reconnect: %v", err)
			}
			if err := pr.ended(t); err != nil {
				t.Errorf("Run returned %v, want nil", err)
			}
		})
	}
	t.Run("nothing else does", func(t *testing.T) {
		w := newWorld(t)
		pr := w.start("shop-allocator-1", eventPace)
		older, other := stop, stop
		older.Epoch, other.Host = 4, "h2"
		w.announce(key, own)
		w.announce(key, older)
		w.announce(key, other)
		if err := w.conn.Publish(subjects.Changed(key), nil); err != nil { // a deletion
			t.Fatalf("publish: %v", err)
		}
		if err := w.conn.Publish(subjects.Changed(key), []byte(strings.Repeat("?", 9))); err != nil {
			t.Fatalf("publish: %v", err)
		}
		w.super()
		w.want(version(2, 4))
		w.announceVersion(2)
		w.demand("for 4", wants(4)) // it works on, after all of these
		if !pr.runs() {
			t.Errorf("Run has returned %v", pr.err)
		}
	})
}
