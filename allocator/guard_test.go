package allocator

import (
	"bytes"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kbroker/kbroker"
)

// guarded is a guard of a policy, in a bubble of synctest: its clock is that of the bubble.
func guarded(p Policy) (*guard, *bytes.Buffer) {
	log := &bytes.Buffer{}
	began := time.Now()
	return newGuard(Config{
		Policy: p, Clock: func() time.Duration { return time.Since(began) + time.Hour }, Log: slog.New(slog.NewTextHandler(log, nil)),
	}), log
}

// evenly is an own policy that is in order.
func evenly(v View) Decision {
	d := Decision{Wanted: counts{"web": 7}, Shards: make([]kbroker.Incarnation, len(v.Shards))}
	for n := range d.Shards {
		d.Shards[n] = v.Owners[n%len(v.Owners)]
	}
	return d
}

func TestAPolicyIsRefused(t *testing.T) {
	type owner = kbroker.Incarnation
	for name, c := range map[string]struct {
		bad        Policy
		kind, text string
	}{
		"it panics":              {func(v View) Decision { return Decision{Shards: []owner{v.Owners[len(v.Shards)]}} }, kindPanic, "it panicked: runtime error: index out of range [4] with length 2 (allocator/guard_test.go:"},
		"it panics with nothing": {func(View) Decision { panic(nil) }, kindPanic, "it panicked"},
		"it writes to a map that is not there": {func(View) Decision {
			var d Decision
			d.Wanted["web"] = 1
			return d
		}, kindPanic, "assignment to entry in nil map"},
		"it ends its goroutine": {func(View) Decision { runtime.Goexit(); return Decision{} }, kindPanic, "ended its goroutine"},
		"it takes too long": {func(View) Decision {
			time.Sleep(3 * time.Second)
			return Decision{}
		}, kindStall, "it has not answered within 1s"},
		"it wants more than there may be": {func(View) Decision { return Decision{Wanted: counts{"web": 21}} }, kindNonsense, "more than the 20"},
		"it names who is not there":       {func(v View) Decision { return Decision{Shards: make([]owner, 4)} }, kindNonsense, "which is out or leaves"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var well atomic.Bool
				g, log := guarded(func(v View) Decision {
					if !well.Load() {
						return c.bad(v)
					}
					return evenly(v)
				})
				v := owned()
				began := time.Now()
				d := g.decide(v, kbroker.PolicyPack)
				if took := time.Since(began); took > answerWithin {
					t.Errorf("decided after %v, want within %v", took, answerWithin)
				}
				// As a whole, by the built-in one; who is there keeps what it has.
				if want := (counts{"db": 1, "web": 2}); !maps.Equal(d.Wanted, want) || d.Shards[0] != v.Shards[0].Owner || d.Shards[1] != v.Shards[1].Owner || check(v, d) != nil {
					t.Errorf("decided %+v, want %v and shards that stay", d, want)
				}
				if why := g.why(); !strings.Contains(why, c.text) || g.refusal.kind != c.kind {
					t.Errorf("it is refused for %q (%s), want %q (%s)", why, g.refusal.kind, c.text, c.kind)
				}
				for range 20 { // and goes on to be
					time.Sleep(100 * time.Millisecond)
					g.decide(v, kbroker.PolicyPack)
				}
				if warned := strings.Count(log.String(), "level=WARN"); warned != 1 {
					t.Errorf("%d warnings, want 1:\n%s", warned, log)
				}
				time.Sleep(5 * time.Second) // what stalled has ended
				well.Store(true)
				if d := g.decide(v, kbroker.PolicyPack); d.Wanted["web"] != 7 || !slices.Equal(d.Shards, []owner{"web-1.a", "web-2.b", "web-1.a", "web-2.b"}) {
					t.Errorf("decided %+v by a policy that is in order again", d)
				}
				if g.why() == "" {
					t.Error("it is said to be in order after one decision")
				}
				time.Sleep(wellFor)
				g.decide(v, kbroker.PolicyPack)
				if why := g.why(); why != "" || !strings.Contains(log.String(), "decides again") {
					t.Errorf("it is refused for %q after %v in order", why, wellFor)
				}
			})
		})
	}
}

// TestOneCallAtATime: while one hangs no other is begun, and nobody waits for it again.
func TestOneCallAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		hang := make(chan struct{})
		g, _ := guarded(func(v View) Decision {
			if calls.Add(1) == 1 {
				<-hang
			}
			return evenly(v)
		})
		v := owned()
		for _, most := range []time.Duration{answerWithin, 0, 0} {
			began := time.Now()
			if d := g.decide(v, ""); d.Wanted["web"] != 2 || time.Since(began) > most {
				t.Errorf("decided %v after %v, want the built-in one's after %v at most", d.Wanted, time.Since(began), most)
			}
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("%d calls, want 1", n)
		}
		close(hang)
		synctest.Wait()
		if d := g.decide(v, ""); d.Wanted["web"] != 7 || calls.Load() != 2 {
			t.Errorf("decided %v in %d calls after it has ended, want its own", d.Wanted, calls.Load())
		}
	})
}

