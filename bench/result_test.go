package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker/bench/child"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		name string
		of   []float64
		want float64
	}{
		{"one value is its own median", []float64{4}, 4},
		{"of an odd number it is the one in the middle", []float64{9, 1, 5}, 5},
		{"of an even number it is the mean of the two in the middle", []float64{9, 1, 5, 3}, 4},
		{"one wild value does not move it", []float64{1, 1, 1000, 1, 1}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := slices.Clone(c.of)
			if got := medianFloat(c.of); got != c.want {
				t.Errorf("median of %v is %v, want %v", c.of, got, c.want)
			}
			if !slices.Equal(before, c.of) {
				t.Errorf("median changed its argument from %v to %v", before, c.of)
			}
		})
	}
}

func TestKey(t *testing.T) {
	for load, want := range map[Load]string{
		{whatRequest, 1, 128}:    "request/natsgo/1",
		{whatRequest, 128, 128}:  "request/natsgo/128",
		{whatRequest, 16, 1024}:  "request/natsgo/16/1KiB",
		{whatRequest, 16, 65536}: "request/natsgo/16/64KiB",
		{whatRequest, 16, 100}:   "request/natsgo/16/100B",
		{whatConnect, 1, 128}:    "connect/natsgo/1",
	} {
		if got := Key("natsgo", load); got != want {
			t.Errorf("key of %+v is %q, want %q", load, got, want)
		}
	}
}

func round(requests int) child.Round {
	return child.Round{Requests: requests, Elapsed: 2 * time.Second, P50: 100 * time.Microsecond, P99: time.Millisecond, CPU: time.Duration(requests) * 20 * time.Microsecond}
}

func printed(t *testing.T, ups []Up, results []Result) (table string, last map[string]float64) {
	t.Helper()
	var out bytes.Buffer
	if err := Print(&out, ups, results); err != nil {
		t.Fatalf("print: %v", err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatalf("the last line is no JSON object: %v in\n%s", err, out.String())
	}
	return strings.Join(lines[:len(lines)-1], "\n"), last
}

func TestPrintEndsWithTheMedianRatiosOfPairedRounds(t *testing.T) {
	table, got := printed(t, nil, []Result{{Load: Load{whatRequest, 16, 128}, Sides: []Measured{
		// The machine was slow in the last round, for all: its ratio counts
		// like the others. Ratios: 2, 1.5, 1.6 and 0.5, 1, 0.8.
		{"kbroker", []child.Round{round(4000), round(3000), round(160)}},
		{"natsgo", []child.Round{round(2000), round(2000), round(100)}},
		{"before", []child.Round{round(8000), round(3000), round(200)}},
	}}})
	if want := map[string]float64{"request/natsgo/16": 1.6, "request/before/16": 0.8}; !maps.Equal(got, want) {
		t.Errorf("last line %v, want %v", got, want)
	}
	for _, want := range []string{"1500", "1000", "1.60", "1.50 to 2.00", "0.80", "0.50 to 1.00", "100 us", "1000 us", "20 us"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
}

func TestPrintHasTheMedianSecondsOfComingUp(t *testing.T) {
	table, got := printed(t, []Up{
		{"kbroker", []time.Duration{9 * time.Second, 8100 * time.Millisecond, 8 * time.Second}},
		{"before", []time.Duration{7 * time.Second, 6 * time.Second, 30 * time.Second}},
	}, nil)
	if want := map[string]float64{"up/kbroker/s": 8.1, "up/before/s": 7}; !maps.Equal(got, want) {
		t.Errorf("last line %v, want %v", got, want)
	}
	for _, want := range []string{"8.10 s", "8.00 to 9.00", "7.00 s", "6.00 to 30.00"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
}
