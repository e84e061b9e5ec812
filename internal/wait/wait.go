// Package wait polls in tests: over sockets and processes there is nothing to
// block on, and a sleep is either too short or too long.
package wait

import (
	"testing"
	"time"
)

// Until calls check until it returns nil, and fails t with its last error when
// that has not happened within timeout.
func Until(t testing.TB, timeout time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	pause := time.Millisecond
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", timeout, err)
		}
		time.Sleep(pause)
		pause = min(2*pause, 50*time.Millisecond)
	}
}
