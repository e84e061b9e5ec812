package broker

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

func TestRoutes(t *testing.T) {
	b := kbroker.CoreAddr{Host: "b", Route: "10.0.0.2:6222"}
	c := kbroker.CoreAddr{Host: "c", Route: "10.0.0.3:6222"}
	own := Config{Host: "a", RouteAddr: "10.0.0.1:6222"}
	with := func(cores ...kbroker.CoreAddr) Config { cfg := own; cfg.Cores = cores; return cfg }
	for _, r := range []struct {
		name    string
		cfg     Config
		founder bool
		joined  bool
		want    []string
	}{
		{"a founding host expects itself and the witness", own, true, false, []string{"10.0.0.1:6222", "10.0.0.1:6222"}},
		{"a founder that restarts knows the others too", with(b), true, true, []string{"10.0.0.2:6222", "10.0.0.1:6222"}},
		{"a founder that knows nobody has a route all the same", own, true, true, []string{"10.0.0.1:6222"}},
		{"a joined core has each core once, itself included", with(b, c), false, true, []string{"10.0.0.2:6222", "10.0.0.3:6222", "10.0.0.1:6222"}},
		{"its own address among the cores counts once", with(b, kbroker.CoreAddr{Host: "a", Route: "10.0.0.1:6222"}), false, true, []string{"10.0.0.2:6222", "10.0.0.1:6222"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			var got []string
			for _, u := range coreRoutes(r.cfg, identity{Founder: r.founder}, r.joined) {
				got = append(got, u.Host)
			}
			if !slices.Equal(got, r.want) {
				t.Errorf("routes %v, want %v", got, r.want)
			}
		})
	}
	// Whoever is fresh at once, besides the founder, is less than half of what
	// each of them expects.
	for known := 1; known <= maxCores; known++ {
		cfg := own
		for i := range known {
			cfg.Cores = append(cfg.Cores, kbroker.CoreAddr{Host: kbroker.HostID(fmt.Sprint("h", i)), Route: fmt.Sprintf("10.0.0.%d:6222", 10+i)})
		}
		expects := map[string]bool{}
		routes := coreRoutes(cfg, identity{}, false)
		for _, u := range routes {
			expects[u.Host] = true
		}
		if len(routes) < 2*(maxCores-1)+1 || len(expects) != known+1 {
			t.Errorf("a fresh joiner that knows %d cores has %d routes to %d of them and itself", known, len(routes), len(expects))
		}
	}
	if n := len(witnessRoutes(own, false)); n != foundRoutes {
		t.Errorf("a witness at founding expects %d members, want 2", n)
	}
	if n := len(witnessRoutes(own, true)); n != joinRoutes {
		t.Errorf("a witness at a restart expects %d members, want %d", n, joinRoutes)
	}
}

// recorder keeps the levels of what is logged.
type recorder struct {
	slog.Handler
	levels []slog.Level
}

func (r *recorder) Handle(_ context.Context, rec slog.Record) error {
	r.levels = append(r.levels, rec.Level)
	return nil
}
func (r *recorder) Enabled(context.Context, slog.Level) bool { return true }

func TestLoggerTellsNoiseFromTrouble(t *testing.T) {
	r := &recorder{}
	var fatal error
	l := &logger{log: slog.New(r), noise: coreNoise, fatal: func(err error) { fatal = err }}
	l.Noticef("Server is ready")
	l.Warnf("stream %s has NO quorum", "s")
	l.Errorf("Error trying to connect to route (attempt %d): refused", 7)
	l.Errorf("disk on fire")
	for range 3 { // anybody can have it said
		l.Errorf("%s:%d - rid:%d - TLS handshake error: EOF", "10.0.0.9", 4711, 12)
	}
	l.Fatalf("cannot listen on %d", 1)
	want := []slog.Level{slog.LevelDebug, slog.LevelWarn, slog.LevelDebug, slog.LevelError, slog.LevelWarn, slog.LevelError}
	if !slices.Equal(r.levels, want) {
		t.Errorf("levels %v, want %v", r.levels, want)
	}
	if unsaid, say := l.provocation(provoked[0], time.Now().Add(provokedEvery)); !say || unsaid != 2 {
		t.Errorf("a minute later: said %t, %d before it were not", say, unsaid)
	}
	if fatal == nil || fatal.Error() != "nats server: cannot listen on 1" {
		t.Errorf("Fatalf handed over %v", fatal)
	}
}
