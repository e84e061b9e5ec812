package ownership

import (
	"math"
	"time"
)

// proc is a process of the simulated world: it has a clock, may be paused, and dies.
type proc struct {
	w      *world
	name   string
	rate   float64
	offset time.Duration
	dead   bool
	paused bool
	held   [ways][]func() // what came while it was paused
	due    []func()       // what was due by its clock meanwhile

	frozen            bool // its clock stands still
	frozenAt          time.Duration
	melting           []func()      // what was to be due meanwhile
	cutFrom, cutUntil time.Duration // when it is cut from the store
}

// way is how something comes to a process: what comes by one way stays in its order, by
// two it does not.
type way int

const (
	byDecision way = iota // of its own, before all else
	byRequest
	byAnswer // of the store
	byAnnouncement
	ways
)

func (w *world) proc(name string) *proc {
	p := &proc{w: w, name: name, rate: 1, offset: w.between(0, time.Hour)}
	if w.f.drift {
		wrong := w.r.Float64() - 0.5
		if w.f.often {
			wrong = math.Copysign(0.5, wrong)
		}
		p.rate += wrong / 4.5 // more than any clock, less than the margin
	}
	return p
}

func (p *proc) clock() time.Duration { return p.offset + time.Duration(float64(p.w.now)*p.rate) }

func (p *proc) do(by way, f func()) {
	switch {
	case p.dead:
	case p.paused:
		p.held[by] = append(p.held[by], f)
	default:
		f()
	}
}

// after is by the clock of the process.
func (p *proc) after(d time.Duration, f func()) { p.at(p.clock()+d, f) }

func (p *proc) at(due time.Duration, f func()) {
	p.w.after(time.Duration(float64(due-p.clock())/p.rate), func() {
		switch {
		case p.frozen:
			p.melting = append(p.melting, func() { p.at(due, f) })
		case due-p.clock() > time.Microsecond: // the clock stood still meanwhile
			p.at(due, f)
		case p.paused:
			p.due = append(p.due, f)
		default:
			p.do(byDecision, f)
		}
	})
}

func (p *proc) pause(d time.Duration) {
	if p.dead || p.paused {
		return
	}
	p.w.say("%s is paused for %v", p.name, d)
	p.paused = true
	p.w.after(d, p.resume)
}

func (p *proc) resume() {
	if !p.paused {
		return
	}
	p.w.say("%s goes on", p.name)
	p.paused = false
	p.thaw()
	held, due := p.held, p.due
	p.held, p.due = [ways][]func(){}, nil
	for _, f := range due { // who is first is not said
		p.w.after(p.w.between(0, 20*time.Millisecond), func() { p.do(byDecision, f) })
	}
	for _, by := range append([]int{int(byDecision)}, p.w.r.Perm(int(ways))...) {
		for _, f := range held[by] {
			p.do(way(by), f) // it may be paused again: then the rest waits
		}
		held[by] = nil
	}
}
