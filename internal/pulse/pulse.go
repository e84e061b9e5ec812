// Package pulse is how a process shows the agent of its host that it lives: it
// touches a file, again and again. Nothing of it goes over the bus, so that no
// fault of the network looks like that of a process. Whoever looks sees only
// whether the file changes; what time it shows is of no meaning.
//
// What else a process has to look at now and then it does with the same beat: one that has
// nothing to do wakes up seldom then.
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

// Until is how long it takes until the next of the beats that have come every so often since a
// time, more than 0: those of a period that is a multiple of another one's come together with
// its.
func Until(since time.Time, every time.Duration) time.Duration {
	return every - (time.Since(since)%every+every)%every
}

// Beat touches the file of that path, which it makes (0600), at once and with the beats since a
// time, until ctx ends; then it removes it, as nobody may wait for more. beat is called after each
// that went well. What does not is tried again with the next: a disk that is full, slow or
// read-only is no reason for a process to fail.
func Beat(ctx context.Context, path string, since time.Time, beat func()) {
	tick := time.NewTimer(Until(since, Every))
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
			tick.Reset(Until(since, Every))
		}
	}
}

func touch(f *os.File) error {
	now := unix.NsecToTimeval(time.Now().UnixNano())
	return unix.Futimes(int(f.Fd()), []unix.Timeval{now, now})
}
