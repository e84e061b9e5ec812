package ownership

import (
	"slices"
	"time"
)

// trouble makes things go wrong now and then.
func (w *world) trouble() {
	if w.healing {
		return
	}
	owner := w.owners[len(w.owners)-1-w.r.IntN(min(len(w.owners), 5))]
	switch x := w.r.IntN(100); {
	case w.f.crash && x < 12:
		w.kill(owner)
	case w.f.solo && x < 30:
		if !slices.ContainsFunc(w.owners, func(o *simOwner) bool { return o.paused && !o.dead }) {
			owner.pause(w.between(650*time.Millisecond, 1200*time.Millisecond))
		}
	case w.f.pause && x < 30:
		owner.pause(w.between(0, 1200*time.Millisecond))
	case w.f.pause && x < 36:
		w.allocs[w.r.IntN(2)].pause(w.between(0, 1200*time.Millisecond))
	case w.f.apart && x >= 60 && x < 66:
		owner.part(w.now, w.between(0, 1200*time.Millisecond))
	case w.f.frozen && x >= 66 && x < 72:
		owner.freeze(w.between(100*time.Millisecond, 1500*time.Millisecond))
	case w.f.leaves && x >= 90:
		w.leave(owner)
	case w.f.outage && x < 40 && !w.store.away:
		w.say("the store is away")
		w.store.away = true
		w.after(w.between(0, 500*time.Millisecond), func() { w.store.away = false })
	case !ruleUnchangedTerm && x < 60:
		for _, a := range w.allocs { // a wall clock jumps
			for _, l := range a.a.leases {
				l.since -= time.Minute
			}
		}
	}
	w.after(w.between(0, 120*time.Millisecond), w.trouble)
}

// kill ends a process. Its agent, if it is there, says so when it has waited for it, and
// starts the next.
func (w *world) kill(o *simOwner) {
	if o.dead {
		return
	}
	w.say("%s is killed", o.name)
	o.end()
	w.ends = append(w.ends, w.now)
	if !w.f.agentless || w.chance(0.5) {
		w.after(w.between(time.Millisecond, 300*time.Millisecond), func() {
			for _, a := range w.allocs {
				w.after(w.hop(), func() { a.do(byAnnouncement, func() { a.a.Reaped(o.me); a.stirred() }) })
			}
		})
	}
	w.after(w.between(0, 400*time.Millisecond), func() { w.start(o.host) })
}

// leave has a process say that it leaves. It ends when it owns nothing, or is killed some
// time later, as one that is told to stop.
func (w *world) leave(o *simOwner) {
	if o.dead {
		return
	}
	w.say("%s is to leave", o.name)
	ends := w.now + w.between(100*time.Millisecond, time.Second)
	o.do(byDecision, func() {
		o.o.Leave(o.clock())
		o.effects()
	})
	var look func()
	look = func() {
		if !o.dead && w.now < ends && (len(o.o.Owned()) > 0 || !o.o.told) {
			w.after(20*time.Millisecond, look)
			return
		}
		w.kill(o)
	}
	w.after(20*time.Millisecond, look)
}

// part cuts a process from the store for a time.
func (p *proc) part(from, d time.Duration) {
	p.w.say("%s is cut from the store for %v", p.name, d)
	p.cutFrom, p.cutUntil = from, from+d
}

// apart reports whether it is.
func (p *proc) apart() bool { return !p.w.healing && p.w.now >= p.cutFrom && p.w.now < p.cutUntil }

// freeze pauses a process, and its clock, as that of a machine that is paused from outside.
func (p *proc) freeze(d time.Duration) {
	if p.dead || p.paused {
		return
	}
	p.frozen, p.frozenAt = true, p.w.now
	p.pause(d)
}

// thaw has the clock go on from where it was.
func (p *proc) thaw() {
	if p.frozen {
		p.frozen, p.w.thawed = false, p.w.now
		p.offset -= time.Duration(float64(p.w.now-p.frozenAt) * p.rate)
		for _, again := range p.melting {
			again()
		}
		p.melting = nil
	}
}

// mayBeStale reports whether a clock stood still so lately that two may answer: who was
// paused, until its term is over, or it has learnt that the lease is revoked, and who has
// taken over. A read may show what was so before then, and what the one has refused the
// other may do.
func (w *world) mayBeStale() bool {
	term := simTimes.HolderStops + simTimes.HolderStops/5 // by a slow clock, and the way of the answer
	if w.f.slowNet {
		term += 300 * time.Millisecond
	}
	return w.thawed != 0 && w.now < w.thawed+term
}

// unheard reports whether an announcement is lost.
func (w *world) unheard() bool {
	return w.f.lost && w.chance(w.rare(0.1)) || w.f.unheard && w.chance(0.5)
}

// renewing is what happens to who has sent a renewal of its lease: it hears the answer
// late, and is cut from the store then.
func (o *simOwner) renewing() {
	if o.w.f.apart && o.w.chance(0.04) {
		d := o.w.between(30*time.Millisecond, 450*time.Millisecond)
		o.pause(d)
		o.part(o.w.now+d, o.w.between(100*time.Millisecond, 900*time.Millisecond))
	}
}

// parting is what happens when an owner has sent a release.
func (o *simOwner) parting(r Release) {
	w := o.w
	switch {
	case !w.f.partings:
	case w.chance(0.15):
		w.kill(o)
	case w.chance(0.15):
		for _, next := range w.owners {
			if next.me == r.To {
				w.kill(next)
			}
		}
	}
}
