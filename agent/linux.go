//go:build linux

package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// supported is nil where an agent can run.
func supported() error { return nil }

// prepareProcess makes the orphans of instances children of this process, so
// that they can be reaped, and keeps every file that it was itself given from
// reaching an instance.
func prepareProcess() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the subreaper: %w", err)
	}
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark files close-on-exec: %w", err)
	}
	return nil
}

// openPidfd returns a pollable handle of exactly the process id; errGone when
// that process is not there, or its pid belongs to another one by now.
func openPidfd(id procID) (*os.File, error) {
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", id.PID, err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("pidfd:%d", id.PID))
	// The handle holds the pid from here on; what it names is checked after.
	if s, err := readStat(id.PID); err != nil || s.Start != id.Start {
		f.Close()
		return nil, errGone
	}
	return f, nil
}

// waitPidfd returns nil when the process has exited (it may be a zombie), or
// an error when f's deadline passed or f was closed.
func waitPidfd(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return c.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return err == nil && n > 0
	})
}

// pidfdStatus is the wait status of a process that was reaped, by whomever, while f
// was open. errNotReaped: not yet; another error: this kernel does not tell (it does
// from Linux 6.15 on).
func pidfdStatus(f *os.File) (unix.WaitStatus, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	asked := c.Control(func(fd uintptr) { err = unix.IoctlPidfdInfo(int(fd), &info) })
	switch {
	case asked != nil || err != nil:
		return 0, fmt.Errorf("ask a pidfd how its process ended: %w", errors.Join(asked, err))
	case info.Mask&unix.PIDFD_INFO_EXIT == 0:
		return 0, errNotReaped
	}
	return unix.WaitStatus(uint32(info.Exit_code)), nil
}

// signalProcess signals exactly the process id, never a successor of its pid.
func signalProcess(id procID, sig unix.Signal) error {
	f, err := openPidfd(id)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("signal %d: %w", id.PID, err)
	}
	return nil
}

// syncFileSystem writes all that is not on disk yet of the file system of path.
func syncFileSystem(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// deadChild reports whether a child of this process has ended and is not reaped.
func deadChild() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}
