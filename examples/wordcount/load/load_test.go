package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kbroker/kbroker"
)

func TestSplitCutsNoWordAndLosesNothing(t *testing.T) {
	for _, text := range []string{"", "one", "one two three", "  one  two\n\tthree ", "ä\u2003ö\u2003ü", "longword longerword w", "\xff\xfe one"} {
		for size := 1; size < 8; size++ {
			pieces := split([]byte(text), size)
			if got := string(bytes.Join(pieces, nil)); got != text {
				t.Errorf("split(%q, %d) joined is %q", text, size, got)
			}
			sum := 0
			for _, p := range pieces {
				sum += len(bytes.Fields(p))
			}
			if want := len(bytes.Fields([]byte(text))); sum != want {
				t.Errorf("split(%q, %d) = %q has %d words, want %d", text, size, pieces, sum, want)
			}
		}
	}
}

func TestTheLocalCountIsTheServicesCount(t *testing.T) {
	dir := t.TempDir()
	text := []byte("package main\n\nfunc main() { println(\"ä\u00a0ö\") }\n\xff\n")
	if err := os.WriteFile(filepath.Join(dir, "a.go"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.txt"), []byte("not sent"), 0o600); err != nil {
		t.Fatal(err)
	}
	chunks, err := readChunks(dir, ".go")
	if err != nil || len(chunks) != 1 || !bytes.Equal(chunks[0].text, text) {
		t.Fatalf("chunks %v, %v; want the one file", chunks, err)
	}
	if want := len(bytes.Fields(text)); chunks[0].words != want {
		t.Errorf("%d words counted here, the service counts %d", chunks[0].words, want)
	}
	if _, err := readChunks(dir, ".none"); err == nil {
		t.Error("a folder without text: no error")
	}
}

func TestTheLoopIsOpen(t *testing.T) {
	chunks := []chunk{{[]byte("one two"), 2}}
	count := func(service time.Duration) func([]byte) (int, error) {
		return func(text []byte) (int, error) {
			time.Sleep(service) // of the bubble
			return len(bytes.Fields(text)), nil
		}
	}
	for _, c := range []struct {
		name     string
		plan     plan
		service  time.Duration
		failed   int
		p50, p99 time.Duration
	}{
		{"enough callers: the latency is the service's", plan{100, 64, 10 * time.Second}, 50 * time.Millisecond, 0, 50 * time.Millisecond, 50 * time.Millisecond},
		// One caller of 20 ms at 10 ms a request: request i starts i*10 ms late.
		{"a caller that is late sends as soon as it is free", plan{100, 1, 4 * time.Second}, 20 * time.Millisecond, 0, 2010 * time.Millisecond, 3970 * time.Millisecond},
		// Half a second for each tenth: request i is 0.4*i s late, so 0 to 12 go,
		// and of the rest every fifth: 15, 20, 25.
		{"what could not start for 5 s is missed", plan{10, 1, 3 * time.Second}, 500 * time.Millisecond, 14, 3 * time.Second, 5500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				missed := 0
				r := c.plan.send(t.Context(), chunks, count(c.service), func(err error) {
					mu.Lock()
					defer mu.Unlock()
					if !errors.Is(err, errMissed) {
						t.Errorf("failure %v, want a miss", err)
					}
					missed++
				})
				want := int(c.plan.rate * c.plan.duration.Seconds())
				if r.Requests != want || r.OK+r.Failed != want || r.WordsLocal != 2*want || r.Words != 2*r.OK {
					t.Errorf("report %+v, want %d requests", r, want)
				}
				if r.Failed != c.failed || missed != c.failed {
					t.Errorf("%d failed, %d missed, want %d", r.Failed, missed, c.failed)
				}
				within := func(name string, got int64, want time.Duration) {
					if d := time.Duration(got) * time.Microsecond; d < want*9/10 || d > want*11/10 {
						t.Errorf("%s %v, want about %v", name, d, want)
					}
				}
				within("p50", r.P50, c.p50)
				within("p99", r.P99, c.p99)
			})
		})
	}
}

func TestFailuresAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		r := plan{10, 1, time.Second}.send(t.Context(), []chunk{{[]byte("one"), 1}}, func([]byte) (int, error) {
			n++
			switch n {
			case 3:
				return 0, &kbroker.Error{Code: kbroker.Unavailable, Executed: kbroker.ExecutedUnknown}
			case 4:
				return 0, &kbroker.Error{Code: kbroker.Unavailable, Executed: kbroker.ExecutedNo}
			}
			return 1, nil
		}, func(error) {})
		if r.Requests != 10 || r.OK != 8 || r.Failed != 2 || r.Unknown != 1 || r.Words != 8 || r.WordsLocal != 10 {
			t.Errorf("report %+v, want 10 requests, 8 ok, 2 failed, 1 of them unknown", r)
		}
	})
}

func TestPercentile(t *testing.T) {
	var d []time.Duration
	for i := range 100 {
		d = append(d, time.Duration(i+1))
	}
	for p, want := range map[int]time.Duration{50: 50, 99: 99, 100: 100} {
		if got := percentile(d, p); got != want {
			t.Errorf("percentile %d is %d, want %d", p, got, want)
		}
	}
	if got := percentile(d[:1], 99); got != 1 {
		t.Errorf("percentile of one is %d, want 1", got)
	}
	if got := percentile(nil, 99); got != 0 {
		t.Errorf("percentile of none is %d, want 0", got)
	}
}
