//go:build linux

package stamp

import (
	"io/fs"
	"syscall"
	"time"
)

// Of is the stamp of a file that was looked at; zero when its file system does not
// tell.
func Of(info fs.FileInfo) Stamp {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Stamp{} // as of no file: it is read
	}
	return Stamp{
		Device: s.Dev, Inode: s.Ino, SizeBytes: s.Size, Mode: info.Mode(),
		MTime: time.Duration(s.Mtim.Nano()), CTime: time.Duration(s.Ctim.Nano()),
	}
}
