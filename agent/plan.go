package agent

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// healthyAfter is how long a process must have been ready for its earlier
	// crashes to be forgotten.
	healthyAfter = 60 * time.Second
	// backoffFirst doubles up to backoffMax; the first restart is immediate.
	backoffFirst = 200 * time.Millisecond
	backoffMax   = 30 * time.Second
	// backoffJitter is the share by which a delay may be longer or shorter.
	backoffJitter = 0.1

	// Output of ended instances is kept for keepEnded, of at most maxEnded.
	keepEnded = time.Hour
	maxEnded  = 50
)

// phase is where an instance is in its life on this host.
//
//	idle -> launching -> up -> stopping -> stopped -> tidying -> ended -> tidying -> (forgotten)
//	  ^--------+----------'
//
// A crash leads from launching and up back to idle; a stopped or ended instance
// that is wanted again is launched.
type phase int

const (
	phaseIdle      phase = iota // wanted, no process: to be started when due
	phaseLaunching              // artifact on its way, or being forked
	phaseUp                     // the process runs
	phaseStopping               // asked to leave; or its launch is being called off
	phaseStopped                // the process is gone, and super has to hear it
	phaseTidying                // files are being removed
	phaseEnded                  // only its output is left
)

// have is an instance as plan sees it. Times are on the boottime clock.
type have struct {
	Key        kbroker.StatusKey
	Phase      phase
	Epoch      uint64
	Template   string // empty: not known, the record was lost
	Version    int
	Tombstone  bool          // stopped by a tombstone
	NextStart  time.Duration // phaseIdle
	ReadySince time.Duration // phaseUp: 0 when not ready
	Crashes    int
	EndedAt    time.Duration // phaseEnded
}

// verb is what to do with an instance.
type verb int

const (
	doStart    verb = iota + 1 // launch it from the placement
	doStop                     // signal, grace, kill; or call off the launch
	doUpdate                   // the placement changed in nothing that the process is made of
	doConclude                 // a tombstone for what does not run: say so
	doSettle                   // healthy long enough: forget the crashes
	doForget                   // super has dropped it: nothing more to say
	doPurge                    // remove what is left of it
)

// action is one step towards the view.
type action struct {
	Do  verb
	Key kbroker.StatusKey
	// Placement is nil when the view has none.
	Placement *kbroker.Placement
	Reason    string // of a stop
}

// plan returns what to do now so that the host runs what its placements say,
// sorted by instance, and when to plan again even if nothing happens (0: never).
// Pure, and the same answer whatever the order of its arguments.
//
// proven says that the placements are a complete view, received since the bus
// was last connected. Otherwise they are the last that is known, and nothing is
// started that never ran here, and nothing is stopped because it is not there.
func plan(placements []kbroker.Placement, proven bool, instances []have, now time.Duration) ([]action, time.Duration) {
	p := planner{proven: proven, now: now}
	wanted := make(map[kbroker.StatusKey]*kbroker.Placement, len(placements))
	for i := range placements {
		wanted[keyOf(placements[i])] = &placements[i]
	}
	byKey := make(map[kbroker.StatusKey]have, len(instances))
	for _, h := range instances {
		byKey[h.Key] = h
	}
	for k, w := range wanted {
		h, known := byKey[k]
		switch {
		case w.Stop:
			p.tombstone(w, h, known)
		case !known || h.Phase == phaseEnded:
			if proven {
				p.do(doStart, k, w, "")
			}
		default:
			p.wanted(w, h)
		}
	}
	for k, h := range byKey {
		if h.Phase == phaseUp && h.Crashes > 0 && h.ReadySince > 0 && p.due(h.ReadySince+healthyAfter) {
			p.do(doSettle, k, wanted[k], "")
		}
		if wanted[k] == nil && proven {
			p.unwanted(h)
		}
	}
	p.purge(byKey, wanted)
	slices.SortFunc(p.actions, func(a, b action) int {
		return cmp.Or(cmp.Compare(a.Key.Tenant, b.Key.Tenant), cmp.Compare(a.Key.Instance, b.Key.Instance), cmp.Compare(a.Do, b.Do))
	})
	return p.actions, p.wake
}

