package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/output"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/state"
)

// maxMessageBytes bounds the message of a status.
const maxMessageBytes = output.MaxTailBytes + 512

// instance is one instance on this host. It belongs to the loop.
type instance struct {
	key       kbroker.StatusKey
	phase     phase
	placement kbroker.Placement // that it acts on
	record    record            // of its last start; without Incarnation it has never been started

	process    *process           // phaseUp and phaseStopping
	cancel     context.CancelFunc // of the launch; phaseLaunching and phaseStopping
	release    func()             // the start slot
	readySince time.Duration      // boottime; 0: not ready
	lapsed     bool               // ended while no agent watched
	restarts   int
	crashes    int       // in a row
	loop       crashLoop // of the same crashes
	nextStart  time.Duration
	endedAt    time.Duration
	startedAt  time.Time
	exit       *kbroker.Exit
	message    string
	unenforced []string // of what its spec asks for
	doomed     string   // why its process is being killed; empty: it is not
}

func (i *instance) have() have {
	return have{
		Key: i.key, Phase: i.phase, Epoch: i.placement.Epoch, Template: i.placement.Template, Version: i.placement.Version,
		Tombstone: i.placement.Stop, NextStart: i.nextStart, ReadySince: i.readySince, Crashes: i.crashes, EndedAt: i.endedAt,
	}
}

// runs is true while there may be a process of its last incarnation.
func (i *instance) runs() bool {
	return i.phase == phaseLaunching || i.phase == phaseUp || i.phase == phaseStopping
}

// speaks is true while there is something to report of it.
func (i *instance) speaks() bool { return i.phase != phaseTidying && i.phase != phaseEnded }

func (i *instance) status(host kbroker.HostID) kbroker.Status {
	p := i.placement
	s := kbroker.Status{
		Tenant: p.Tenant, App: p.App, Service: p.Service, Instance: p.Instance, Host: host, Version: p.Version, Epoch: p.Epoch,
		Restarts: i.restarts, Crashes: i.crashes, Exit: i.exit, Message: i.message, Ports: i.record.Ports,
		Failing:    i.loop.Failing,
		Unenforced: i.unenforced,
	}
	if i.runs() {
		s.Incarnation = i.record.Incarnation
	}
	if i.process != nil {
		s.PID, s.StartedAt = i.process.id.PID, i.startedAt
	}
	switch i.phase {
	case phaseIdle:
		s.State = kbroker.StatePending
		if i.crashes > 0 {
			s.State = kbroker.StateBackoff
		}
	case phaseLaunching:
		s.State = kbroker.StateStarting
	case phaseUp:
		s.State = kbroker.StateRunning
		if i.readySince > 0 {
			s.State = kbroker.StateReady
		}
	case phaseStopping:
		s.State = kbroker.StateDraining
	case phaseStopped, phaseTidying, phaseEnded:
		s.State = kbroker.StateExited
	}
	return s
}

// act carries out one action of the plan.
func (a *Agent) act(ctx context.Context, i *instance, act action, now time.Duration) {
	switch act.Do {
	case doStart:
		a.start(ctx, i, *act.Placement)
	case doStop:
		a.stop(i, act)
	case doUpdate:
		if i.phase == phaseUp && act.Placement.Spec.Health.Ready == kbroker.HealthAlive && i.readySince == 0 {
			a.ready(i, i.process, true) // it was adopted without knowing how it is healthy
		}
		i.placement = *act.Placement
		i.record.Placement = *act.Placement
		if i.phase == phaseUp { // a launch saves its own
			a.save(i)
		}
	case doConclude:
		i.placement, i.phase = *act.Placement, phaseStopped
		i.readySince, i.message = 0, ""
		i.forgive()
		if i.lapsed {
			i.lapse()
		}
		if i.record.Incarnation != "" {
			a.save(i)
		}
	case doSettle:
		i.message = ""
		i.forgive()
		a.save(i)
	case doForget:
		i.phase = phaseTidying
		a.reporter.gone(i.key)
		a.tidy(ctx, i, true)
	case doPurge:
		i.phase = phaseTidying
		a.tidy(ctx, i, false)
	}
}

// start launches a new incarnation.
func (a *Agent) start(ctx context.Context, i *instance, p kbroker.Placement) {
	again := i.record.Incarnation != "" && i.placement.Epoch == p.Epoch && i.phase == phaseIdle
	if again {
		i.restarts++
		a.counters.restarts.Inc()
	} else if i.phase != phaseIdle || i.placement.Epoch != p.Epoch {
		i.restarts, i.crashes, i.exit, i.message = 0, p.Backoff, nil, ""
		i.loop = crashLoop{Boot: a.boot, Elsewhere: len(p.Failed) > 0}
	}
	if i.lapsed {
		i.lapse()
	}
	i.placement, i.phase, i.readySince = p, phaseLaunching, 0
	i.record = record{
		Placement: p, Incarnation: kbroker.Incarnation(string(p.Instance) + "." + randomHex()),
		Restarts: i.restarts, Crashes: i.crashes, Ports: i.record.Ports, Loop: i.loop,
	}
	if a.contain.can.Group {
		i.record.Group = string(i.record.Incarnation)
	}
	if a.contain.users != nil {
		i.record.User = a.contain.users.of(i.key)
	}
	i.unenforced = a.contain.unenforced(p.Spec)
	launch, cancel := context.WithCancel(ctx)
	i.cancel = cancel
	r := i.record
	a.work.Go(func() {
		defer cancel()
		l := a.launch(launch, r)
		if !a.post(ctx, func() { a.launched(ctx, i, l) }) && l.process != nil {
			l.release()
			l.process.pidfd.Close() // it runs on, for the next agent
		}
	})
}

