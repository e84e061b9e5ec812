package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/natstest"
)

// TestMain lets the test's program be its own children, as the command is.
func TestMain(m *testing.M) {
	if isChild(os.Args[1:]) {
		os.Exit(childMain(os.Args[1]))
	}
	os.Exit(m.Run())
}

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

func TestKey(t *testing.T) {
	for load, want := range map[Load]string{
		{1, 128}:    "request/natsgo/1",
		{128, 128}:  "request/natsgo/128",
		{16, 1024}:  "request/natsgo/16/1KiB",
		{16, 65536}: "request/natsgo/16/64KiB",
		{16, 100}:   "request/natsgo/16/100B",
	} {
		if got := Key("natsgo", load); got != want {
			t.Errorf("key of %+v is %q, want %q", load, got, want)
		}
	}
}

func round(requests int) Round {
	return Round{Requests: requests, Elapsed: 2 * time.Second, P50: 100 * time.Microsecond, P99: time.Millisecond, CPU: time.Duration(requests) * 20 * time.Microsecond}
}

func TestRoundFigures(t *testing.T) {
	r := round(5000)
	if got := r.PerSecond(); got != 2500 {
		t.Errorf("%v requests/s, want 2500", got)
	}
	if got := r.CPUPerRequest(); got != 20*time.Microsecond {
		t.Errorf("%v of cpu per request, want 20 us", got)
	}
}

func TestPrintEndsWithTheMedianRatioOfPairedRounds(t *testing.T) {
	c := Comparison{
		OwnName: "kbroker", Peer: "natsgo", Load: Load{16, 128},
		// The machine was slow in the last round, for both: its ratio counts
		// like the others. Ratios: 2, 1.5, 1.6.
		Own:    []Round{round(4000), round(3000), round(160)},
		Theirs: []Round{round(2000), round(2000), round(100)},
	}
	var out bytes.Buffer
	if err := Print(&out, []Comparison{c}); err != nil {
		t.Fatalf("print: %v", err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	var got map[string]float64
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("the last line is no JSON object: %v in\n%s", err, out.String())
	}
	if want := map[string]float64{"request/natsgo/16": 1.6}; !maps.Equal(got, want) {
		t.Errorf("last line %v, want %v", got, want)
	}
	table := strings.Join(lines[:len(lines)-1], "\n")
	for _, want := range []string{"1500", "1000", "1.60", "1.50 to 2.00", "100 us", "1000 us", "20 us"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
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

func (*echo) Close() {}

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
			r, err := measure(t.Context(), c.echo, 4, 16, 5*time.Millisecond)
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

func TestServersOf(t *testing.T) {
	const ready = `[{"name":"h1","state":"ready","client":"127.0.0.1:1"},{"name":"h2","state":"ready","client":"127.0.0.1:2"},{"name":"h3","state":"ready","client":"127.0.0.1:3"}]`
	got, err := serversOf([]byte(ready))
	if want := []string{"nats://127.0.0.1:1", "nats://127.0.0.1:2", "nats://127.0.0.1:3"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("servers %v, error %v, want %v", got, err, want)
	}
	for name, hosts := range map[string]string{
		"a host that is lost":         strings.Replace(ready, `"ready"`, `"lost"`, 1),
		"a host without an address":   strings.Replace(ready, "127.0.0.1:2", "", 1),
		"fewer hosts than were asked": `[{"name":"h1","state":"ready","client":"127.0.0.1:1"}]`,
		"something else":              `{"code":"unavailable"}`,
	} {
		if got, err := serversOf([]byte(hosts)); err == nil {
			t.Errorf("%s: servers %v, want an error", name, got)
		}
	}
}

func TestFromHostListsTheOwnHostFirst(t *testing.T) {
	servers := []string{"a", "b", "c"}
	for i, want := range []string{"a b c", "b c a", "c a b", "a b c"} {
		if got := strings.Join(fromHost(servers, i).Servers, " "); got != want {
			t.Errorf("from host %d: %s, want %s", i, got, want)
		}
	}
}

// The whole thing on one server that stands for three, with real processes.
func TestRunMeasuresEveryLoad(t *testing.T) {
	url := natstest.Start(t).URL
	all, err := Run(t.Context(), Plan{
		Servers: []string{url, url, url}, Callers: []int{1, 4}, Sizes: []int{128, 1024},
		Rounds: 1, WarmUp: 20 * time.Millisecond, Length: 50 * time.Millisecond,
	}, io.Discard)
	if err != nil {
		t.Fatalf("run: %v", err)
	}
	var keys []string
	for _, c := range all {
		keys = append(keys, Key(c.Peer, c.Load))
		for side, r := range map[string]Round{c.OwnName: c.Own[0], c.Peer: c.Theirs[0]} {
			if r.Requests == 0 || r.P50 <= 0 || r.P99 < r.P50 || r.CPU <= 0 || r.Elapsed < 50*time.Millisecond {
				t.Errorf("%s under %+v measured %+v", side, c.Load, r)
			}
		}
	}
	want := []string{"request/natsgo/1", "request/natsgo/4", "request/natsgo/1/1KiB", "request/natsgo/4/1KiB"}
	if !slices.Equal(keys, want) {
		t.Errorf("keys %v, want %v", keys, want)
	}
}

func TestRunSaysWhyNothingCouldBeMeasured(t *testing.T) {
	_, err := Run(t.Context(), Plan{
		Servers: []string{"nats://127.0.0.1:1"}, Callers: []int{1}, Sizes: []int{128},
		Rounds: 1, WarmUp: time.Millisecond, Length: time.Millisecond,
	}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("error %v, want one that names the address", err)
	}
}

func TestPlanIsChecked(t *testing.T) {
	good := Plan{Servers: []string{"a"}, Callers: []int{1}, Sizes: []int{1}, Rounds: 1, WarmUp: 1, Length: 1}
	if err := good.validate(); err != nil {
		t.Fatalf("a good plan is refused: %v", err)
	}
	for name, spoil := range map[string]func(*Plan){
		"no servers":   func(p *Plan) { p.Servers = nil },
		"no callers":   func(p *Plan) { p.Callers = nil },
		"zero callers": func(p *Plan) { p.Callers = []int{4, 0} },
		"empty bodies": func(p *Plan) { p.Sizes = []int{0} },
		"no rounds":    func(p *Plan) { p.Rounds = 0 },
		"no warm-up":   func(p *Plan) { p.WarmUp = 0 },
		"no length":    func(p *Plan) { p.Length = 0 },
	} {
		p := good
		spoil(&p)
		if p.validate() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
