package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// keepFiles keeps what this process was given open from those that it starts: an agent
// outlives it, and would hold a caller's pipe or lock for ever.
func keepFiles() error {
	const firstAfterErrors = 3
	if err := unix.CloseRange(firstAfterErrors, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark files close-on-exec: %w", err)
	}
	return nil
}
