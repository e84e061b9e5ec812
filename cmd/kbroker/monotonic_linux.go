package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is the clock that systemd stamps the starts of units with.
func monotonic() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return time.Duration(t.Nano()), nil
}
