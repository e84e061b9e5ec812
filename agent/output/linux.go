//go:build linux

package output

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// punch makes a hole of the file's bytes from on, up to to. Who has it open for
// appending goes on at its end, and hardly waits.
func punch(f *os.File, from, to int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	if err != nil {
		return fmt.Errorf("punch output: %w", err)
	}
	return nil
}

// collapse takes the first bytes of a file out, which moves the others.
func collapse(f *os.File, bytes int64) error {
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, bytes); err != nil {
		return fmt.Errorf("fold output: %w", err)
	}
	return nil
}

// unable is true for the error of a file system that cannot do what was asked.
func unable(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)
}

// holeOf is the length of the hole that a file of a size begins with; 0 where the
// file system does not tell.
func holeOf(f *os.File, size int64) (int64, error) {
	at, err := f.Seek(0, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil
	case errors.Is(err, unix.EINVAL):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("find the begin of output: %w", err)
	}
	return min(at, size), nil
}

func inodeOf(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}

// alerts tells of the next write to a file, once. One thread waits for them; nudge
// is for all others.
type alerts struct {
	inotify int // -1: there is none
	ears    [2]int
}

func newAlerts() (*alerts, error) {
	a := &alerts{}
	if err := unix.Pipe2(a.ears[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("watch output: %w", err)
	}
	var err error
	if a.inotify, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		a.inotify = -1 // there are too many: files are looked at all the time
	}
	return a, nil
}

// close ends it; nobody may nudge any more.
func (a *alerts) close() {
	for _, fd := range []int{a.inotify, a.ears[0], a.ears[1]} {
		if fd >= 0 {
			_ = unix.Close(fd) // nothing was written to it that could be lost
		}
	}
}

// nudge ends a wait, the present one or else the next.
func (a *alerts) nudge() {
	_, _ = unix.Write(a.ears[1], []byte{0}) // a full pipe wakes as well
}

// arm asks for an alert, which comes with the number that it returns.
func (a *alerts) arm(path string) (int32, error) {
	wd, err := unix.InotifyAddWatch(a.inotify, path, unix.IN_MODIFY|unix.IN_ONESHOT)
	return int32(wd), err
}

// wait waits for alerts, at most so long, and returns their numbers.
func (a *alerts) wait(atMost time.Duration) (written []int32) {
	fds := []unix.PollFd{{Fd: int32(a.inotify), Events: unix.POLLIN}, {Fd: int32(a.ears[0]), Events: unix.POLLIN}}
	limit := unix.NsecToTimespec(max(0, atMost).Nanoseconds())
	if n, err := unix.Ppoll(fds, &limit, nil); err != nil || n == 0 {
		return nil // a signal is as good as the time
	}
	buf := make([]byte, 16<<10)
	if fds[1].Revents != 0 {
		_, _ = unix.Read(a.ears[0], buf) // what is left wakes again
	}
	if fds[0].Revents == 0 {
		return nil
	}
	n, err := unix.Read(a.inotify, buf)
	if err != nil {
		return nil
	}
	for e := buf[:n]; len(e) >= unix.SizeofInotifyEvent; {
		written = append(written, int32(binary.NativeEndian.Uint32(e)))
		name := binary.NativeEndian.Uint32(e[12:])
		e = e[unix.SizeofInotifyEvent+int(name):]
	}
	return written
}

// lookerNice is the priority of the looker's thread: it works for microseconds, and
// what floods a file should not get far before it does. Only root may have it.
const lookerNice = -15

// hurry gives the calling goroutine a thread of its own, one of a high priority where
// that is allowed; the thread ends with it.
func hurry() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), lookerNice) // without it the bound is kept on all but a busy machine
}