type planner struct {
	proven  bool
	now     time.Duration
	actions []action
	wake    time.Duration
}

func (p *planner) do(v verb, k kbroker.StatusKey, w *kbroker.Placement, reason string) {
	p.actions = append(p.actions, action{Do: v, Key: k, Placement: w, Reason: reason})
}

// due reports whether t has come, and otherwise notes to plan again then.
func (p *planner) due(t time.Duration) bool {
	if p.now >= t {
		return true
	}
	if p.wake == 0 || t < p.wake {
		p.wake = t
	}
	return false
}

func (p *planner) tombstone(w *kbroker.Placement, h have, known bool) {
	if !known {
		p.do(doConclude, keyOf(*w), w, "")
		return
	}
	if w.Epoch < h.Epoch {
		return // older than what was acted on
	}
	switch h.Phase {
	case phaseIdle, phaseEnded:
		p.do(doConclude, h.Key, w, "")
	case phaseStopped:
		if h.Epoch != w.Epoch || !h.Tombstone {
			p.do(doConclude, h.Key, w, "")
		}
	case phaseLaunching, phaseUp:
		p.do(doStop, h.Key, w, cmp.Or(w.StopReason, "stopped by the plan"))
	case phaseStopping, phaseTidying:
	}
}

func (p *planner) wanted(w *kbroker.Placement, h have) {
	if w.Epoch < h.Epoch {
		return // a placement older than the process demands nothing of it
	}
	same := w.Epoch == h.Epoch && (w.Template == h.Template || h.Template == "")
	switch h.Phase {
	case phaseIdle:
		if !same || p.due(h.NextStart) {
			p.do(doStart, h.Key, w, "")
		} else if w.Version != h.Version || w.Template != h.Template {
			p.do(doUpdate, h.Key, w, "")
		}
	case phaseStopped:
		p.do(doStart, h.Key, w, "")
	case phaseLaunching, phaseUp:
		switch {
		case !same:
			p.do(doStop, h.Key, w, "replaced by a newer placement")
		case w.Version != h.Version || w.Template != h.Template:
			p.do(doUpdate, h.Key, w, "")
		}
	case phaseStopping, phaseTidying, phaseEnded:
	}
}

func (p *planner) unwanted(h have) {
	switch h.Phase {
	case phaseLaunching, phaseUp:
		p.do(doStop, h.Key, nil, "no longer placed on this host")
	case phaseIdle, phaseStopped:
		p.do(doForget, h.Key, nil, "")
	case phaseStopping, phaseTidying, phaseEnded:
	}
}

// purge removes ended instances that are old, or too many.
func (p *planner) purge(byKey map[kbroker.StatusKey]have, wanted map[kbroker.StatusKey]*kbroker.Placement) {
	var ended []have
	for h := range maps.Values(byKey) {
		if h.Phase == phaseEnded && wanted[h.Key] == nil {
			ended = append(ended, h)
		}
	}
	slices.SortFunc(ended, func(a, b have) int {
		return cmp.Or(cmp.Compare(b.EndedAt, a.EndedAt), cmp.Compare(a.Key.Tenant, b.Key.Tenant), cmp.Compare(a.Key.Instance, b.Key.Instance))
	})
	for i, h := range ended {
		if i >= maxEnded || p.due(h.EndedAt+keepEnded) {
			p.do(doPurge, h.Key, nil, "")
		}
	}
}

// restartDelay is how long an instance waits that has now crashed so many times
// in a row; random, from 0 to 1, spreads those that crashed together.
func restartDelay(crashes int, random float64) time.Duration {
	if crashes <= 1 {
		return 0
	}
	d := min(float64(backoffFirst)*math.Pow(2, float64(crashes-2)), float64(backoffMax))
	return time.Duration(d * (1 + backoffJitter*(2*random-1)))
}
