// Package pulse is how a process shows the agent of its host that it lives: it
// touches a file, again and again. Nothing of it goes over the bus, so that no
// fault of the network looks like that of a process. Whoever looks sees only
// whether the file changes; what time it shows is of no meaning.
package pulse

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// File is touched by an instance, beside its instance file.
	File = "alive"
	// Every is the time between two beats.
	Every = 500 * time.Millisecond
)

// Beat touches the file of that path, which it makes (0600), until ctx ends; then
// it removes it, as nobody may wait for more. beat is called after each that went
// well. What does not is tried again with the next: a disk that is full, slow or
// read-only is no reason for a process to fail.
func Beat(ctx context.Context, path string, beat func()) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	var f *os.File
	defer func() {
		if f != nil {
			_ = f.Close()
			_ = os.Remove(path) // it may have gone with its directory
		}
	}()
	for {
		if f == nil {
			f, _ = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
		}
		if f != nil && touch(f) == nil {
			beat()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func touch(f *os.File) error {
	now := unix.NsecToTimeval(time.Now().UnixNano())
	return unix.Futimes(int(f.Fd()), []unix.Timeval{now, now})
}
