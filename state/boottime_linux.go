package state

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Boottime is the Clock of this machine. It goes on while the machine is
// suspended and knows nothing of the wall clock.
func Boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("state: read the boottime clock: %v", err))
	}
	return time.Duration(ts.Nano())
}
