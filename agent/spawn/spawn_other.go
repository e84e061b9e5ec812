//go:build unix && !linux

package spawn

import "errors"

var errNeedsLinux = errors.New("processes are contained on Linux alone")

// Start needs Linux.
func Start(Config) (*Child, error) { return nil, errNeedsLinux }

// Sandboxes is false.
func Sandboxes() bool { return false }

// LimitsFiles is false.
func LimitsFiles() bool { return false }

// Isolates needs Linux.
func Isolates() error { return errNeedsLinux }
