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

	"github.com/kbroker/kbroker/bench/child"
)

// Load is one row of the result.
type Load struct {
	What         string // whatRequest or whatConnect
	Callers      int    // at once
	PayloadBytes int
}

// plainBytes is the payload size that the keys do not name.
const plainBytes = 128

func (l Load) String() string {
	return fmt.Sprintf("%s, %d at once, %s", l.What, l.Callers, sizeName(l.PayloadBytes))
}

// Key names the ratio of our own side to another one under a load, e.g.
// request/natsgo/16 or request/natsgo/16/1KiB.
func Key(other string, l Load) string {
	key := fmt.Sprintf("%s/%s/%d", l.What, other, l.Callers)
	if l.PayloadBytes != plainBytes {
		key += "/" + sizeName(l.PayloadBytes)
	}
	return key
}

// KeyUp names the seconds that a cluster of a side takes, e.g. up/before/s.
func KeyUp(side string) string { return "up/" + side + "/s" }

func sizeName(n int) string {
	if n >= 1<<10 && n%(1<<10) == 0 {
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprintf("%dB", n)
}

// Result is the rounds of all sides under one load, our own first; the rounds of one
// index were measured one right after the other.
type Result struct {
	Load  Load
	Sides []Measured
}

// Measured is the rounds of one side.
type Measured struct {
	Name   string
	Rounds []child.Round
}

// Ratios are our own rate divided by that of another side, round by round: what the
// machine did meanwhile touched both.
func (r Result) Ratios(other Measured) []float64 {
	ratios := make([]float64, len(other.Rounds))
	for i := range ratios {
		ratios[i] = r.Sides[0].Rounds[i].PerSecond() / other.Rounds[i].PerSecond()
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

func each[T any](rounds []child.Round, f func(child.Round) T) []T {
	out := make([]T, len(rounds))
	for i, r := range rounds {
		out[i] = f(r)
	}
	return out
}

// Print writes a table of what was measured and, as the last line, one JSON object:
// the ratios, and the seconds of coming up, by key.
func Print(w io.Writer, ups []Up, results []Result) error {
	keys := map[string]float64{}
	if len(ups) > 0 {
		if err := printUps(w, ups, keys); err != nil {
			return err
		}
	}
	if len(results) > 0 {
		if err := printResults(w, results, keys); err != nil {
			return err
		}
	}
	b, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

func printUps(w io.Writer, ups []Up, keys map[string]float64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "up\tuntil hello answers\tof rounds\t")
	for _, u := range ups {
		m := medianTime(u.Took)
		keys[KeyUp(u.Name)] = thousandths(m.Seconds())
		fmt.Fprintf(t, "%s\t%.2f s\t%.2f to %.2f\t\n", u.Name, m.Seconds(), slices.Min(u.Took).Seconds(), slices.Max(u.Took).Seconds())
	}
	return t.Flush()
}

func printResults(w io.Writer, results []Result, keys map[string]float64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "what\tat once\tpayload\t\tper second\tp50\tp99\tcpu each\tratio\tof rounds\t")
	for _, r := range results {
		for i, m := range r.Sides {
			if i == 0 {
				fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t\t\t\n", r.Load.What, r.Load.Callers, sizeName(r.Load.PayloadBytes), m.Name, figures(m.Rounds))
				continue
			}
			ratios := r.Ratios(m)
			ratio := medianFloat(ratios)
			keys[Key(m.Name, r.Load)] = thousandths(ratio)
			fmt.Fprintf(t, "\t\t\t%s\t%s\t%.2f\t%.2f to %.2f\t\n", m.Name, figures(m.Rounds), ratio, slices.Min(ratios), slices.Max(ratios))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "per second, p50, p99 and cpu (callers and responders) are medians of the rounds; ratio is the median of the rounds' ratios, %s by the other, of what was done per second\n", results[0].Sides[0].Name)
	return err
}

func thousandths(v float64) float64 { return math.Round(v*1000) / 1000 }

func figures(rounds []child.Round) string {
	return fmt.Sprintf("%.0f\t%s\t%s\t%s",
		medianFloat(each(rounds, child.Round.PerSecond)),
		micros(medianTime(each(rounds, func(r child.Round) time.Duration { return r.P50 }))),
		micros(medianTime(each(rounds, func(r child.Round) time.Duration { return r.P99 }))),
		micros(medianTime(each(rounds, child.Round.CPUPerRequest))))
}

func micros(d time.Duration) string {
	return fmt.Sprintf("%.0f us", float64(d)/float64(time.Microsecond))
}
