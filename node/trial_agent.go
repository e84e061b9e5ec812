package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/state"
)

const (
	// guardWatches is how long a guard may take until it watches.
	guardWatches = 5 * time.Second
	// sayEvery is how often a program on trial says how it is.
	sayEvery = 500 * time.Millisecond
)

// settleUpgrade ends, at the start of an agent, an upgrade that nobody can end any
// more: the machine has booted, or the guard and the agent that it watched are gone.
// What was started then is the old program.
func settleUpgrade(dir string, log *slog.Logger) {
	u, err := LastUpgrade(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err == nil && (u.Over() || u.Guard.Alive() || u.onTrial()):
		return
	case err == nil:
		reason := "the agent was started anew before it had passed"
		if u.Phase == UpgradeWatched && !u.Agent.ThisBoot() {
			reason = "the machine was started anew before it had passed"
		}
		log.Warn("the last upgrade is undone", "version", u.From, "refused", u.To, "reason", reason)
		// It may hang, and does not hold the directory: this process does.
		err = errors.Join(u.Agent.Signal(unix.SIGKILL), u.returned(dir, reason))
	}
	if err != nil {
		log.Warn("the last upgrade is not ended in order", "err", err)
	}
}

// onTrial has the program on trial say how it is, and be watched, until that is
// decided or ctx ends; then it waits for ctx. missing is what it lacks.
func onTrial(ctx context.Context, dir string, missing func(context.Context) string, log *slog.Logger) error {
	tick := time.NewTicker(sayEvery)
	defer tick.Stop()
	for {
		u, err := LastUpgrade(dir)
		if err != nil || !u.onTrial() {
			<-ctx.Done() // it is no other one's trial later
			return nil
		}
		if !u.Guard.Alive() {
			log.Warn("the guard of the upgrade is gone; starting another one", "pid", u.Guard.PID)
			if g, err := startGuard(ctx, u.Program, dir); err != nil {
				log.Error("nobody watches the upgrade", "err", err)
			} else {
				g.release()
			}
		}
		h := health{Upgrade: u.ID, Missing: missing(ctx)}
		if h.At = state.Boottime(); ctx.Err() != nil {
			return nil
		}
		if err := h.say(dir); err != nil {
			log.Warn("the guard of the upgrade is not told how this agent is", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sayStopped has the guard of this program know that it was told to end.
func sayStopped(dir string) error {
	u, err := LastUpgrade(dir)
	if err != nil || !u.onTrial() {
		return nil
	}
	return health{Upgrade: u.ID, At: state.Boottime(), Missing: "it ends", Stopped: true}.say(dir)
}

// errOnTrial: what is on trial is not restarted.
var errOnTrial = errors.New("this program is on trial; it restarts when it has passed")

// restarting is a program that this process is about to execute.
type restarting struct {
	program
	version string
	guard   *guarding // nil: it is a restart that nobody watches
	upgrade Upgrade
}

// next is what a restart executes: what an upgrade asks this agent for, with a guard
// that watches it, else the program on disk. An error: it goes on.
func (p program) next(ctx context.Context, dir string) (restarting, error) {
	r := restarting{program: p}
	u, err := LastUpgrade(dir)
	if err == nil && u.onTrial() {
		return r, errOnTrial
	}
	h, _, holdErr := agent.HolderOf(dir)
	if err == nil && u.Phase == UpgradeAsked && holdErr == nil && u.Process == h.Process && h.PID == os.Getpid() {
		r.upgrade = u
		if r.version, err = r.begin(ctx, dir); err != nil {
			err = errors.Join(err, u.returned(dir, err.Error()))
		}
		return r, err
	}
	v, err := ProgramVersion(ctx, p.path)
	r.version = v.Version
	return r, err
}

// begin checks the program that the upgrade names, and has it watched.
func (r *restarting) begin(ctx context.Context, dir string) (version string, err error) {
	if r.upgrade.Next != "" {
		r.path = r.upgrade.Next
	}
	v, err := ProgramVersion(ctx, r.path)
	if err != nil {
		return "", err
	}
	if sum, err := digest(r.path); err != nil {
		return "", err
	} else if hex.EncodeToString(sum) != r.upgrade.SHA256 {
		return "", kbroker.Errorf(kbroker.Refused, "%s is another program than was asked for", r.path)
	}
	// The program that runs, whatever has its name by now.
	r.guard, err = startGuard(ctx, "/proc/self/exe", dir)
	return v.Version, err
}

// goesOn tells the guard that this program goes on.
func (r restarting) goesOn(dir, reason string) error {
	if r.guard == nil {
		return nil
	}
	r.guard.notExecuted()
	return r.upgrade.returned(dir, reason)
}

// guarding is a guard that this process has started.
type guarding struct {
	cmd  *exec.Cmd
	held io.WriteCloser // closed by execve
}

// startGuard returns when the guard watches this process.
func startGuard(ctx context.Context, path, dir string) (*guarding, error) {
	watched, ready, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	defer watched.Close()
	defer ready.Close()
	if dir, err = filepath.Abs(dir); err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	cmd := exec.Command(path, "builtin", GuardProgram, dir)
	cmd.Args[0] = "kbroker"
	cmd.Env = append(os.Environ(), agent.EnvHostDir+"="+dir) // it ends with the host's applications
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{ready}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g := &guarding{cmd: cmd}
	if g.held, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	err = errors.Join(ready.Close(), watched.SetReadDeadline(time.Now().Add(guardWatches)))
	if err == nil {
		_, err = watched.Read(make([]byte, 1))
	}
	u, lastErr := LastUpgrade(dir)
	if ctx.Err() == nil && errors.Is(err, io.EOF) && lastErr == nil && u.onTrial() && u.Guard.PID == cmd.Process.Pid {
		return g, nil
	}
	g.notExecuted()
	return nil, fmt.Errorf("the guard does not watch: %w", errors.Join(ctx.Err(), err, lastErr))
}

// release lets the guard judge; nobody waits for it but whoever reaps orphans.
func (g *guarding) release() { _ = g.held.Close() }

// notExecuted ends the guard.
func (g *guarding) notExecuted() {
	_ = g.cmd.Process.Kill() // it may have ended
	_ = g.held.Close()
	_ = g.cmd.Wait()
}
