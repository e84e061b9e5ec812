package agent

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/pulse"
	"github.com/kbroker/kbroker/internal/stamp"
	"github.com/kbroker/kbroker/state"
)

// lateAfter is how much later than it should be a look comes of whoever was
// paused: this agent, this host, the machine below it.
const lateAfter = 2 * time.Second

// attend looks at a process, in the ways that its spec asks for, until ctx ends. It
// tells what has changed; after a verdict that it is to be killed, who said so has
// ended.
func (a *Agent) attend(ctx context.Context, r record, tell func(verdict)) {
	h, now := r.Placement.Spec.Health, state.Boottime()
	if h.Ready != kbroker.HealthAlive {
		a.work.Go(func() { a.attendHealth(ctx, r, newHealth(h, now), tell) })
	}
	switch {
	case h.Live == nil && h.Ready == kbroker.HealthSDK:
		a.work.Go(func() { a.attendSigns(ctx, r, tell) })
	case h.Live != nil && h.Live.Ready != kbroker.HealthOff:
		a.work.Go(func() { a.attendLife(ctx, r, newLife(h, now), tell) })
	}
}

func (a *Agent) attendHealth(ctx context.Context, r record, h *health, tell func(verdict)) {
	p, changed := newPacer(), state.Boottime()
	for ctx.Err() == nil {
		was := h.ready
		l := a.look(ctx, r, h.spec.Check)
		v := h.sees(l)
		if ctx.Err() != nil {
			return
		}
		a.sampler.checked(r, h.bad, l.of(h.spec.Ready))
		if v.ready != was || v.kill != "" {
			changed = state.Boottime()
			tell(v)
		}
		if v.kill != "" {
			return
		}
		d := h.pause(state.Boottime() - changed)
		if v.ready && !was {
			d = d/2 + rand.N(d/2+1) // who got ready together is not looked at together for ever
		}
		if p.next(ctx, d) {
			h.anew(state.Boottime())
		}
	}
}

func (a *Agent) attendLife(ctx context.Context, r record, l *life, tell func(verdict)) {
	for p := newPacer(); ctx.Err() == nil; {
		found := a.look(ctx, r, l.check)
		kill := l.sees(found)
		a.sampler.lives(r, l.bad, found.of(l.check.Ready))
		if kill != "" && ctx.Err() == nil {
			tell(verdict{kill: kill})
			return
		}
		if p.next(ctx, l.check.Interval) {
			l.anew(state.Boottime())
		}
	}
}

func (a *Agent) attendSigns(ctx context.Context, r record, tell func(verdict)) {
	path, late := a.alivePath(r), false
	every := max(withDefaults(r.Placement.Spec.Health.Check).Interval, pulse.Every)
	for p, s := newPacer(), (signs{}); ctx.Err() == nil; late = p.next(ctx, every) {
		var file stamp.Stamp
		info, err := os.Lstat(path)
		if err == nil {
			file = stamp.Of(info)
		}
		if kill := s.sees(file, err == nil, !late && a.own.steady(state.Boottime())); kill != "" {
			tell(verdict{kill: kill})
			return
		}
	}
}

// alivePath is where the SDK of a process shows that it lives.
func (a *Agent) alivePath(r record) string {
	return filepath.Join(a.cfg.Dir.home(keyOf(r.Placement)), runDir, pulse.File)
}

// ownPulse is that of this agent, on the disk on which instances have theirs: while
// it does not get through, nobody else's need to.
type ownPulse struct {
	last atomic.Int64 // boottime
}

func (o *ownPulse) run(ctx context.Context, dir string) {
	pulse.Beat(ctx, filepath.Join(dir, pulse.File), time.Now(), func() { o.last.Store(int64(state.Boottime())) })
}

func (o *ownPulse) steady(now time.Duration) bool {
	return now-time.Duration(o.last.Load()) < pulse.Every+lateAfter
}

// lookGrid is on what times looks begin that are no more frequent: those of all
// instances share their wake-ups, and what they send and receive, its system calls.
const lookGrid = 250 * time.Millisecond

// pacer has looks begin at even times.
type pacer struct{ due time.Duration } // boottime, which goes on while the machine sleeps

func newPacer() *pacer { return &pacer{due: state.Boottime()} }

// next waits until d after the last look was due, or not at all where that took
// longer; or until ctx ends. It reports whether whoever waits was paused.
func (p *pacer) next(ctx context.Context, d time.Duration) (late bool) {
	p.due = aligned(p.due+d, d)
	now := state.Boottime()
	if p.due <= now {
		p.due = now
		return false
	}
	pause(ctx, p.due-now)
	now = state.Boottime()
	late = now-p.due > lateAfter
	if late {
		p.due = now
	}
	return late
}

// aligned is the time for a look that is to come d after the one before.
func aligned(due, d time.Duration) time.Duration {
	if d < 2*lookGrid {
		return due
	}
	return due.Round(lookGrid)
}
