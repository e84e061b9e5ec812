package agent

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
)

// How a process ended, its parent is told. The parent of an adopted one is not this
// agent, which asks the kernel instead:
//
//	the agent was restarted in place    it is a child still: wait4
//	it is a zombie                      /proc/PID/stat has its status
//	it was reaped, Linux 6.15 and up    so has a pidfd that was opened before
//
// Where none of these answers, nobody knows, and code 0 is never made of that.

const (
	// reapedWithin bounds how long the new parent of an adopted process may take to
	// reap it before its status counts as unknown.
	reapedWithin = 300 * time.Millisecond
	reapedPoll   = time.Millisecond
	// statExitCode is the field of /proc/PID/stat, after the name, that has the wait
	// status of a zombie, for who may trace it; proc(5).
	statExitCode = 49
)

// errNotReaped: the process is there, perhaps as a zombie.
var errNotReaped = errors.New("not reaped")

// adoptedExit is how a process ended that was not started by this process.
func adoptedExit(id procID, pidfd *os.File) kbroker.Exit {
	var status unix.WaitStatus
	if pid, err := unix.Wait4(id.PID, &status, unix.WNOHANG, nil); err == nil && pid == id.PID {
		return exitOf(status)
	}
	zombie, seen := zombieStatus(id)
	for begin := time.Now(); !seen; <-time.After(reapedPoll) {
		status, err := pidfdStatus(pidfd)
		if err == nil {
			return exitOf(status)
		}
		if !errors.Is(err, errNotReaped) || time.Since(begin) > reapedWithin {
			return kbroker.Exit{Unknown: true, At: time.Now().UTC()}
		}
	}
	return exitOf(zombie)
}

// zombieStatus is the wait status of a process that has ended and was not reaped. 0 is
// also what who may not trace it is shown, and so tells nothing.
func zombieStatus(id procID) (unix.WaitStatus, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id.PID))
	if err != nil {
		return 0, false
	}
	s, err := parseStat(id.PID, b)
	if err != nil || s.procID != id || !s.ended() {
		return 0, false
	}
	f, err := statFields(id.PID, b, statExitCode)
	if err != nil {
		return 0, false
	}
	status, err := strconv.ParseUint(f[statExitCode], 10, 32)
	return unix.WaitStatus(status), err == nil && status != 0
}
