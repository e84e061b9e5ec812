package child

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		name string
		of   []time.Duration
		q    float64
		want time.Duration
	}{
		{"of nothing it is zero", nil, 0.5, 0},
		{"the 50th of a hundred", hundred, 0.50, 50},
		{"the 99th of a hundred", hundred, 0.99, 99},
		{"the last of a few", hundred[:3], 0.99, 3},
		{"the first for zero", hundred, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := quantile(c.of, c.q); got != c.want {
				t.Errorf("quantile %v is %d, want %d", c.q, got, c.want)
			}
		})
	}
}

func TestRoundFigures(t *testing.T) {
	r := Round{Requests: 5000, Elapsed: 2 * time.Second, CPU: 100 * time.Millisecond}
	if got := r.PerSecond(); got != 2500 {
		t.Errorf("%v requests/s, want 2500", got)
	}
	if got := r.CPUPerRequest(); got != 20*time.Microsecond {
		t.Errorf("%v of cpu per request, want 20 us", got)
	}
}

// echo is a caller that answers itself, every nth time wrongly and every mth
// with an error (0: never).
type echo struct {
	calls       atomic.Int64
	wrong, fail int64
}

func (e *echo) Call(_ context.Context, payload []byte) ([]byte, error) {
	n := e.calls.Add(1)
	switch {
	case e.fail > 0 && n%e.fail == 0:
		return nil, errors.New("no luck")
	case e.wrong > 0 && n%e.wrong == 0:
		return payload[1:], nil
	}
	return payload, nil
}

func TestMeasureCountsEveryCall(t *testing.T) {
	for _, c := range []struct {
		name  string
		echo  *echo
		error string
	}{
		{"all succeed", &echo{}, ""},
		{"a wrong reply is a failure", &echo{wrong: 3}, errWrongReply.Error()},
		{"an error is a failure", &echo{fail: 3}, "no luck"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := measure(t.Context(), c.echo.Call, Job{Callers: 4, Bytes: 16}, 5*time.Millisecond)
			if err != nil {
				t.Fatalf("measure: %v", err)
			}
			calls := c.echo.calls.Load()
			if int64(r.Requests+r.Failed) != calls || r.Requests == 0 {
				t.Errorf("%d succeeded and %d failed of %d calls", r.Requests, r.Failed, calls)
			}
			if r.Error != c.error || (r.Failed > 0) != (c.error != "") {
				t.Errorf("%d failed with %q, want %q", r.Failed, r.Error, c.error)
			}
			if r.Elapsed < 5*time.Millisecond {
				t.Errorf("elapsed %v, want the whole round of 5 ms", r.Elapsed)
			}
		})
	}
}

func TestMeasureEndsAfterTheMostThatItMay(t *testing.T) {
	e := &echo{}
	r, err := measure(t.Context(), e.Call, Job{Callers: 4, Bytes: 16, Most: 10}, time.Minute)
	if err != nil {
		t.Fatalf("measure: %v", err)
	}
	if r.Requests != 10 || e.calls.Load() != 10 {
		t.Errorf("%d counted and %d made, want 10", r.Requests, e.calls.Load())
	}
	if r.Elapsed >= time.Minute {
		t.Errorf("elapsed %v, want the end with the tenth", r.Elapsed)
	}
}
