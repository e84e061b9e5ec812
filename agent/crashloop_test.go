package agent

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

func TestACrashLoopIsManyCrashesInAMinute(t *testing.T) {
	second := func(n ...float64) (out []time.Duration) {
		for _, s := range n {
			out = append(out, time.Duration(s*float64(time.Second)))
		}
		return out
	}
	for _, tc := range []struct {
		name  string
		begin crashLoop
		at    []time.Duration
		want  bool
	}{
		{"four are none", crashLoop{}, second(1, 2, 3, 4), false},
		{"five are one", crashLoop{}, second(1, 2, 3, 4, 5), true},
		{"five in just a minute", crashLoop{}, second(1, 20, 30, 40, 61), true},
		{"five in more than a minute are none", crashLoop{}, second(1, 20, 30, 40, 61.1), false},
		{"the last five count", crashLoop{}, second(1, 100, 101, 102, 103, 104), true},
		{"it stays one, however seldom it crashes then", crashLoop{}, second(1, 2, 3, 4, 5, 100, 200), true},
		{"one that was in a loop elsewhere has two", crashLoop{Elsewhere: true}, second(1, 34), true},
		{"but not one", crashLoop{Elsewhere: true}, second(1), false},
		{"nor two that are far apart", crashLoop{Elsewhere: true}, second(1, 62), false},
	} {
		l := tc.begin
		for _, at := range tc.at {
			l = l.crashed(at)
		}
		if l.Failing != tc.want {
			t.Errorf("%s: %+v, want failing %t", tc.name, l, tc.want)
		}
		if len(l.At) > loopCrashes {
			t.Errorf("%s: %d crashes are kept", tc.name, len(l.At))
		}
	}
}

// TestACrashLoopIsKnownOverBoots: what another boot's clock said counts as if the
// machine had been down for no time.
func TestACrashLoopIsKnownOverBoots(t *testing.T) {
	l := crashLoop{Boot: "one"}
	for i := range loopCrashes - 1 {
		l = l.crashed(24*time.Hour + time.Duration(i)*time.Second)
	}
	if same := l.in("one"); same.At[0] != l.At[0] {
		t.Errorf("the agent was restarted, and the times are %v, before %v", same.At, l.At)
	}
	if next := l.in("two").crashed(20 * time.Second); !next.Failing {
		t.Errorf("four crashes just before a boot and one after it are no loop: %+v", next)
	}
	if next := l.in("two").crashed(58 * time.Second); next.Failing {
		t.Errorf("the first crash was 61 s of the machine's life ago, and it is a loop: %+v", next)
	}
	l = l.crashed(24*time.Hour + 5*time.Second)
	if next := l.in("two").in("three"); !next.Failing {
		t.Error("a boot ends a crash loop")
	}
}

// TestACrashLoopHammersNoHost: whatever the jitter, a program that ends as soon as it
// is started, tried on three hosts as super tries it, is started at most 20 times in
// five minutes.
func TestACrashLoopHammersNoHost(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		now, starts, crashes := time.Duration(0), 0, 0
		for host := range 3 {
			l := crashLoop{Elsewhere: host > 0}
			for now < 5*time.Minute && (host == 2 || !l.Failing) {
				starts++
				crashes++
				l = l.crashed(now)
				if host == 2 || !l.Failing {
					now += restartDelay(crashes, rapid.Float64Range(0, 1).Draw(r, "jitter"))
				}
			}
		}
		if starts > 20 {
			r.Errorf("%d starts", starts)
		}
	})
}

// TestAnAgentRestartForgetsNoCrashes: neither those that make a loop, nor the loop.
func TestAnAgentRestartForgetsNoCrashes(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	p := placement("shop-web-1", "fail")
	c.want(p)
	a := c.startAgent(dir)
	s := c.await(p.Instance, 10*time.Second, "a third crash", func(s kbroker.Status) bool {
		return s.Crashes == 3 && s.State == kbroker.StateBackoff
	})
	if s.Failing {
		t.Errorf("three crashes are a loop: %+v", s)
	}
	a.stop()
	a.changeRecord(p.Instance, func(r *record) { // a while ago, so that only what is kept can make the loop
		if n := len(r.Loop.At); n != 3 {
			t.Errorf("%d crashes are on record: %+v", n, r.Loop)
		}
		for i := range r.Loop.At {
			r.Loop.At[i] = state.Boottime() - 30*time.Second
		}
	})
	c.forgetStatuses()
	a = c.startAgent(dir)
	failing := func(s kbroker.Status) bool { return s.Failing && s.State == kbroker.StateBackoff }
	s = c.await(p.Instance, 10*time.Second, "a crash loop", failing)
	if s.Crashes != loopCrashes || !strings.HasPrefix(s.Message, "crash loop: exit code 3: ") || !strings.HasSuffix(s.Message, "boom") {
		t.Errorf("status %+v", s)
	}
	a.stop()
	c.forgetStatuses()
	c.startAgent(dir)
	c.await(p.Instance, 10*time.Second, "the same loop", failing)
}

// TestACrashLoopEndsWithAMinuteOfHealth, and not with less.
func TestACrashLoopEndsWithAMinuteOfHealth(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	p := placement("shop-web-1", "run")
	p.Backoff, p.Failed = 0, []kbroker.HostID{"h2"}
	c.want(p)
	a := c.startAgent(dir)
	pid := 0
	for range loopAgain {
		s := c.await(p.Instance, 10*time.Second, "a process", func(s kbroker.Status) bool { return s.State == kbroker.StateReady && s.PID != pid })
		pid = s.PID
		kill(t, pid, 9)
	}
	s := c.await(p.Instance, 10*time.Second, "a crash loop that runs again", func(s kbroker.Status) bool { return s.Failing && s.State == kbroker.StateReady })
	if s.Crashes != loopAgain {
		t.Errorf("status %+v", s)
	}
	minute := make(chan struct{})
	if !a.post(t.Context(), func() { a.instances[keyOf(p)].readySince -= healthyAfter; close(minute) }) {
		t.Fatal("the agent has ended")
	}
	<-minute
	if s := c.await(p.Instance, 10*time.Second, "health", func(s kbroker.Status) bool { return !s.Failing }); s.Crashes != 0 || s.State != kbroker.StateReady || s.Message != "" {
		t.Errorf("status %+v", s)
	}
}