// TestTwoThatAskWaitForEachOther: neither is refused for what the other one has waited.
func TestTwoThatAskWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		under, most := 0, 0
		g, log := guarded(func(v View) Decision {
			under++
			most = max(most, under)
			time.Sleep(700 * time.Millisecond)
			under--
			return evenly(v)
		})
		v := owned()
		second := make(chan Decision)
		go func() { second <- g.decide(v, "") }()
		first := g.decide(v, "")
		if d := <-second; d.Wanted["web"] != 7 || first.Wanted["web"] != 7 || most != 1 {
			t.Errorf("decided %v and %v, %d at a time; %s", first.Wanted, d.Wanted, most, log)
		}
	})
}

// TestARefusalThatLasts: the built-in policy places the shards then, too.
func TestARefusalThatLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := true
		g, _ := guarded(func(v View) Decision {
			if bad {
				panic("no")
			}
			return evenly(v)
		})
		v := owned()
		v.Shards = []Shard{{Owner: "web-1.a"}, {Owner: "web-1.a"}, {Owner: "web-1.a"}, {Owner: "web-1.a"}}
		stays := func() bool {
			d := g.decide(v, "")
			return slices.Equal(d.Shards, []kbroker.Incarnation{"web-1.a", "web-1.a", "web-1.a", "web-1.a"})
		}
		for range 10 {
			if !stays() {
				t.Fatal("shards move for a refusal that has just begun")
			}
			time.Sleep(time.Second)
		}
		bad = false
		g.decide(v, "")
		bad = true
		for range 10 {
			if !stays() {
				t.Fatal("shards move for one that is not for long, twice")
			}
			time.Sleep(time.Second)
		}
		time.Sleep(stayFor)
		if d := g.decide(v, ""); d.Shards != nil { // nil: they are spread
			t.Errorf("after %v shards are placed %v, want spread", stayFor, d.Shards)
		}
	})
}

// TestAPolicyChangesNothingOfOthers: what it does with its view, and later with its answer.
func TestAPolicyChangesNothingOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept Decision
		g, _ := guarded(func(v View) Decision {
			kept = evenly(v)
			v.App.Services[0].Count.Max = 1000
			v.App.Services[1].Count.Max = 1000
			v.Owners[0], v.Shards[0].Owner, v.Instances[0].Ready, v.Wanted["web"] = "evil.z", "evil.z", false, 1000
			kept.Wanted["web"] = 1000
			return kept
		})
		v := owned()
		v.Instances, v.Wanted = []Instance{{Name: "web-1", Ready: true}}, counts{"web": 3}
		if d := g.decide(v, ""); d.Wanted["web"] != 2 {
			t.Errorf("decided %v by a policy that has changed the count", d.Wanted)
		}
		if want := owned(); v.App.Services[1].Count.Max != 20 || v.Owners[0] != want.Owners[0] || v.Shards[0] != want.Shards[0] || !v.Instances[0].Ready || v.Wanted["web"] != 3 {
			t.Errorf("the view is %+v", v)
		}
		g.policy = func(v View) Decision { kept = evenly(v); return kept }
		d := g.decide(v, "")
		kept.Wanted["web"], kept.Shards[0] = 1000, "evil.z"
		if d.Wanted["web"] != 7 || d.Shards[0] != "web-1.a" {
			t.Errorf("a decision became %+v", d)
		}
	})
}

// TestAnOperatorsWishIsKept: whatever an own policy places.
func TestAnOperatorsWishIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := guarded(evenly)
		v := owned()
		v.Shards[0].Wished, v.Shards[1].Wished = "web-2.b", "web-3.c" // who is out
		if d := g.decide(v, ""); d.Shards[0] != "web-2.b" || d.Shards[1] != "web-2.b" {
			t.Errorf("shards are placed %v", d.Shards)
		}
	})
}

// TestAProgramThatCrashesAgainAndAgain does not ask its policy for a while.
func TestAProgramThatCrashesAgainAndAgain(t *testing.T) {
	for crashes, asks := range map[int]bool{0: true, crashesMost - 1: true, crashesMost: false, 100: false} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			cfg := Config{Policy: evenly, Clock: func() time.Duration { return time.Since(began) + time.Hour }, Log: slog.New(slog.DiscardHandler)}
			cfg.Instance.Crashes = crashes
			g := newGuard(cfg)
			if asked := g.decide(owned(), "").Wanted["web"] == 7; asked != asks {
				t.Errorf("after %d crashes in a row it is asked: %t, want %t (%s)", crashes, asked, asks, g.why())
			}
			time.Sleep(quietFor)
			if g.decide(owned(), "").Wanted["web"] != 7 {
				t.Errorf("%v after the start it is not asked: %s", quietFor, g.why())
			}
		})
	}
}

// TestKindsOfRefusalsAreToldNowAndThen: one that is another each time fills no log.
func TestKindsOfRefusalsAreToldNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		g, log := guarded(func(View) Decision {
			if n++; n%2 == 0 {
				panic(strings.Repeat("long\n", 1000))
			}
			return Decision{Wanted: counts{"web": n + 100}}
		})
		for range 400 {
			g.decide(owned(), "")
			time.Sleep(250 * time.Millisecond)
		}
		if warned := strings.Count(log.String(), "level=WARN"); warned < 2 || warned > 21 {
			t.Errorf("%d warnings in 100 s, want 2 to 21", warned)
		}
		if len(g.why()) > maxRefused+3 || strings.Contains(g.why(), "\n") {
			t.Errorf("it is refused for %d bytes: %q", len(g.why()), g.why())
		}
	})
}
