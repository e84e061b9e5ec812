package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/state"
)

// GuardProgram is the name of RunGuard as a program that the binary carries.
const GuardProgram = "upgrade-guard"

const (
	// guardLook is the pause between looks at the program on trial.
	guardLook = 200 * time.Millisecond
	// stopsWithin is how long the old program may take to stop: more than what a
	// core's stop is bounded by.
	stopsWithin = 20 * time.Second
	// endGrace is how long a program that did not pass may take to leave before it
	// is killed, goneWithin how long it may take to be gone then.
	endGrace, goneWithin = 3 * time.Second, 10 * time.Second
	// A service manager starts the agent again within managerWait; who is not known
	// to be one, within otherWait.
	managerWait, otherWait = 6 * time.Second, 1500 * time.Millisecond
	// holdsWithin is how long an agent that is started may take to hold its directory.
	holdsWithin = 10 * time.Second
	// controlWithin bounds a command to the service manager.
	controlWithin = 30 * time.Second
	// notExecuted is what the old program says when it goes on all the same.
	notExecuted = 'x'
)

// guard watches a program on trial. It is a process of the old program, started by the
// agent before it executes the new one, in a session of its own: it outlives the
// agent and whoever asked, and works while nothing else does.
type guard struct {
	dir     string
	log     *slog.Logger
	upgrade Upgrade
	command []string // of the agent
}

// RunGuard is the guard of an upgrade, as the child of the agent of dir, until that is
// decided. ready is closed when it watches. held ends when the agent has executed
// the program on trial; a byte says that it could not.
func RunGuard(ctx context.Context, dir string, held io.Reader, ready io.Closer, log *slog.Logger) error {
	g := &guard{dir: dir, log: log}
	if err := g.take(os.Getppid()); err != nil {
		return err
	}
	if err := ready.Close(); err != nil {
		return fmt.Errorf("say that it is watched: %w", err)
	}
	phase, reason, err := g.watch(ctx, held)
	if err != nil {
		return err
	}
	u := g.upgrade
	if phase == UpgradePassed {
		if err = u.passed(dir); err == nil {
			log.Info("the new program has passed", "version", u.To, "program", u.Program)
			return nil
		}
		reason = err.Error()
	}
	log.Error("the new program has not passed; returning to the old one", "version", u.From, "refused", u.To, "err", reason)
	return g.goBack(ctx, reason)
}

