package boottime

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time of this machine. On macOS CLOCK_MONOTONIC_RAW goes on
// while the machine sleeps, as CLOCK_BOOTTIME does on Linux.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
		panic(fmt.Sprintf("boottime: read the clock: %v", err))
	}
	return time.Duration(ts.Nano())
}
