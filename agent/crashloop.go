package agent

import (
	"slices"
	"time"
)

const (
	// An instance that crashes loopCrashes times within loopWindow is in a crash
	// loop; one that comes from a host on which it was in one, after loopAgain here.
	loopCrashes = 5
	loopAgain   = 2
	loopWindow  = 60 * time.Second
)

// crashLoop is what is kept of an instance's crashes, until it was ready for
// healthyAfter.
type crashLoop struct {
	// Failing: it is in a crash loop.
	Failing bool `json:"failing,omitempty"`
	// Elsewhere: it comes from another host, where it was in one.
	Elsewhere bool `json:"elsewhere,omitempty"`
	// At are the times of the last crashes, oldest first, on the boottime clock of
	// Boot; those of earlier boots are below zero.
	At   []time.Duration `json:"at,omitempty"`
	Boot string          `json:"boot,omitempty"`
}

// crashed is the loop after one more crash at now.
func (l crashLoop) crashed(now time.Duration) crashLoop {
	at := append(slices.Clone(l.At), now)
	l.At = at[max(0, len(at)-loopCrashes):]
	need := loopCrashes
	if l.Elsewhere {
		need = loopAgain
	}
	if n := len(l.At); n >= need && now-l.At[n-need] <= loopWindow {
		l.Failing = true
	}
	return l
}

// in is the loop as an agent of that boot goes on with it. How long the machine was
// down nobody can say who trusts no wall clock: that time does not count, as if the
// last crash was the last moment of the boot before.
func (l crashLoop) in(boot string) crashLoop {
	if l.Boot != boot && len(l.At) > 0 {
		last := l.At[len(l.At)-1]
		l.At = slices.Clone(l.At)
		for i := range l.At {
			l.At[i] -= last
		}
	}
	l.Boot = boot
	return l
}
