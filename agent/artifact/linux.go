//go:build linux

package artifact

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// exchange gives a directory the name to, and what had that name, if anything, the
// name from: who opens files by name finds one or the other at any time.
func exchange(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.ENOENT):
		return os.Rename(from, to)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // not on this file system
		return errors.Join(os.RemoveAll(to), os.Rename(from, to))
	}
	return err
}
