package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/cgroup"
)

const (
	// janitorEvery is how often all processes of the machine are looked through.
	janitorEvery = 5 * time.Second
	// zombiesEvery is how often it is asked whether a child is dead that nobody has
	// taken the status of; if so, all are looked through.
	zombiesEvery = time.Second
)

// janitor ends strays: processes that agents of this directory have started and
// that no instance knows, and control groups. It also reaps orphans.
type janitor struct {
	dir     *Dir
	groups  *cgroup.Root
	scanner *scanner
	log     *slog.Logger
	// told is when a stray was sent SIGTERM.
	told map[procID]time.Duration
	// zombies are those that the last round saw: who is seen twice is reaped,
	// so that a child whose status somebody is about to take is left alone.
	zombies map[procID]bool
}

// census is what the loop knows. It is asked for after the scan: whoever was
// started before the scan is in it.
type census struct {
	proven bool
	known  map[kbroker.Incarnation]bool
	pids   map[int]bool // processes that the agent itself waits for
}

// run looks around until ctx ends.
func (j *janitor) run(ctx context.Context, ask func(context.Context) (census, bool), now func() time.Duration) error {
	tick := time.NewTicker(zombiesEvery)
	defer tick.Stop()
	for due := now() + janitorEvery; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if now() < due && !deadChild() {
			continue
		}
		due = now() + janitorEvery
		all, err := j.scanner.scan()
		if err != nil {
			j.log.Warn("processes could not be listed", "err", err)
			continue
		}
		groups := j.groups.Names() // of those, too, each start is known that is seen here
		if c, ok := ask(ctx); ok {
			j.reap(all, c)
			j.endStrays(all, c, now())
			j.endGroups(ctx, groups, c)
		}
	}
}

// reap takes the status of dead orphans, so that they leave the process table.
// Children that the agent process has started without a group of their own are
// not from an instance.
func (j *janitor) reap(all []marked, c census) {
	me, group := os.Getpid(), unix.Getpgrp()
	seen := make(map[procID]bool)
	for _, m := range all {
		if !m.ended() || m.Parent != me || m.Group == group || c.pids[m.PID] {
			continue
		}
		if !j.zombies[m.procID] {
			seen[m.procID] = true
			continue
		}
		// ECHILD says that somebody else was first.
		_, _ = unix.Wait4(m.PID, nil, unix.WNOHANG, nil)
	}
	j.zombies = seen
}

// endStrays sends SIGTERM to strays, and SIGKILL to those that are still there
// after defaultGrace. It does nothing before there is a proven view.
func (j *janitor) endStrays(all []marked, c census, now time.Duration) {
	if !c.proven {
		return
	}
	told := make(map[procID]time.Duration)
	for _, m := range strays(all, j.dir.Path, c.known) {
		since, again := j.told[m.procID]
		sig := unix.SIGTERM
		switch {
		case !again:
			since = now
			j.log.Warn("ending a process that no instance knows", "pid", m.PID, "instance", m.Incarnation)
		case now-since >= defaultGrace:
			sig = unix.SIGKILL
		}
		told[m.procID] = since
		if err := signalProcess(m.procID, sig); err != nil && !errors.Is(err, errGone) {
			j.log.Warn("a process could not be signalled", "pid", m.PID, "err", err)
		}
	}
	j.told = told
}

// endGroups ends control groups of which no instance knows the incarnation: those
// of processes that ended while no agent watched, and of starts that failed.
func (j *janitor) endGroups(ctx context.Context, names []string, c census) {
	if !c.proven {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leftoverWait)
	defer cancel()
	for _, name := range names {
		if c.known[kbroker.Incarnation(name)] {
			continue
		}
		if n, err := j.groups.Group(name).End(ctx); err != nil {
			j.log.Warn("a control group is left; the next look retries", "group", name, "err", err)
		} else if n > 0 {
			j.log.Warn("ended what no instance knows", "group", name, "count", n)
		}
	}
}

// strays are the live processes of the directory that belong to none of the
// known incarnations, nor to the process group or session of one.
func strays(all []marked, dir string, known map[kbroker.Incarnation]bool) []marked {
	groups := make(map[int]bool)
	sessions := make(map[int]bool)
	for _, m := range all {
		// An instance that an agent of an earlier version has started is in the session of
		// that: only a session that the instance leads is its own.
		if known[m.Incarnation] {
			groups[m.Group] = true
			sessions[m.Session] = sessions[m.Session] || m.PID == m.Session
		}
	}
	var found []marked
	for _, m := range all {
		if m.HostDir == dir && m.Incarnation != "" && !m.ended() && m.PID != os.Getpid() &&
			!known[m.Incarnation] && !groups[m.Group] && !sessions[m.Session] {
			found = append(found, m)
		}
	}
	return found
}
