package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/cgroup"
)

const (
	// defaultGrace is for processes of which no spec is known any more.
	defaultGrace = 10 * time.Second
	// killAgain is how often a process group that survives SIGKILL (a frozen
	// cgroup, a hung disk) is killed again.
	killAgain = 5 * time.Second
	// leftoverWait bounds the killing of what a dead process left behind.
	leftoverWait = 5 * time.Second
	leftoverPoll = 10 * time.Millisecond
)

// process is one running incarnation: a child of this agent, or adopted.
type process struct {
	incarnation kbroker.Incarnation
	id          procID
	cmd         *exec.Cmd // nil when adopted: then nobody can wait for its status
	pidfd       *os.File
	group       *cgroup.Group // nil: none of its own
	own         bool          // it cannot leave its group
	scanner     *scanner
	log         *slog.Logger
	// stop and doom have capacity 1: the one order to leave, and to be killed.
	stop chan stopOrder
	doom chan struct{}
}

type stopOrder struct {
	signal unix.Signal
	grace  time.Duration
}

// orderOf translates a spec's way to leave.
func orderOf(s kbroker.Stop) stopOrder {
	o := stopOrder{signal: unix.SignalNum(s.Signal), grace: s.Grace}
	if o.signal == 0 {
		o = stopOrder{signal: unix.SIGTERM, grace: defaultGrace}
	}
	return o
}

// newProcess takes hold of a process; errGone when it is not there any more.
// A child must not have been waited for.
func newProcess(r record, cmd *exec.Cmd, group *cgroup.Group, s *scanner, log *slog.Logger) (*process, error) {
	pidfd, err := openPidfd(r.procID)
	if err != nil {
		return nil, err
	}
	return &process{
		incarnation: r.Incarnation, id: r.procID, cmd: cmd, pidfd: pidfd, group: group, own: r.User != 0,
		scanner: s, log: log, stop: make(chan stopOrder, 1), doom: make(chan struct{}, 1),
	}, nil
}

// leave orders the process to go; the first order counts.
func (p *process) leave(o stopOrder) {
	select {
	case p.stop <- o:
	default:
	}
}

// kill orders it to be killed at once, with its group. That is no order to leave:
// for whoever waits for its exit it ends as after a crash.
func (p *process) kill() {
	select {
	case p.doom <- struct{}{}:
	default:
	}
}

// run watches the process until it has ended and nothing of it is left, or ctx
// ends: then the process runs on, and ctx's error is returned. exited is called
// with the exit; for a process that was told to leave after the last of its
// descendants has gone, else at once.
func (p *process) run(ctx context.Context, exited func(kbroker.Exit)) error {
	defer p.pidfd.Close()
	done := make(chan error, 1)
	go func() { done <- waitPidfd(p.pidfd) }()

	var kill <-chan time.Time
	told := false
	for {
		select {
		case <-ctx.Done():
			// Ends the wait; SetDeadline cannot fail on an open pidfd.
			err := p.pidfd.SetReadDeadline(time.Unix(1, 0))
			<-done
			return errors.Join(ctx.Err(), err)
		case o := <-p.stop:
			told = true
			p.signalGroup(o.signal)
			kill = time.After(o.grace)
		case <-p.doom:
			p.destroy()
			kill = time.After(killAgain)
		case <-kill:
			p.destroy()
			kill = time.After(killAgain)
		case err := <-done:
			if err != nil {
				return fmt.Errorf("watch process %d: %w", p.id.PID, err)
			}
			exit := p.reap()
			if !told {
				exited(exit)
			}
			p.endLeftovers(ctx)
			if told {
				exited(exit)
			}
			return nil
		}
	}
}

// destroy kills the process and, where it has a control group, whatever is in that.
func (p *process) destroy() {
	if p.group != nil {
		if err := p.group.Kill(); err != nil {
			p.log.Warn("a control group could not be killed", "pid", p.id.PID, "err", err)
		}
	}
	p.signalGroup(unix.SIGKILL)
}