// launched takes the outcome of a launch.
func (a *Agent) launched(ctx context.Context, i *instance, l launched) {
	i.cancel = nil
	if l.err != nil {
		i.record.Ports = l.record.Ports
		if i.phase == phaseStopping {
			i.phase = phaseStopped
			return
		}
		a.log.Warn("instance not started", "app", i.placement.App, "service", i.placement.Service, "instance", i.key.Instance, "err", l.err)
		i.exit = nil
		a.crashed(i, withHint(l.err))
		return
	}
	i.record, i.process, i.release = l.record, l.process, l.release
	i.startedAt = l.record.StartedAt
	if i.record.Placement.Version != i.placement.Version && i.phase == phaseLaunching {
		i.record.Placement = i.placement // updated while it was launched
		a.save(i)
	}
	if i.phase == phaseStopping {
		i.process.leave(orderOf(i.record.Placement.Spec.Stop))
	} else {
		i.phase = phaseUp
		a.log.Info("instance started", "app", i.placement.App, "service", i.placement.Service, "instance", i.key.Instance, "pid", i.process.id.PID)
	}
	a.watch(ctx, i)
}

// withHint is all that is known of an error, for the message of a status.
func withHint(err error) string {
	if hint := kbroker.AsError(err).Hint; hint != "" {
		return err.Error() + " (" + hint + ")"
	}
	return err.Error()
}

// resume watches an adopted process.
func (a *Agent) resume(ctx context.Context, i *instance) {
	switch i.phase {
	case phaseEnded:
		a.reporter.gone(i.key) // the earlier agent may not have been heard
	case phaseUp:
		a.watch(ctx, i)
	}
}

// watch follows the process until it has ended, and its health until then.
func (a *Agent) watch(ctx context.Context, i *instance) {
	p, r := i.process, i.record
	if r.Placement.Spec.Health.Ready == kbroker.HealthAlive {
		a.ready(i, p, true)
	}
	a.work.Go(func() {
		probing, done := context.WithCancel(ctx)
		defer done()
		signed := make(chan struct{})
		a.work.Go(func() { defer close(signed); a.signs(probing, r) })
		a.attend(probing, r, func(v verdict) { a.post(probing, func() { a.heed(i, p, v) }) })
		err := p.run(ctx, func(e kbroker.Exit) {
			done()
			<-signed // what is signed of a start that is over is all on disk
			a.post(ctx, func() { a.exited(i, p, e) })
		})
		if err != nil && ctx.Err() == nil {
			a.log.Error("a process is no longer watched", "instance", i.key.Instance, "pid", p.id.PID, "err", err)
		}
	})
}

// ready takes a change of health.
func (a *Agent) ready(i *instance, p *process, ready bool) {
	if i.process != p || i.phase != phaseUp {
		return
	}
	if !ready {
		i.readySince = 0
		return
	}
	i.freeSlot()
	i.readySince = max(1, state.Boottime())
	if i.crashes == 0 {
		i.message = ""
	}
}

// heed takes a verdict on a process. One that is killed has crashed, for all that
// follows.
func (a *Agent) heed(i *instance, p *process, v verdict) {
	if v.kill == "" {
		a.ready(i, p, v.ready)
		return
	}
	if i.process != p || i.phase != phaseUp {
		return
	}
	a.log.Warn("killing a process", "app", i.placement.App, "service", i.placement.Service, "instance", i.key.Instance, "pid", p.id.PID, "reason", v.kill)
	i.doomed, i.readySince = v.kill, 0
	p.kill()
}

// exited takes the end of a process.
func (a *Agent) exited(i *instance, p *process, e kbroker.Exit) {
	if i.process != p {
		return
	}
	i.freeSlot()
	i.process, i.exit = nil, &e
	defer func() { i.doomed = "" }()
	a.endCredentials(a.cfg.Dir.home(i.key), "")
	a.endSigned(i.key, i.record.Incarnation)
	a.log.Info("process ended", "app", i.placement.App, "service", i.placement.Service, "instance", i.key.Instance, "pid", p.id.PID, "exit", exitText(e))
	if i.phase == phaseStopping {
		i.phase, i.readySince = phaseStopped, 0
		a.save(i)
		return
	}
	if i.readySince > 0 && state.Boottime()-i.readySince >= healthyAfter {
		i.forgive()
	}
	message := cmp.Or(i.doomed, exitText(e))
	if t := a.outputs.Tail(i.key, i.record.LogStart); t != "" {
		message += ": " + t
	}
	a.crashed(i, message)
	if e.Code != nil && *e.Code == 0 {
		// It left by itself, as an instance does that has seen its tombstone:
		// look whether it was told to, before it is started again.
		i.nextStart = max(i.nextStart, state.Boottime()+leftWait)
		a.viewer.stir()
	}
}

