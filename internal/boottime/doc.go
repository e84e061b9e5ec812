// Package boottime is the clock by which leases and bounds are measured: the time since
// the machine has started, what it was suspended for included. It is of one machine, and
// begins anew when that does.
package boottime