// take makes this process the guard of the agent pid.
func (g *guard) take(pid int) error {
	u, err := LastUpgrade(g.dir)
	if err != nil {
		return err
	}
	h, alive, err := agent.HolderOf(g.dir)
	if err != nil {
		return err
	}
	if u.Over() || !alive || h.PID != pid || u.Guard.Alive() {
		return fmt.Errorf("upgrade %s of %s is %s, and process %d is not to be watched", u.ID, g.dir, u.Phase, pid)
	}
	if u.Agent, err = agent.Identify(pid); err != nil {
		return err
	}
	if u.Guard, err = agent.Identify(os.Getpid()); err != nil {
		return err
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return fmt.Errorf("read how the agent was started: %w", err)
	}
	g.command = strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	u.Phase, g.upgrade = UpgradeWatched, u
	if err := os.Remove(filepath.Join(g.dir, healthFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("begin to watch: %w", err)
	}
	return u.save(g.dir)
}

// watch returns what becomes of the program on trial.
func (g *guard) watch(ctx context.Context, held io.Reader) (Phase, string, error) {
	executed := make(chan []byte, 1)
	go func() { // ends with the other end of held, or this process
		said, _ := io.ReadAll(held)
		executed <- said
	}()
	select {
	case <-ctx.Done():
		return "", "", ctx.Err()
	case said := <-executed:
		if bytes.IndexByte(said, notExecuted) >= 0 {
			return UpgradeReturned, "it could not be executed", nil
		}
	case <-time.After(stopsWithin):
		g.log.Warn("the agent does not stop", "pid", g.upgrade.Agent.PID)
	}
	tick := time.NewTicker(guardLook)
	defer tick.Stop()
	for s := (seen{began: state.Boottime()}); ; {
		// First whether it lives: what it said at its end is there then.
		s.alive = g.upgrade.Agent.Alive()
		s.said = heardFrom(g.dir, g.upgrade.ID)
		now := state.Boottime()
		s = s.look(now)
		if phase, reason := s.judge(now, g.upgrade.Gate); phase != "" {
			return phase, reason, nil
		}
		select {
		case <-ctx.Done():
			return "", "", ctx.Err()
		case <-tick.C:
		}
	}
}

// goBack has the host run the old program: it ends the new one, and starts the old
// one if nobody else does.
func (g *guard) goBack(ctx context.Context, reason string) error {
	told := heardFrom(g.dir, g.upgrade.ID).Stopped && !g.upgrade.Agent.Alive()
	notGone := g.end(ctx)
	if notGone != nil {
		reason += "; " + notGone.Error()
	}
	if err := errors.Join(notGone, g.upgrade.returned(g.dir, reason)); err != nil || told {
		return err
	}
	unit := managedBy(g.upgrade.Agent.PID, os.Environ())
	wait := otherWait
	if unit != "" {
		wait = managerWait
	}
	if g.held(ctx, wait) {
		return nil
	}
	if unit != "" {
		return startFailed(ctx, unit)
	}
	cmd := exec.Command(g.upgrade.Program, g.command[1:]...)
	cmd.Args[0] = g.command[0]
	cmd.Env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, agent.EnvHostDir+"=") })
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the old program: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	holds := make(chan bool, 1)
	go func() { holds <- g.held(ctx, holdsWithin) }()
	select {
	case err := <-ended:
		return fmt.Errorf("the old program has ended: %w", err)
	case held := <-holds:
		if !held {
			return fmt.Errorf("the old program, process %d, does not hold %s", cmd.Process.Pid, g.dir)
		}
		return nil
	}
}

// end ends the program on trial: it is asked to leave, then killed.
func (g *guard) end(ctx context.Context) error {
	id := g.upgrade.Agent
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, endGrace}, {unix.SIGKILL, goneWithin}} {
		if err := id.Signal(step.signal); err != nil {
			return err
		}
		if until(ctx, step.wait, func() bool { return !id.Alive() }) {
			return nil
		}
	}
	return fmt.Errorf("process %d outlives SIGKILL", id.PID)
}

// held waits until an agent holds the directory.
func (g *guard) held(ctx context.Context, within time.Duration) bool {
	return until(ctx, within, func() bool {
		_, alive, err := agent.HolderOf(g.dir)
		return err == nil && alive
	})
}

// until looks until done, or time is up.
func until(ctx context.Context, within time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(guardLook)
	defer tick.Stop()
	for {
		if done() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// managedBy is the unit of systemd whose main process pid was, as the environment and
// the control group say that both it and this process have; empty: of none. Who has
// only inherited the environment is not the process that it names; systemd.exec(5).
func managedBy(pid int, environ []string) (unit string) {
	if !slices.Contains(environ, fmt.Sprintf("SYSTEMD_EXEC_PID=%d", pid)) {
		return ""
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	return unitIn(string(groups))
}

// unitIn is the innermost service in the lines of /proc/PID/cgroup.
func unitIn(groups string) (unit string) {
	for line := range strings.Lines(groups) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			if strings.HasSuffix(part, ".service") {
				unit = part
			}
		}
	}
	return unit
}

// startFailed starts a unit that systemd does not start by itself: it has failed, in a
// way after which the unit is not started again. One that somebody has stopped stays so.
func startFailed(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, controlWithin)
	defer cancel()
	if exec.CommandContext(ctx, "systemctl", "is-failed", "--quiet", unit).Run() != nil {
		return nil
	}
	if out, err := exec.CommandContext(ctx, "systemctl", "restart", unit).CombinedOutput(); err != nil {
		return fmt.Errorf("start %s: %w: %s", unit, err, bytes.TrimSpace(out))
	}
	return nil
}