// leftWait is how long an instance that ended without an error stays away, so
// that a tombstone that it has seen reaches its agent first.
const leftWait = 500 * time.Millisecond

// crashed has an instance started again when its delay has passed.
func (a *Agent) crashed(i *instance, message string) {
	now := state.Boottime()
	i.crashes++
	if i.loop = i.loop.in(a.boot).crashed(now); i.loop.Failing {
		message = kbroker.CrashLoopText + message
	}
	i.phase, i.readySince = phaseIdle, 0
	i.message = message[:min(len(message), maxMessageBytes)]
	delay := restartDelay(i.crashes, rand.Float64())
	i.nextStart = now + delay
	if delay > 0 { // an immediate start writes its own record
		a.save(i)
	}
}

// forgive forgets the crashes.
func (i *instance) forgive() { i.crashes, i.loop = 0, crashLoop{} }

// stop asks the process to leave, or calls off its launch.
func (a *Agent) stop(i *instance, act action) {
	a.log.Info("stopping", "app", i.placement.App, "service", i.placement.Service, "instance", i.key.Instance, "reason", act.Reason)
	if act.Placement != nil && act.Placement.Stop {
		i.placement = *act.Placement
	}
	i.phase, i.readySince, i.message = phaseStopping, 0, act.Reason
	i.freeSlot()
	if i.process != nil {
		i.process.leave(orderOf(i.record.Placement.Spec.Stop))
	} else if i.cancel != nil {
		i.cancel()
	}
}

// tidy removes the files of an instance that is over: all, or (keep) all but
// its output.
func (a *Agent) tidy(ctx context.Context, i *instance, keep bool) {
	home := a.cfg.Dir.home(i.key)
	a.work.Go(func() {
		err := a.keepOver(home)
		kept := true // what could not be kept elsewhere stays for the next start of the agent
		if err == nil {
			kept, err = tidyHome(ctx, home, keep)
		}
		if err != nil {
			a.log.Warn("files of an ended instance are left", "instance", i.key.Instance, "err", err)
		}
		a.post(ctx, func() {
			i.phase, i.endedAt = phaseEnded, state.Boottime()
			i.placement, i.record = kbroker.Placement{}, record{}
			a.ports.release(i.key)
			if !kept {
				delete(a.instances, i.key)
			}
			if a.contain.users != nil { // its files are gone
				a.contain.users.free(i.key)
			}
		})
	})
}

// tidyHome reports whether output is kept in home.
func tidyHome(ctx context.Context, home string, keep bool) (kept bool, err error) {
	if _, err := os.Stat(home); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if !keep {
		return false, durable.RemoveTree(ctx, home)
	}
	err = os.WriteFile(filepath.Join(home, endedFile), nil, 0o600)
	paths := credsIn(home)
	for _, f := range []string{recordFile, runDir, workDir, tempDir} {
		path := filepath.Join(home, f)
		paths = append(append(paths, path), durable.Aside(path)...)
	}
	for _, path := range paths {
		err = errors.Join(err, durable.RemoveTree(ctx, path))
	}
	return true, err
}

// save writes what a later agent must know. Not being able to costs at worst
// the counters: identity was written at the start.
func (a *Agent) save(i *instance) {
	r := i.record
	r.Restarts, r.Crashes, r.Loop, r.Message = i.restarts, i.crashes, i.loop, i.message
	if r.Placement.Epoch <= i.placement.Epoch && i.process == nil {
		r.Placement = i.placement
	}
	r.Stopped = i.phase == phaseStopped
	if i.process == nil {
		r.Exit = i.exit
		if r.Exit == nil {
			r.Exit = &kbroker.Exit{Unknown: true, At: time.Now().UTC()}
		}
	}
	if err := saveRecord(a.cfg.Dir.home(i.key), r); err != nil {
		a.log.Warn("a record is not written", "instance", i.key.Instance, "err", err)
	}
}

func (i *instance) freeSlot() {
	if i.release != nil {
		i.release()
		i.release = nil
	}
}

func exitText(e kbroker.Exit) string {
	switch {
	case e.OOM:
		return "out of memory: killed at its limit"
	case e.Signal != "":
		return "ended by " + e.Signal
	case e.Code != nil:
		return fmt.Sprintf("exit code %d", *e.Code)
	}
	return "ended, nobody knows how"
}
