package agent

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/artifact"
)

// insideKilledWait is how long a check that was killed may take to end; one that
// takes longer is left to the janitor.
const insideKilledWait = time.Second

// runInside runs a program as an instance does: in its working directory, with its
// environment and in a process group of its own, of which nothing is left when it
// returns. nil: it exited with 0. Errors: saysNo when it ended otherwise, or is not
// there to be run; that of ctx when it had not ended by then.
func (a *Agent) runInside(ctx context.Context, r record, argv []string) error {
	home := a.cfg.Dir.home(keyOf(r.Placement))
	what := artifact.Executable{Path: argv[0], Tree: a.cache.Tree(r.Placement.Spec.Artifact)}
	cfg := a.bounds(what, argv[1:], home, r)
	cfg.Env = append(cfg.Env, envCheck+"=1")
	cfg.Path = lookPath(argv[0], cfg.Dir)
	cfg.Bound = true
	child, err := start(cfg)
	if err != nil {
		if short(err) {
			return err
		}
		return saysNo{err.Error()}
	}
	defer child.Forget()
	defer child.Release()
	s, err := readStat(child.PID()) // not waited for: it is there, dead or alive
	if err != nil {
		return errors.Join(fmt.Errorf("identify a check: %w", err), child.Cmd.Process.Kill(), child.Cmd.Wait())
	}
	r.procID = s.procID
	p, err := newProcess(r, child.Cmd, nil, &a.scanner, a.log) // the group is the instance's
	if err != nil {
		return errors.Join(fmt.Errorf("watch a check: %w", err), child.Cmd.Process.Kill(), child.Cmd.Wait())
	}
	defer p.pidfd.Close()
	child.Release()
	return p.judged(ctx)
}

// lookPath is the file of a program as the instance finds it: with a slash, from its
// working directory; else where this agent finds it.
func lookPath(name, dir string) string {
	if strings.Contains(name, "/") {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(dir, name)
	}
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return name
}

// judged waits for the end of a check.
func (p *process) judged(ctx context.Context) error {
	over := context.AfterFunc(ctx, func() { _ = p.pidfd.SetReadDeadline(time.Unix(1, 0)) }) // cannot fail on an open pidfd
	err := waitPidfd(p.pidfd)
	if over(); err != nil { // the wait was cut off
		return errors.Join(ctx.Err(), p.endCheck())
	}
	return checked(p.reap())
}

// endCheck kills a check that takes too long.
func (p *process) endCheck() error {
	p.signalGroup(unix.SIGKILL)
	if err := p.pidfd.SetReadDeadline(time.Now().Add(insideKilledWait)); err != nil {
		return err
	}
	if err := waitPidfd(p.pidfd); err != nil {
		p.log.Warn("a check outlives SIGKILL", "instance", p.incarnation, "pid", p.id.PID)
		return nil
	}
	p.reap()
	return nil
}

// checked is what the end of a check says.
func checked(e kbroker.Exit) error {
	if e.Code != nil && *e.Code == 0 {
		return nil
	}
	return saysNo{exitText(e)}
}
