package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Round is what one process of callers measured.
type Round struct {
	Requests int           `json:"requests"` // that succeeded
	Failed   int           `json:"failed"`
	Error    string        `json:"error,omitempty"` // the first failure
	Elapsed  time.Duration `json:"elapsed"`
	P50      time.Duration `json:"p50"`
	P99      time.Duration `json:"p99"`
	CPU      time.Duration `json:"cpu"` // of the calling process; the runner adds the responders'
}

// PerSecond is the rate of the requests that succeeded.
func (r Round) PerSecond() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// CPUPerRequest is the cpu time of callers and responders.
func (r Round) CPUPerRequest() time.Duration { return r.CPU / time.Duration(max(r.Requests, 1)) }

var errWrongReply = errors.New("the reply is not the request")

// measure has a number of callers send one request after the other for the
// given time, and waits for the last reply.
func measure(ctx context.Context, c Caller, callers, payloadBytes int, length time.Duration) (Round, error) {
	before, err := cpuTime()
	if err != nil {
		return Round{}, err
	}
	type tally struct {
		took   []time.Duration
		failed int
		first  error
	}
	tallies := make([]tally, callers)
	begin := time.Now()
	var running sync.WaitGroup
	for i := range tallies {
		running.Go(func() {
			t := &tallies[i]
			payload := bytes.Repeat([]byte{byte('a' + i%26)}, payloadBytes)
			for ctx.Err() == nil {
				sent := time.Now()
				if sent.Sub(begin) >= length {
					return
				}
				reply, err := c.Call(ctx, payload)
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
	r.Requests, r.P50, r.P99 = len(took), quantile(took, 0.50), quantile(took, 0.99)
	return r, ctx.Err()
}

// cpuTime is the user and system time that this process has used.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
