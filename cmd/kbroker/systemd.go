package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

const (
	// systemdRuns is there when systemd manages the machine: sd_booted(3).
	systemdRuns = "/run/systemd/system"
	// agentStarts bounds the time from a started unit to an agent that holds
	// its directory, agentPoll is the pause between looks.
	agentStarts = 10 * time.Second
	agentPoll   = 50 * time.Millisecond
	// agentSettles is how long it must hold it: one that cannot begin, for
	// example because the advertised address is not of this machine, finds out
	// when it has the directory.
	agentSettles = time.Second
)

// systemd is the service manager of this machine, with a unit of the agent in
// dir.
type systemd struct {
	dir  string
	runs string // what is there when it manages the machine; empty: systemdRuns
}

func (s systemd) running() bool {
	runs := s.runs
	if runs == "" {
		runs = systemdRuns
	}
	info, err := os.Lstat(runs)
	return err == nil && info.IsDir()
}

// enableName is how systemctl finds the unit: by its name where it looks for
// units, else by its path.
func (s systemd) enableName() string {
	if filepath.Clean(s.dir) == defaultUnitDir {
		return unitName
	}
	path := filepath.Join(s.dir, unitName)
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// start enables the unit and has it run with its files as they are now: it is
// restarted when they changed, or it runs since before they did. It returns the
// pid of the agent once it holds dir. Failed when it ended instead,
// DeadlineExceeded when neither happened.
func (s systemd) start(ctx context.Context, dir string, changed bool, files ...string) (int, error) {
	ran := s.control(ctx, "is-active", "--quiet", unitName) == nil
	steps := [][]string{{"daemon-reload"}, {"enable", "--now", s.enableName()}}
	if ran && !changed {
		since, known := s.startedAt(ctx)
		newest, err := lastWritten(files)
		if err != nil {
			return 0, err
		}
		changed = known && newest.After(since)
	}
	if ran && changed {
		steps = append(steps, []string{"restart", unitName})
	}
	for _, args := range steps {
		if err := s.control(ctx, args...); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, agentStarts)
	defer cancel()
	seen, since := 0, time.Time{}
	for {
		pid, alive, err := node.Running(dir)
		if err != nil {
			return 0, fmt.Errorf("look at the agent: %w", err)
		}
		switch {
		case !alive || s.mainPID(ctx) != pid:
			seen = 0
		case pid != seen:
			seen, since = pid, time.Now()
		case time.Since(since) >= agentSettles:
			return pid, nil
		}
		if s.control(ctx, "is-failed", "--quiet", unitName) == nil {
			return 0, s.withJournal(kbroker.Errorf(kbroker.Failed, "the agent ended at once").
				WithHint("install it again with other settings; systemctl status %s shows more", unitName))
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return 0, ctx.Err()
			}
			return 0, s.withJournal(kbroker.Errorf(kbroker.DeadlineExceeded, "the agent does not hold %s yet; systemd goes on starting it", dir).
				WithHint("systemctl status %s shows how it goes", unitName))
		case <-time.After(agentPoll):
		}
	}
}

// mainPID is the process that systemd knows as the agent; 0: none.
func (s systemd) mainPID(ctx context.Context) int {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=MainPID", "--value", unitName).Output()
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return 0
	}
	return pid
}

// startedAt is when systemd started the agent that runs, by the clock of files.
func (s systemd) startedAt(ctx context.Context) (at time.Time, known bool) {
	// Text has a resolution of a second, and a step of the clock makes it wrong.
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=ExecMainStartTimestampMonotonic", "--value", unitName).Output()
	if err != nil {
		return time.Time{}, false
	}
	micros, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil || micros == 0 {
		return time.Time{}, false
	}
	up, err := monotonic()
	if err != nil {
		return time.Time{}, false
	}
	return time.Now().Add(time.Duration(micros)*time.Microsecond - up), true
}

// lastWritten is when the last of files was written.
func lastWritten(files []string) (newest time.Time, err error) {
	for _, path := range files {
		info, err := os.Stat(path)
		if err != nil {
			return newest, fmt.Errorf("look at %s: %w", path, err)
		}
		if at := info.ModTime(); at.After(newest) {
			newest = at
		}
	}
	return newest, nil
}

// control runs systemctl.
func (s systemd) control(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctxError(ctx, "systemctl "+args[0])
	}
	return &outputError{
		error: kbroker.Errorf(kbroker.Failed, "systemctl %s: %v", strings.Join(args, " "), err),
		title: "systemctl said:", lines: strings.Split(strings.TrimSpace(string(out)), "\n"),
	}
}

// withJournal is failed with the agent's last lines in the journal.
func (s systemd) withJournal(failed error) error {
	// The deadline of what failed does not hold for this.
	ctx, cancel := context.WithTimeout(context.Background(), agentStarts)
	defer cancel()
	out, err := exec.CommandContext(ctx, "journalctl", "--unit", unitName, "--lines", strconv.Itoa(agentLogLines), "--no-pager", "--output", "cat").Output()
	if err != nil || len(out) == 0 {
		return failed
	}
	return &outputError{error: failed, title: "last lines of its log:", lines: strings.Split(strings.TrimSpace(string(out)), "\n")}
}
