package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestObjectsMove: a new version of both apps, a restart, more and fewer instances, and each
// host drained in turn: all move shards from owners that live to others. No call fails, and
// what 99 of 100 take is under 100 ms, or five times what it was before on a machine that
// is busy.
func TestObjectsMove(t *testing.T) {
	needLong(t)
	const pause, slower = 100 * time.Millisecond, 5
	c := up(t, 3)
	c.deployObjects(3)
	l := c.startCalm()
	type moved struct {
		what     string
		from, to time.Time
	}
	var moves []moved
	move := func(what string, do func()) {
		from := time.Now()
		do()
		<-time.After(2 * time.Second) // shards are spread anew when instances are there
		moves = append(moves, moved{what, from, time.Now()})
		c.objectsReady(3)
	}
	move("nothing", func() { <-time.After(between) })
	for round := range 2 {
		move("a deploy", func() { c.deployObjects(3, fmt.Sprintf("env: {ROUND: %q}", fmt.Sprint(round))) })
	}
	move("a restart", func() {
		for _, app := range objectApps {
			c.must("restart", app)
		}
	})
	move("6 instances, then 3", func() {
		for _, count := range []string{"6", "3"} {
			for _, app := range objectApps {
				c.must("scale", app, count)
			}
		}
	})
	for _, host := range []string{"h1", "h2", "h3"} {
		move("a drain", func() {
			c.must("drain", host, "--timeout", "60s")
			c.must("undrain", host)
		})
	}
	_, n := l.endWithoutFailure()
	quiet := n.p99(moves[0].from, moves[0].to)
	for _, m := range moves {
		p99 := n.p99(m.from, m.to)
		t.Logf("RESULT %s: 99 of 100 calls took %v at most, the longest %v", m.what, p99, n.pause(m.from))
		if p99 > max(pause, slower*quiet) {
			t.Errorf("%s: 99 of 100 calls took %v at most, want %v (%v before)", m.what, p99, max(pause, slower*quiet), quiet)
		}
	}
}
