package boottime

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time of this machine. It goes on while the machine is
// suspended and knows nothing of the wall clock.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("boottime: read the clock: %v", err))
	}
	return time.Duration(ts.Nano())
}
