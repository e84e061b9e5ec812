package state

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Boottime is the Clock of this machine. On macOS CLOCK_MONOTONIC_RAW goes on
// while the machine sleeps, as CLOCK_BOOTTIME does on Linux.
func Boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
		panic(fmt.Sprintf("state: read the boottime clock: %v", err))
	}
	return time.Duration(ts.Nano())
}
