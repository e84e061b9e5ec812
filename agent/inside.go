package agent

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/artifact"
	"github.com/kbroker/kbroker/agent/spawn"
)

// insideKilledWait is how long a check that was killed may take to end; one that
// takes longer is left to the janitor.
const insideKilledWait = time.Second

// runInside runs a program as an instance does: in its working directory, with its
// environment and in a process group of its own, of which nothing is left when it
// returns. nil: it exited with 0. Errors: saysNo when it ended otherwise, or is not
// there to be run; that of ctx when it had not ended by then.
func (a *Agent) runInside(ctx context.Context, r record, argv []string) error {
	cfg, err := a.beside(r, argv)
	if err != nil {
		return saysNo{err.Error()}
	}
	child, err := start(cfg)
	if err != nil {
		if short(err) {
			return err
		}
		return saysNo{err.Error()}
	}
	defer child.Forget()
	defer child.Release()
	p, err := a.watched(child, r)
	if err != nil {
		return errors.Join(err, child.Cmd.Process.Kill(), child.Cmd.Wait())
	}
	defer p.pidfd.Close()
	child.Release()
	return p.judged(ctx)
}

// beside is how a program is started that is not the instance itself: within the same
// bounds, in its control group. It ends when this agent does, and whoever looks for the
// process of the instance does not take it for that. ENOENT: there is no such program.
func (a *Agent) beside(r record, argv []string) (spawn.Config, error) {
	own := artifact.Executable{Path: a.cfg.Executable}
	if of := r.Placement.Spec.Artifact; of.SHA256 != "" {
		own = a.cache.Place(of)
	}
	cfg := a.bounds(own, argv[1:], a.cfg.Dir.home(keyOf(r.Placement)), r)
	path, err := findProgram(argv[0], cfg.Dir, cfg.Env)
	cfg.Path, cfg.Env, cfg.Bound = path, append(cfg.Env, envCheck+"=1"), true
	return cfg, err
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
