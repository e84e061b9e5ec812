package boottime

import (
	"sync/atomic"
	"time"
)

// ahead is by how much this process is ahead of its machine.
var ahead atomic.Int64

// Now is the time of this machine, as far as a test has not advanced it.
func Now() time.Duration { return machine() + time.Duration(ahead.Load()) }

// Advance has the clock of this process go ahead of its machine's. It is for tests, which
// cannot wait for leases to end.
func Advance(d time.Duration) { ahead.Add(int64(d)) }
