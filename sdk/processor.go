package sdk

import (
	"syscall"
	"time"
)

// meter makes cores of processor time.
type meter struct {
	at   time.Time // 0: never
	used time.Duration
}

// cores are those that were used since it was called last; 0 the first time.
func (m *meter) cores(now time.Time, used time.Duration) float64 {
	was := *m
	m.at, m.used = now, used
	if over := now.Sub(was.at); !was.at.IsZero() && over > 0 {
		return max((used-was.used).Seconds()/over.Seconds(), 0)
	}
	return 0
}

// processTime is how long processors have worked for this process; 0: it is not known.
func processTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
