package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker/bench/child"
)

func TestMillionIsParsed(t *testing.T) {
	s, err := parse([]string{"-bin", "x", "-objects", "million", "-count", "20000", "-activate", "500"})
	if err != nil || !s.million || s.count != 20000 || s.activate != 500 {
		t.Errorf("parsed %+v (%v), want a million of 20000 with 500", s, err)
	}
	for name, args := range map[string]string{
		"no objects":             "-bin x -objects million -count 0",
		"none that is activated": "-bin x -objects million -activate -1",
		"on servers of others":   "-servers nats://a -objects million",
		"with others":            "-bin x -objects million,cold",
	} {
		if s, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s: parsed as %+v, want an error", name, s)
		}
	}
}

func TestEachObjectIsActivatedOnce(t *testing.T) {
	for _, objects := range []int64{1, 1000, 20_000, 1_000_000} {
		seen := make([]bool, objects)
		for i := range objects {
			n := nth(i, objects)
			if seen[n] {
				t.Fatalf("of %d objects number %d comes twice", objects, n)
			}
			seen[n] = true
		}
	}
}

func TestStatusKiB(t *testing.T) {
	status := []byte("Name:\tkbroker\nVmHWM:\t  123456 kB\nVmRSS:\t    2048 kB\nThreads:\t8\n")
	for name, want := range map[string]int64{"VmRSS:": 2 << 20, "VmHWM:": 123456 << 10, "VmSwap:": 0} {
		if got := statusKiB(status, name); got != want {
			t.Errorf("%s %d bytes, want %d", name, got, want)
		}
	}
}

func TestPrintOfAMillion(t *testing.T) {
	m := million{
		objects: 1000, active: 10,
		done: []phase{
			{"store", child.Round{Requests: 1000, Elapsed: 2 * time.Second, P50: time.Millisecond, P99: 5 * time.Millisecond, Max: 9 * time.Millisecond}},
			{"kbroker objects bench", child.Round{Requests: 1, Elapsed: 1500 * time.Millisecond}},
		},
		seen: []sample{
			{name: "empty", processes: []used{{"host h1", 70 * mebi, 90 * mebi}}, subscriptions: 5, diskBytes: 3 * mebi},
			{name: "stored", processes: []used{{"host h1", 80 * mebi, 95 * mebi}, {"bench-keeper-1", 20 * mebi, 20 * mebi}}, subscriptions: 5, diskBytes: 9 * mebi},
		},
	}
	var out bytes.Buffer
	if err := m.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"million/store/per_s":500`, `"million/store/longest_ms":9`, `"million/kbroker objects bench/s":1.5`,
		`"million/stored/host h1/mib":80`, `"million/empty/disk_mib":3`, "70 90", "80 95", "bench-keeper-1",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("printed is no %q:\n%s", want, &out)
		}
	}
}
