package agent

import (
	"cmp"
	"fmt"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/stamp"
)

// Readiness may follow from whatever a check says. That a process is killed may
// follow only from what is certain on this host, never from what did not come over
// the bus: a fault of the network would end applications.

const (
	// A process that is not ready is looked at every probeStarting, and when it has
	// not become ready in probePatience, every probeWaiting: a check by a program so
	// from the begin.
	probeStarting = 50 * time.Millisecond
	probePatience = 5 * time.Second
	probeWaiting  = 500 * time.Millisecond
	// probeInterval is for specs that do not say how often a ready process is
	// looked at.
	probeInterval = time.Second
)

// outcome is what a look at a process has found.
type outcome int

const (
	untold     outcome = iota // nothing: nobody could look
	yes                       // it answers that it is well
	no                        // it answers that it is not
	unanswered                // no answer, in time
	unheard                   // no answer over the bus, of one that shows on this host that it runs
)

// look is one look at a process.
type look struct {
	said outcome
	why  string        // of what is not yes, for people
	at   time.Duration // when it ended; boottime
}

// verdict is what follows of the looks at a process.
type verdict struct {
	ready bool
	kill  string // why it is to be killed; empty: it is not
}

// health judges one incarnation by its readiness check, and how it lives, where
// that is seen by the same check. Pure.
//
//	starting --successes--> ready <--successes/failures--> not ready
//	    `--start--> killed <--what is not answered------------'
type health struct {
	spec  kbroker.Health // its defaults filled in
	since time.Duration  // from when its time to get ready counts
	// ready: now; been: at any time.
	ready, been bool
	// good, bad and silent are the last looks in a row that said yes, that did not,
	// and that were not answered.
	good, bad, silent int
}

func newHealth(spec kbroker.Health, now time.Duration) *health {
	spec.Check = withDefaults(spec.Check)
	spec.Successes = max(1, spec.Successes)
	spec.Start = startOf(spec)
	return &health{spec: spec, since: now}
}

func withDefaults(c kbroker.Check) kbroker.Check {
	if c.Interval <= 0 {
		c.Interval = probeInterval
	}
	if c.Timeout <= 0 {
		c.Timeout = kbroker.DefaultCheckTimeout
	}
	if c.Failures <= 0 {
		c.Failures = kbroker.DefaultFailures
	}
	return c
}

// anew forgets what was counted: whoever looks was paused, and so perhaps was all
// that it looks at.
func (h *health) anew(now time.Duration) { h.since, h.good, h.bad, h.silent = now, 0, 0, 0 }

// sees takes a look.
func (h *health) sees(l look) verdict {
	switch l.said {
	case untold:
		h.since = l.at
		return verdict{ready: h.ready}
	case yes:
		h.good, h.bad, h.silent = h.good+1, 0, 0
		if h.good >= h.spec.Successes {
			h.ready, h.been = true, true
		}
	case no:
		h.good, h.bad, h.silent = 0, h.bad+1, 0
	case unanswered:
		h.good, h.bad, h.silent = 0, h.bad+1, h.silent+1
	case unheard:
		h.good, h.bad, h.silent = 0, h.bad+1, 0
		h.since = l.at
	}
	// An SDK that says no leaves, or is about to: nobody waits for it to say so again.
	if h.bad >= h.spec.Failures || l.said == no && h.spec.Ready == kbroker.HealthSDK {
		h.ready = false
	}
	return verdict{ready: h.ready, kill: h.doom(l)}
}

// doom says why the process has to end after a look, if it has.
func (h *health) doom(l look) string {
	switch {
	case !h.been && l.at-h.since >= h.spec.Start:
		return fmt.Sprintf(kbroker.KilledText+"not ready within %v (%s)", h.spec.Start, l.of(h.spec.Ready))
	case h.been && h.silent >= kbroker.DefaultLiveFailures && h.spec.Live == nil && h.spec.Ready != kbroker.HealthSDK:
		return fmt.Sprintf(kbroker.KilledText+"hung, %d checks in a row were not answered (%s)", h.silent, l.of(h.spec.Ready))
	}
	return ""
}

// of is what a check of that way has found, in words.
func (l look) of(way string) string {
	if l.why == "" {
		return way
	}
	return way + ": " + l.why
}

// pause is the time from the begin of a look to that of the next one.
func (h *health) pause(sinceChange time.Duration) time.Duration {
	quick := h.spec.Ready == kbroker.HealthSDK || !h.been
	if h.ready || !quick {
		return h.spec.Interval
	}
	if sinceChange < probePatience && h.spec.Ready != kbroker.HealthExec {
		return probeStarting
	}
	return min(probeWaiting, h.spec.Interval)
}

// life judges one incarnation by a check of its own, which counts from its first
// yes on, or from when the process had to be ready. Pure.
type life struct {
	check  kbroker.Check // its defaults filled in
	start  time.Duration
	since  time.Duration // from when start counts
	counts bool
	bad    int
}

func newLife(h kbroker.Health, now time.Duration) *life {
	return &life{check: withDefaults(*h.Live), start: startOf(h), since: now}
}

// startOf is how long a process has to get ready.
func startOf(h kbroker.Health) time.Duration { return cmp.Or(h.Start, kbroker.DefaultStart) }

// anew forgets what was counted.
func (l *life) anew(now time.Duration) { l.since, l.bad = now, 0 }

// sees takes a look and says why the process has to end, if it has.
func (l *life) sees(k look) (kill string) {
	switch k.said {
	case untold, unheard:
		l.since = k.at
	case yes:
		l.counts, l.bad = true, 0
	case no, unanswered:
		if l.counts = l.counts || k.at-l.since >= l.start; l.counts {
			l.bad++
		}
	}
	if l.bad < l.check.Failures {
		return ""
	}
	return fmt.Sprintf(kbroker.KilledText+"hung, %d checks in a row failed (%s)", l.bad, k.of(l.check.Ready))
}

// signs judges one incarnation by the file that its SDK touches. Pure: that the
// file changes counts, what time it shows does not.
type signs struct {
	shown bool
	last  stamp.Stamp
	still int // looks in a row that saw no change
}

// sees takes a look at the file; there is none while shown is false: an SDK that
// does not show that it lives, or not any more. heard is false when the looks
// before are no measure: whoever looks was paused, or its own signs do not reach
// the disk either.
func (s *signs) sees(file stamp.Stamp, shown, heard bool) (kill string) {
	if !shown || !heard || !s.shown || file != s.last {
		s.shown, s.last, s.still = shown, file, 0
		return ""
	}
	if s.still++; s.still < kbroker.DefaultLiveFailures {
		return ""
	}
	return fmt.Sprintf(kbroker.KilledText+"hung, %d looks in a row saw no sign of life (%s)", s.still, kbroker.HealthSDK)
}
