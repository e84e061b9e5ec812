//go:build unix

package credential

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// lockPatience bounds how long who writes a credential is waited for: it may be paused.
const (
	lockPatience = time.Second
	lockPoll     = 5 * time.Millisecond
)

// lock keeps other processes from writing credentials to a directory until unlock.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockPatience); ; <-time.After(lockPoll) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) || time.Now().After(deadline):
			return nil, errors.Join(errors.New("another process writes it"), err, f.Close())
		}
	}
}
