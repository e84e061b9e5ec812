package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// Load is one row of the result.
type Load struct {
	Callers      int
	PayloadBytes int
}

// plainBytes is the payload size that the keys do not name.
const plainBytes = 128

// Key names the ratio of our own side to a peer under a load, e.g.
// request/natsgo/16 or request/natsgo/16/1KiB.
func Key(peer string, l Load) string {
	key := fmt.Sprintf("request/%s/%d", peer, l.Callers)
	if l.PayloadBytes != plainBytes {
		key += "/" + sizeName(l.PayloadBytes)
	}
	return key
}

func sizeName(n int) string {
	if n >= 1<<10 && n%(1<<10) == 0 {
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprintf("%dB", n)
}

// Comparison is the rounds of our own side and of one peer under one load; the
// rounds of one index were measured one right after the other.
type Comparison struct {
	OwnName string
	Peer    string
	Load    Load
	Own     []Round
	Theirs  []Round
}

// Ratios are our own requests per second divided by the peer's, round by
// round: what the machine did meanwhile touched both.
func (c Comparison) Ratios() []float64 {
	ratios := make([]float64, len(c.Own))
	for i := range ratios {
		ratios[i] = c.Own[i].PerSecond() / c.Theirs[i].PerSecond()
	}
	return ratios
}

// median of v, which is not empty; of an even number the mean of the two in
// the middle.
func median[T cmp.Ordered](v []T, mean func(a, b T) T) T {
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return mean(s[n/2-1], s[n/2])
	}
	return s[len(s)/2]
}

func medianFloat(v []float64) float64 {
	return median(v, func(a, b float64) float64 { return (a + b) / 2 })
}

func medianTime(v []time.Duration) time.Duration {
	return median(v, func(a, b time.Duration) time.Duration { return (a + b) / 2 })
}

// quantile of sorted values by nearest rank; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

func each[T any](rounds []Round, f func(Round) T) []T {
	out := make([]T, len(rounds))
	for i, r := range rounds {
		out[i] = f(r)
	}
	return out
}

// Print writes the table and, as the last line, one JSON object with the
// ratios by key.
func Print(w io.Writer, all []Comparison) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "callers\tpayload\t\trequests/s\tp50\tp99\tcpu/request\tratio\tof rounds\t")
	keys := make(map[string]float64, len(all))
	for _, c := range all {
		ratios := c.Ratios()
		m := medianFloat(ratios)
		keys[Key(c.Peer, c.Load)] = math.Round(m*1000) / 1000
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%.2f\t%.2f to %.2f\t\n", c.Load.Callers, sizeName(c.Load.PayloadBytes), c.OwnName, figures(c.Own), m, slices.Min(ratios), slices.Max(ratios))
		fmt.Fprintf(t, "\t\t%s\t%s\t\t\t\n", c.Peer, figures(c.Theirs))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "requests/s, p50, p99 and cpu (callers and responders) are medians of the rounds; ratio is the median of the rounds' ratios of requests/s")
	b, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

func figures(rounds []Round) string {
	return fmt.Sprintf("%.0f\t%s\t%s\t%s",
		medianFloat(each(rounds, Round.PerSecond)),
		micros(medianTime(each(rounds, func(r Round) time.Duration { return r.P50 }))),
		micros(medianTime(each(rounds, func(r Round) time.Duration { return r.P99 }))),
		micros(medianTime(each(rounds, Round.CPUPerRequest))))
}

func micros(d time.Duration) string {
	return fmt.Sprintf("%.0f us", float64(d)/float64(time.Microsecond))
}
