package agent

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// maxStarts is how many starts of its agents a data directory remembers.
const maxStarts = 10

// Holder is the agent that holds a data directory, or did last.
type Holder struct {
	PID int
	// Process is of this start: a restart in place keeps the pid.
	Process string
	// Executable is the path of the file that it was started from, whatever was
	// put there since.
	Executable string
	// Starts are the last starts of agents of the directory, this one's last;
	// wall clock.
	Starts []time.Time
}

// HolderOf tells who holds dir, and whether it lives; the pid is that of this
// very agent, not of a later process that was given the same number. The zero
// Holder: no agent ever did.
func HolderOf(dir string) (h Holder, alive bool, err error) {
	path, err := cleanPath(dir)
	if errors.Is(err, os.ErrNotExist) {
		return h, false, nil
	}
	if err != nil {
		return h, false, err
	}
	began := time.Now()
	for wait := (patience{since: began, until: began.Add(exitPatience)}); ; <-time.After(lockPoll) {
		held, err := isHeld(path)
		if err != nil {
			return h, false, err
		}
		r, err := readAgentRecord(path)
		if err == nil {
			h = Holder{PID: r.PID, Process: r.Process, Executable: r.Executable, Starts: r.Starts}
		}
		switch {
		case !held:
			return h, false, nil
		case err == nil && r.alive():
			return h, true, nil
		case wait.over(time.Now(), err == nil && r.exiting()):
			return h, false, fmt.Errorf("%s is locked by a process that its %s does not name", path, agentFile)
		}
	}
}

// patience is how long a lock may be held by a process that is not named: an
// agent that has it and has not written its record yet is given a moment, one
// that is on its way out a longer one, and a moment from when it was seen last:
// the lock was looked at before the process.
type patience struct {
	since time.Time // the last sign of who is named, at first the begin
	until time.Time
}

func (p *patience) over(now time.Time, exiting bool) bool {
	if exiting {
		p.since = now
	}
	return now.After(p.until) || now.Sub(p.since) > lockPatience
}

// Running tells whether an agent holds dir, and its pid; see HolderOf.
func Running(dir string) (pid int, alive bool, err error) {
	h, alive, err := HolderOf(dir)
	if !alive {
		return 0, false, err
	}
	return h.PID, true, err
}

// addStart keeps the last maxStarts.
func addStart(starts []time.Time, now time.Time) []time.Time {
	starts = append(slices.Clone(starts), now)
	return starts[max(0, len(starts)-maxStarts):]
}
