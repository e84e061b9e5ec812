package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker"
)

// Report is the line that is printed.
type Report struct {
	Words      int     `json:"words"`       // counted by the cluster
	WordsLocal int     `json:"words_local"` // of all chunks that were due, counted here
	Requests   int     `json:"requests"`    // that were due
	OK         int     `json:"ok"`
	Failed     int     `json:"failed"`  // missed ones included
	Unknown    int     `json:"unknown"` // of the failed: may have run
	Retried    uint64  `json:"retried"` // attempts sent again
	PerSecond  float64 `json:"requests_per_s"`
	P50        int64   `json:"p50_us"` // of answered requests, from the scheduled time
	P99        int64   `json:"p99_us"`
}

// plan says what to send when: request i is due i/rate after the start.
type plan struct {
	rate     float64
	callers  int
	duration time.Duration
}

func (p plan) due(i int64) time.Duration {
	return time.Duration(float64(i) / p.rate * float64(time.Second))
}

// errMissed: no caller was free within the deadline.
var errMissed = errors.New("missed: no caller was free in time")

// send sends until the plan or ctx ends and waits for the last answer. Callers
// take the requests in the order of their times, so the earliest one that
// waits goes first. failed is told of every failure.
func (p plan) send(ctx context.Context, chunks []chunk, count func([]byte) (int, error), failed func(error)) Report {
	var next atomic.Int64
	parts := make([]tally, p.callers)
	start := time.Now()
	var wg sync.WaitGroup
	for c := range parts {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				due := p.due(i)
				if due >= p.duration || !sleepUntil(ctx, start.Add(due)) {
					return
				}
				k := chunks[int(i)%len(chunks)]
				var n int
				err := errMissed
				if time.Since(start.Add(due)) <= deadline {
					n, err = count(k.text)
				}
				if err != nil {
					failed(err)
				}
				parts[c].add(k, n, err, time.Since(start.Add(due)))
			}
		})
	}
	wg.Wait()
	return sum(parts, time.Since(start))
}

// sleepUntil returns false when ctx ended first.
func sleepUntil(ctx context.Context, at time.Time) bool {
	left := time.Until(at)
	if left <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// tally is what one caller saw.
type tally struct {
	words, local        int
	ok, failed, unknown int
	took                []time.Duration
}

func (t *tally) add(k chunk, n int, err error, took time.Duration) {
	t.local += k.words
	if err == nil {
		t.ok++
		t.words += n
		t.took = append(t.took, took)
		return
	}
	t.failed++
	if e, ok := errors.AsType[*kbroker.Error](err); ok && e.Executed == kbroker.ExecutedUnknown {
		t.unknown++
	}
}

func sum(parts []tally, elapsed time.Duration) Report {
	var r Report
	var took []time.Duration
	for _, t := range parts {
		r.Words += t.words
		r.WordsLocal += t.local
		r.OK += t.ok
		r.Failed += t.failed
		r.Unknown += t.unknown
		took = append(took, t.took...)
	}
	r.Requests = r.OK + r.Failed
	r.PerSecond = float64(r.Requests) / elapsed.Seconds()
	slices.Sort(took)
	r.P50 = percentile(took, 50).Microseconds()
	r.P99 = percentile(took, 99).Microseconds()
	return r
}

// percentile is the smallest value that at least p percent do not exceed.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max((len(sorted)*p+99)/100, 1)-1]
}
