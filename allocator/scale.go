package allocator

import (
	"fmt"
	"math"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// tolerance is how far the load may be from its target, as a part of it, before the
	// number of instances follows: that of a Kubernetes HorizontalPodAutoscaler
	// (--horizontal-pod-autoscaler-tolerance).
	tolerance = 0.1
	// more is what the load of an instance counts for that refuses more than a third of the
	// requests, and is nearly full. How much more there is cannot be told: callers send what is
	// refused again and again. Where fewer are refused they came at once by chance, and another
	// instance has answered them: of 8 at a time that are 0.7 busy, one in ten (Erlang's loss
	// formula).
	more = 2
	// nearlyFull is how busy such an instance is at least: one that does few at a time refuses
	// that many by chance at its target, and is not that busy.
	nearlyFull = 0.75
)

// target is one that a service is scaled by: how much there is of it in all, and how much an
// instance is to have.
type target struct {
	name  string
	total float64
	each  float64
	exact bool // no part of an instance may be missing
}

// need is how many instances of a service its load needs, and why. Pure.
//
// The load of all together, by what one is to have, is what is needed, whatever the number
// of those that bear it now: while some start, the answer is the same. What those that say
// nothing of their load have is taken to be the average; where nobody says anything the
// number stays as it is.
func need(s kbroker.Service, instances []Instance, exact ...target) (n int, why string) {
	scale := kbroker.Scale{}
	if s.Scale != nil {
		scale = *s.Scale
	}
	if scale.Busy == 0 && scale.CPU == 0 && scale.Requests == 0 && scale.Mailbox == 0 && scale.Objects == 0 {
		scale.Busy = kbroker.DefaultBusy
	}
	there, ready, known, measured := 0, 0, 0, 0
	var sum Load
	for _, i := range instances {
		if !i.Leaving {
			there++
		}
		if !i.Ready {
			continue
		}
		ready++
		l := i.Load
		sum.Requests += l.Requests
		if l.Measured {
			measured++
			sum.CPU += l.CPU
		}
		if !l.Known {
			continue
		}
		known++
		busy := l.Busy
		if l.Refused > l.Requests/3 && l.Busy >= nearlyFull {
			busy *= more
		}
		sum.Busy += busy
		sum.Waiting += l.Waiting
		sum.Objects += l.Objects
	}
	// of is a sum over all that are ready, of which so many are known.
	of := func(sum float64, known int) float64 { return sum * float64(ready) / float64(max(known, 1)) }
	n, why = there, "no load is known"
	first := true
	type knownTarget struct {
		target
		known int
	}
	targets := []knownTarget{
		{target{name: "busy", total: of(sum.Busy, known), each: scale.Busy}, known},
		{target{name: "cpu", total: of(sum.CPU, measured) / max(s.Resources.CPU, math.SmallestNonzeroFloat64), each: scale.CPU}, measured},
		{target{name: "requests/s", total: sum.Requests, each: scale.Requests}, known + measured},
		{target{name: "mailbox", total: of(float64(sum.Waiting), known), each: scale.Mailbox}, known},
		{target{name: "objects", total: of(float64(sum.Objects), known), each: scale.Objects}, known},
	}
	for _, t := range exact {
		targets = append(targets, knownTarget{t, 1})
	}
	for _, t := range targets {
		if t.each <= 0 || t.known == 0 {
			continue
		}
		if by := t.needs(ready); first || by > n {
			n, why = by, fmt.Sprintf("%s is %s of %s on each of %d", t.name, short(t.total/float64(max(ready, 1))), short(t.each), max(ready, 1))
		}
		first = false
	}
	if len(s.Objects) > 0 {
		n = max(n, 1) // somebody has to own them
	}
	switch {
	case first: // those that are there may be the buffer: it does not grow by itself
		n = max(n, scale.Buffer)
	case scale.Buffer > 0:
		n += scale.Buffer
		why += fmt.Sprintf(", and %d ready beyond", scale.Buffer)
	}
	return n, why
}

// needs is how many instances a target needs, of which so many bear the load.
func (t target) needs(ready int) int {
	if off := t.total/(t.each*float64(ready)) - 1; math.Abs(off) <= tolerance && !t.exact {
		return ready
	}
	// What is a rounding error above a whole number needs no further instance.
	return int(min(math.Ceil(t.total/t.each-1e-9), math.MaxInt32))
}

// short is a number with as many digits as say something.
func short(x float64) string {
	if x < 10 {
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

// steady has the number of instances of a service fall only when fewer were needed for a
// while: it is the highest need of that time. Not safe for concurrent use.
type steady struct {
	needs []needed // of which each was higher than all later ones
}

type needed struct {
	at time.Duration
	n  int
}

// take notes what is needed now, and returns what is to be there.
func (s *steady) take(now time.Duration, n int, down time.Duration) int {
	for len(s.needs) > 0 && s.needs[len(s.needs)-1].n <= n {
		s.needs = s.needs[:len(s.needs)-1]
	}
	s.needs = append(s.needs, needed{now, n})
	for len(s.needs) > 1 && now-s.needs[0].at >= down {
		// It was needed until the next one was noted.
		s.needs = s.needs[1:]
	}
	return s.needs[0].n
}
