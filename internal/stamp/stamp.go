// Package stamp tells whether a file was changed, or replaced, without reading it.
package stamp

import (
	"io/fs"
	"time"
)

// settleTime is how long a file must have been as it is for its stamp to stand for
// its content: the kernel's clock for files has ticks of up to 10 ms, and what is
// written twice within one has the same stamp.
const settleTime = 50 * time.Millisecond

// Stamp tells a file that was changed, or replaced, without reading it: all that
// writes to a file, or to its mode, sets its ctime, and no system call sets that
// back. It does not see what bypasses the file system or sets the clock, which takes
// root, nor a disk that returns other bytes than were written. Two are compared with
// ==; the zero value is that of no file.
type Stamp struct {
	Device, Inode uint64
	SizeBytes     int64
	Mode          fs.FileMode
	MTime, CTime  time.Duration // since 1970
}

// Settled: whoever changes the file after now changes its stamp. A clock that was
// set back leaves stamps in the future: they never settle.
func (s Stamp) Settled(now time.Time) bool {
	return time.Duration(now.UnixNano())-s.CTime > settleTime
}
