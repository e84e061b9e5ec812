package sdk

import (
	"fmt"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
)

func TestGoesHomeOnlyFromAStableConnection(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name         string
		since        time.Time
		lame, atHome bool
		want         bool
	}{
		{"abroad for long", now.Add(-calm.stable), false, false, true},
		{"abroad since a moment", now.Add(-calm.stable + 1), false, false, false},
		{"abroad, on a server that shuts down", now.Add(-time.Hour), true, false, false},
		{"at home", now.Add(-time.Hour), false, true, false},
		{"not connected", time.Time{}, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := goesHome(c.since, now, c.lame, c.atHome, calm.stable); got != c.want {
				t.Errorf("goesHome = %v, want %v", got, c.want)
			}
		})
	}
}

func TestTheWayHomeIsPutOffWhenHomeDoesNotHold(t *testing.T) {
	for returns, doubled := range map[int]time.Duration{0: 1, 1: 2, 2: 4, homeDoublings: 16, 1000: 16} {
		seen := map[time.Duration]bool{}
		for range 100 {
			d := calm.homeWait(returns)
			if d < calm.homeMin*doubled || d > calm.homeMax*doubled {
				t.Fatalf("homeWait(%d) = %v, want %v to %v", returns, d, calm.homeMin*doubled, calm.homeMax*doubled)
			}
			seen[d] = true
		}
		if len(seen) < 10 {
			t.Errorf("homeWait(%d) has %d values in 100, want them spread", returns, len(seen))
		}
	}
}

// hasty makes New and Dial go home soon.
func hasty(o *options) {
	at(o, pace{linger: 100 * time.Millisecond, homeMin: 50 * time.Millisecond, homeMax: 200 * time.Millisecond, stable: 100 * time.Millisecond, trust: time.Minute})
}

// TestEverybodyReturnsHome after each server has gone once and come back.
func TestEverybodyReturnsHome(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	meshed(t, c)
	ran := &runs{}
	var apps []*running
	for n := range 3 {
		a := newAppOn(c, n, fmt.Sprintf("echo-echo-%d", n), hasty)
		once(a, ran, time.Millisecond)
		apps = append(apps, start(t, a))
	}
	began := time.Now()
	l := startLoad(t, c, "once", 3, 300, hasty)
	for i := range c.Size() {
		upgrade(t, c, i)
		wait.Until(t, patience, func() error {
			for n, a := range apps {
				if got, home := a.client.server(), fmt.Sprintf("n%d", n+1); got != home {
					return fmt.Errorf("instance %d is on %q, want %s", n, got, home)
				}
			}
			return nil
		})
	}
	l.stop()
	l.check(t, ran, time.Since(began))
	for _, a := range apps {
		tr := a.client.nats()
		tr.close() // run has ended: its fields may be read
		if tr.mover.returns != 0 {
			t.Errorf("%s returned %d times more than once, want a way home for the one time its server went", a.identity.Instance, tr.mover.returns)
		}
	}
}
