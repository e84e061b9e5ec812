package output

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	// lookAfter is how soon after a write a file that was quiet is looked at,
	// and how often one that grows; floodLook how often one that grows by
	// floodBytes from look to look. At 1 GB/s a file is below 64 MiB if the
	// looker is late by 40 ms, as it can be when all processors are busy.
	lookAfter = 5 * time.Millisecond
	floodLook = time.Millisecond
	// lookRetry is the pause after a look that failed, or that found the file
	// being moved.
	lookRetry = 20 * time.Millisecond
	failRetry = time.Second
)

// limits are when a file is cut, and to what.
type limits struct {
	cutAbove, keep           int64
	floodCutAbove, floodKeep int64
	floodBytes               int64 // growth between two looks
	restBytes                int64 // with less growth a file is left alone until it is written to
	align                    int64 // of what is punched and folded
	foldAbove                int64 // the hole
}

// limitsOf are the limits for files of which bound bytes are kept, a multiple of
// 64 KiB.
func limitsOf(bound int64) limits {
	return limits{
		cutAbove: bound + bound/4, keep: bound,
		floodCutAbove: bound / 2, floodKeep: bound / 4,
		floodBytes: bound / 8, restBytes: bound / 256,
		align: bound / 16, foldAbove: bound * 16,
	}
}

// judge decides on a file that holds kept bytes and has grown since the last
// look: how many of them stay (all: no cut), and when to look again (0: after
// the next write). Pure.
func (l limits) judge(kept, growth int64) (stay int64, next time.Duration) {
	above, keep := l.cutAbove, l.keep
	switch {
	case growth >= l.floodBytes:
		above, keep, next = l.floodCutAbove, l.floodKeep, floodLook
	case growth >= l.restBytes:
		next = lookAfter
	}
	if kept <= above {
		return kept, next
	}
	return keep, next
}

// looked is what the looker knows of a file.
type looked struct {
	*output
	file  *os.File // nil while it sleeps
	due   time.Time
	size  int64 // at the last look; -1 before the first
	hole  int64 // -1: to be looked for
	moves int
	alert int32
	solid bool // its file system makes no holes
}

// looker cuts files that grow, soon after they were written to. It does nothing
// that waits: no fsync, no reading, no lock that is held for long; and it waits for
// no other goroutine, which might have to wait for a processor. A file that nobody
// writes to costs it nothing.
type looker struct {
	limits limits
	log    *slog.Logger
	alerts *alerts
	files  map[*output]*looked
	armed  map[int32]*looked

	mu    sync.Mutex
	fresh []*output
}

func newLooker(l limits, a *alerts, log *slog.Logger) *looker {
	return &looker{limits: l, log: log, alerts: a, files: map[*output]*looked{}, armed: map[int32]*looked{}}
}

// add has a file looked at from now on.
func (k *looker) add(o *output) {
	defer k.alerts.nudge()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fresh = append(k.fresh, o)
}

func (k *looker) added() []*output {
	k.mu.Lock()
	defer k.mu.Unlock()
	fresh := k.fresh
	k.fresh = nil
	return fresh
}

// run looks at files until ctx ends.
func (k *looker) run(ctx context.Context) {
	hurry()
	nudged := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { k.alerts.nudge(); close(nudged) })
	defer func() {
		if !stop() {
			<-nudged
		}
		for _, f := range k.files {
			f.sleep()
		}
	}()
	for next := time.Now(); ctx.Err() == nil; {
		written := k.alerts.wait(time.Until(next))
		now := time.Now()
		for _, o := range k.added() {
			k.files[o] = &looked{output: o, size: -1}
			k.wake(k.files[o], now)
			next = now
		}
		for _, alert := range written {
			if f := k.armed[alert]; f != nil {
				delete(k.armed, alert)
				k.wake(f, now.Add(lookAfter))
				if f.due.Before(next) {
					next = f.due
				}
			}
		}
		if !next.After(now) {
			next = k.round(now)
		}
	}
}

// wake has a file looked at, at due.
func (k *looker) wake(f *looked, due time.Time) {
	if f.file == nil {
		file, err := os.OpenFile(f.path, os.O_RDWR, 0)
		if err != nil {
			k.forget(f, err)
			return
		}
		f.file, f.hole = file, -1
	}
	f.due = due
}

func (f *looked) sleep() {
	if f.file != nil {
		f.file.Close() // nothing of it was written by this process
		f.file = nil
	}
}

// forget leaves a file alone: it is gone, or the next survey finds it again.
func (k *looker) forget(f *looked, err error) {
	if !errors.Is(err, os.ErrNotExist) {
		k.log.Warn("an output file cannot be looked at", "instance", f.key.Instance, "err", err)
	}
	f.sleep()
	delete(k.armed, f.alert)
	delete(k.files, f.output)
	f.lost.Store(true)
}

// round looks at the files that are due, and returns when the next one is.
func (k *looker) round(now time.Time) time.Time {
	next := now.Add(surveyEvery)
	for _, f := range k.files {
		if f.file == nil {
			continue
		}
		if !f.due.After(now) {
			k.look(f)
		}
		if f.file != nil && f.due.Before(next) {
			next = f.due
		}
	}
	return next
}

// look looks at one file, cuts it where needed, and says when to look again.
func (k *looker) look(f *looked) {
	pause, err := k.tend(f)
	if err != nil {
		k.log.Warn("an output file stays too large; the next second retries", "instance", f.key.Instance, "err", err)
		pause = failRetry
	}
	if pause > 0 {
		f.due = time.Now().Add(pause)
		return
	}
	alert, err := k.alerts.arm(f.path)
	if errors.Is(err, os.ErrNotExist) {
		k.forget(f, err)
		return
	}
	if err != nil { // there are too many of them
		f.due = time.Now().Add(lookRetry)
		return
	}
	delete(k.armed, f.alert)
	f.alert, k.armed[alert] = alert, f
	f.sleep()
}

// tend cuts f where needed.
func (k *looker) tend(f *looked) (pause time.Duration, err error) {
	excess, pause, err := k.cut(f)
	if excess && f.solid {
		return lookRetry, f.empty(f.file) // which waits; but so there is a bound
	}
	return pause, err
}

// cut punches f where needed; excess says that it was.
func (k *looker) cut(f *looked) (excess bool, pause time.Duration, err error) {
	if f.unsettled.Load() || !f.place.TryRLock() {
		return false, lookRetry, nil // it is being moved: who writes to it waits
	}
	defer f.place.RUnlock()
	size, err := sizeOf(f.file)
	if err != nil {
		return false, 0, err
	}
	if f.hole < 0 || f.moves != f.output.moves || size < f.size {
		if f.hole, err = holeOf(f.file, size); err != nil {
			return false, 0, err
		}
		if f.moves != f.output.moves || f.size < 0 {
			f.moves, f.size = f.output.moves, size
		}
	}
	growth := size - f.size
	f.size = size
	stay, pause := k.limits.judge(size-f.hole, growth)
	to := (size - stay) / k.limits.align * k.limits.align
	if to <= f.hole || f.solid {
		return to > f.hole, pause, nil
	}
	if err := punch(f.file, f.hole, to); err != nil && !unable(err) {
		return true, 0, err
	}
	if f.hole, err = holeOf(f.file, size); err != nil {
		return true, 0, err
	}
	f.solid = f.hole < to
	return true, pause, nil
}
