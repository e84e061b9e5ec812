//go:build linux

package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

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

// alerts tells of the next write to a file, once.
type alerts struct {
	f  *os.File
	fd int // File.Fd would make reads of f block
}

func newAlerts() (*alerts, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	return &alerts{f: os.NewFile(uintptr(fd), "inotify"), fd: fd}, nil
}

// arm asks for an alert, which comes with the number that it returns.
func (a *alerts) arm(path string) (int32, error) {
	wd, err := unix.InotifyAddWatch(a.fd, path, unix.IN_MODIFY|unix.IN_ONESHOT)
	return int32(wd), err
}

// run says of which files it was that were written to, until close.
func (a *alerts) run(ctx context.Context, tell chan<- int32) {
	events := make([]byte, 64<<10)
	for {
		n, err := a.f.Read(events)
		if err != nil {
			return
		}
		for e := events[:n]; len(e) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(e))
			name := binary.NativeEndian.Uint32(e[12:])
			if e = e[unix.SizeofInotifyEvent+int(name):]; wd < 0 {
				continue // the queue was full: the survey finds what grows
			}
			select {
			case tell <- wd:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (a *alerts) close() { a.f.Close() }