// signalGroup signals the process and its group, if the process is still there:
// as long as it is, even as a zombie, the number of its group is its own.
func (p *process) signalGroup(sig unix.Signal) {
	s, err := readStat(p.id.PID)
	if err != nil || s.Start != p.id.Start {
		return
	}
	if s.Group == p.id.PID {
		err = unix.Kill(-p.id.PID, sig)
	} else {
		err = signalProcess(p.id, sig)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, errGone) {
		p.log.Warn("a process could not be signalled", "pid", p.id.PID, "err", err)
	}
}

// reap kills the rest of the group while the dead process still holds its
// number, then takes its status: of a child, or of an orphan that became one.
func (p *process) reap() kbroker.Exit {
	p.destroy()
	e := p.exit()
	if ok := e.Code != nil && *e.Code == 0; !ok && p.group != nil && p.group.OutOfMemory() > 0 {
		e.OOM = true // of it, or of a process without which it did not go on
	}
	return e
}

func (p *process) exit() kbroker.Exit {
	if p.cmd != nil {
		// The error repeats what the state says.
		_ = p.cmd.Wait()
		if p.cmd.ProcessState != nil {
			if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
				return exitOf(unix.WaitStatus(status))
			}
		}
		return kbroker.Exit{Unknown: true, At: time.Now().UTC()}
	}
	return adoptedExit(p.id, p.pidfd)
}

func exitOf(s unix.WaitStatus) kbroker.Exit {
	e := kbroker.Exit{At: time.Now().UTC()}
	if s.Signaled() {
		e.Signal = unix.SignalName(s.Signal())
		return e
	}
	code := s.ExitStatus()
	e.Code = &code
	return e
}

// endLeftovers kills what the incarnation has started and left: all that is in its
// control group. Where it could leave that, or has none, who is in its process
// group, and descendants in sessions of their own: they carry its name in their
// environment.
func (p *process) endLeftovers(ctx context.Context) {
	if p.group != nil {
		ctx, cancel := context.WithTimeout(ctx, leftoverWait)
		defer cancel()
		if n, err := p.group.End(ctx); err != nil {
			p.log.Warn("a control group is left", "pid", p.id.PID, "err", err)
		} else if n > 0 {
			p.log.Info("killed descendants of an ended process", "pid", p.id.PID, "count", n)
		}
		if p.own {
			return
		}
	}
	reused := false // the number of the group is that of a later process
	look := func() ([]marked, error) {
		all, err := p.scanner.scan()
		for _, m := range all {
			reused = reused || m.PID == p.id.PID && m.Start != p.id.Start
		}
		return all, err
	}
	n, err := killAll(ctx, look, func(m marked) bool {
		return m.Incarnation == p.incarnation || !reused && m.Group == p.id.PID
	}, nil, 0, leftoverWait)
	if err != nil && ctx.Err() == nil {
		p.log.Warn("descendants of an ended process are left", "pid", p.id.PID, "err", err)
	} else if n > 0 {
		p.log.Info("killed descendants of an ended process", "pid", p.id.PID, "count", n)
	}
}

// killAll ends all processes that match, and the groups they lead: SIGTERM,
// SIGKILL after grace (0: SIGKILL at once), until a scan finds none. It gives
// up wait after the first SIGKILL. Returns how many different processes it has
// signalled. Zombies count as gone.
//
// kill, if there is one, is called before each round of SIGKILL: for what forks
// faster than it can be signalled.
func killAll(ctx context.Context, scan func() ([]marked, error), match func(marked) bool, kill func(), grace, wait time.Duration) (int, error) {
	begin := time.Now()
	told := make(map[procID]bool)
	for {
		all, err := scan()
		if err != nil {
			return len(told), err
		}
		left := kin(all, match)
		if len(left) == 0 {
			return len(told), nil
		}
		passed := time.Since(begin)
		if passed > grace+wait {
			return len(told), fmt.Errorf("%d processes outlive SIGKILL, the first is %d", len(left), left[0].PID)
		}
		if passed >= grace && kill != nil {
			kill()
		}
		for _, id := range left {
			sig := unix.SIGKILL
			if passed < grace {
				if told[id] {
					continue
				}
				sig = unix.SIGTERM
			}
			told[id] = true
			if err := signalProcess(id, sig); err != nil && !errors.Is(err, errGone) {
				return len(told), err
			}
		}
		pause(ctx, leftoverPoll)
		if ctx.Err() != nil {
			return len(told), ctx.Err()
		}
	}
}
