package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

// mostUsed is how many instance-seconds a day of examples/rooms may use, of those that its
// players need at least.
const mostUsed = 1.5

// TestADayInAMinute: players of examples/rooms come and go as in a day, and instances with
// them. Each gets a seat, and leaves.
func TestADayInAMinute(t *testing.T) {
	needLong(t)
	for _, c := range []struct{ name, allocator, says string }{
		{"by the built-in policy", "", "ready beyond"},
		{"by its own policy", "allocator: {run: bin/policy, build: go build -o bin/policy ./policy, policy: pack}", "to be ready beside"},
	} {
		t.Run(c.name, func(t *testing.T) { aDay(t, c.allocator, c.says) })
	}
}

// aDay lives one; allocator is a line of the spec in place of its own, if not empty, and says is
// a part of the reason of each decision.
func aDay(t *testing.T, allocator, says string) {
	c := up(t, 3)
	c.must("deploy", c.example("rooms", func(spec string) string {
		at := strings.Index(spec, "allocator:")
		if at < 0 {
			t.Fatalf("examples/rooms names no policy: %s", spec)
		}
		if allocator != "" {
			spec = spec[:at] + allocator + "\n"
		}
		return spec
	}))
	dir := t.TempDir()
	buildInto(t, dir, "day", "../examples/rooms/load")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	load := c.client(ctx, filepath.Join(dir, "day"), "-duration", "60s")
	var stdout, stderr bytes.Buffer
	load.Stdout, load.Stderr = &stdout, &stderr
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- load.Wait() }()
	// Beside what the load counts, which are those that are ready: all that have a process.
	const every = 2 * time.Second
	tick := time.NewTicker(every)
	defer tick.Stop()
	running, most, last := 0.0, 0, time.Now()
	var err error
	for over := false; !over; {
		select {
		case err = <-ended:
			over = true
		case <-tick.C:
			rows, err := list[kbroker.InstanceRow](c, "ps", "rooms")
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, r := range rows {
				if r.Service == "rooms" && r.PID != nil {
					n++
				}
			}
			running += float64(n) * time.Since(last).Seconds()
			most, last = max(most, n), time.Now()
		}
	}
	var r struct {
		Joined  int     `json:"joined"`
		Failed  int     `json:"failed"`
		P99     float64 `json:"p99_ms"`
		Peak    int     `json:"peak"`
		Used    float64 `json:"used_instance_s"`
		Minimum float64 `json:"minimum_instance_s"`
		Ratio   float64 `json:"ratio"`
	}
	if unread := json.Unmarshal(stdout.Bytes(), &r); unread != nil {
		t.Fatalf("the load printed %q (%v): %s", stdout.String(), err, stderr.String())
	}
	t.Logf("load: %s", bytes.TrimSpace(stdout.Bytes()))
	t.Logf("RESULT a day in a minute: %d joined, %d at a time at most, %d failed, p99 %.0f ms; %.0f instance-seconds of %.0f that are needed, %.2f times as many (%.0f with those that start and leave), %d at most",
		r.Joined, r.Peak, r.Failed, r.P99, r.Used, r.Minimum, r.Ratio, running, most)
	if err != nil || r.Failed > 0 || r.Joined < r.Peak || r.Ratio > mostUsed || r.Ratio < 1 {
		t.Errorf("%d failed, %.2f times as many instance-seconds as are needed, want 1 to %v (%v): %s", r.Failed, r.Ratio, mostUsed, err, stderr.String())
	}
	events, err := list[kbroker.Event](c, "events", "--app", "rooms", "--since", "2m")
	if err != nil {
		t.Fatal(err)
	}
	decided := 0
	for _, e := range events {
		if e.Kind == kbroker.EventDemand && strings.Contains(e.Message, says) {
			decided++
		}
		if t.Failed() {
			t.Log(e.Kind, e.Message)
		}
	}
	if decided == 0 {
		t.Errorf("no decision of the policy that is to decide, which says %q", says)
	}
}
