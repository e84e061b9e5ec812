package child

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Round is what one process measured: requests, or connections with one request each.
type Round struct {
	Requests int           `json:"requests"` // that succeeded
	Failed   int           `json:"failed"`
	Error    string        `json:"error,omitempty"` // the first failure
	Elapsed  time.Duration `json:"elapsed"`
	P50      time.Duration `json:"p50"` // of one
	P99      time.Duration `json:"p99"`
	Max      time.Duration `json:"max"`
	CPU      time.Duration `json:"cpu"` // of the calling process; the runner adds the responders'
}

// PerSecond is the rate of those that succeeded.
func (r Round) PerSecond() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// CPUPerRequest is the cpu time of callers and responders.
func (r Round) CPUPerRequest() time.Duration { return r.CPU / time.Duration(max(r.Requests, 1)) }

var errWrongReply = errors.New("the reply is not the request")

// measure has the callers of a job do something once, and again, for the given time or
// until all have begun the most that they may, and waits for the last reply. once
// returns the reply to one request.
func measure(ctx context.Context, once func(context.Context, []byte) ([]byte, error), j Job, length time.Duration) (Round, error) {
	before, err := cpuTime()
	if err != nil {
		return Round{}, err
	}
	type tally struct {
		took   []time.Duration
		failed int
		first  error
	}
	tallies := make([]tally, j.Callers)
	var begun atomic.Int64
	begin := time.Now()
	var running sync.WaitGroup
	for i := range tallies {
		running.Go(func() {
			t := &tallies[i]
			payload := bytes.Repeat([]byte{byte('a' + i%26)}, j.Bytes)
			for ctx.Err() == nil {
				sent := time.Now()
				if sent.Sub(begin) >= length || (j.Most > 0 && begun.Add(1) > int64(j.Most)) {
					return
				}
				reply, err := once(ctx, payload)
				if err == nil && !bytes.Equal(reply, payload) {
					err = errWrongReply
				}
				if err != nil {
					t.failed++
					t.first = cmp.Or(t.first, err)
					continue
				}
				t.took = append(t.took, time.Since(sent))
			}
		})
	}
	running.Wait()
	r := Round{Elapsed: time.Since(begin)}
	after, err := cpuTime()
	if err != nil {
		return Round{}, err
	}
	r.CPU = after - before
	var took []time.Duration
	for _, t := range tallies {
		took = append(took, t.took...)
		r.Failed += t.failed
		if r.Error == "" && t.first != nil {
			r.Error = t.first.Error()
		}
	}
	slices.Sort(took)
	r.Requests, r.P50, r.P99, r.Max = len(took), quantile(took, 0.50), quantile(took, 0.99), quantile(took, 1)
	return r, ctx.Err()
}

// quantile of sorted values by nearest rank; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// cpuTime is the user and system time that this process has used.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
