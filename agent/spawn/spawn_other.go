//go:build unix && !linux

package spawn

import "errors"

var errNeedsLinux = errors.New("processes are contained on Linux alone")

// Start needs Linux.
func Start(Config) (*Child, error) { return nil, errNeedsLinux }

// Holds is false.
func Holds() bool { return false }

// Sandboxes is false.
func Sandboxes() bool { return false }

// Isolates needs Linux.
func Isolates() error { return errNeedsLinux }
