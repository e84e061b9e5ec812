package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker/bench/child"
	"github.com/kbroker/kbroker/internal/natstest"
)

// TestMain lets the test's program be its own children, as the command is.
func TestMain(m *testing.M) {
	if child.Is(os.Args[1:]) {
		os.Exit(child.Main(os.Args[1], peers()...))
	}
	os.Exit(m.Run())
}

func TestFromHostListsTheOwnHostFirst(t *testing.T) {
	servers := []string{"a", "b", "c"}
	for i, want := range []string{"a b c", "b c a", "c a b", "a b c"} {
		if got := strings.Join(fromHost(servers, i).Servers, " "); got != want {
			t.Errorf("from host %d: %s, want %s", i, got, want)
		}
	}
}

func TestAChildKnowsTheClusterOfItsSideAndNoOther(t *testing.T) {
	runner := []string{"HOME=/h", "NATS_CA=/other/ca.pem", "NATS_CREDS=/other/creds", "NATS_CAX=1"}
	for _, c := range []struct {
		name string
		has  []string
		want string
	}{
		{"roots and a credential", []string{"NATS_CA=/ca", "NATS_CREDS=/creds"}, "HOME=/h NATS_CAX=1 NATS_CA=/ca NATS_CREDS=/creds"},
		{"roots only", []string{"NATS_CA=/ca"}, "HOME=/h NATS_CAX=1 NATS_CA=/ca"},
		{"none", nil, "HOME=/h NATS_CAX=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Side{Cluster: Cluster{Environ: c.has}}
			if got := strings.Join(s.environ(runner), " "); got != c.want {
				t.Errorf("environment %s, want %s", got, c.want)
			}
		})
	}
	if runner[1] != "NATS_CA=/other/ca.pem" {
		t.Errorf("the runner's own environment became %v", runner)
	}
}

// The whole thing on servers that stand for three hosts each, with real processes: that
// of the earlier commit has a server and a program of its own.
func TestRunMeasuresEveryLoadOfEverySide(t *testing.T) {
	now, earlier := natstest.Start(t).URL, natstest.Start(t).URL
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	used := filepath.Join(t.TempDir(), "used")
	program := filepath.Join(t.TempDir(), "bench")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho $1 >>"+used+"\nexec "+self+" $1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	all, err := Run(t.Context(), Plan{
		Sides:  append(sidesOn(Cluster{Servers: []string{now, now, now}}), sideBefore(program, Cluster{Servers: []string{earlier}})),
		Loads:  []Load{{whatRequest, 4, 1024}, {whatConnect, 2, 128}},
		Rounds: 1, WarmUp: 20 * time.Millisecond, Length: 50 * time.Millisecond,
	}, io.Discard)
	if err != nil {
		t.Fatalf("run: %v", err)
	}
	if took := time.Since(begin); took < 3*connectEvery {
		t.Errorf("three rounds of connections took %v, want %v each at least: they use up the ports", took, connectEvery)
	}
	var keys []string
	for _, r := range all {
		for _, m := range r.Sides {
			keys = append(keys, Key(m.Name, r.Load))
			if r := m.Rounds[0]; len(m.Rounds) != 1 || r.Requests == 0 || r.P50 <= 0 || r.P99 < r.P50 || r.CPU <= 0 {
				t.Errorf("%s measured %+v", keys[len(keys)-1], m.Rounds)
			}
		}
	}
	want := []string{
		"request/kbroker/4/1KiB", "request/natsgo/4/1KiB", "request/before/4/1KiB",
		"connect/kbroker/2", "connect/natsgo/2", "connect/before/2",
	}
	if !slices.Equal(keys, want) {
		t.Errorf("measured %v, want %v", keys, want)
	}
	if got, err := os.ReadFile(used); err != nil || string(got) != "serve\ncall\nconnect\n" {
		t.Errorf("the earlier program was started as %q (%v), want as each of the roles once", got, err)
	}
}

func TestTheLastLineHasWhatWasMeasuredAndNothingElse(t *testing.T) {
	url := natstest.Start(t).URL
	var out strings.Builder
	args := "-servers " + url + " -callers 2 -sizes 128 -connects= -rounds 1 -time 20ms -warmup 20ms"
	if err := runAll(t.Context(), strings.Fields(args), &out, io.Discard); err != nil {
		t.Fatalf("run: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var got map[string]float64
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil || len(got) != 1 || got["request/natsgo/2"] <= 0 {
		t.Errorf("last line %v, error %v, want one ratio, of request/natsgo/2, in\n%s", got, err, out.String())
	}
	if strings.Contains(out.String(), "hello") {
		t.Errorf("no cluster was started, but the table has its time:\n%s", out.String())
	}
}

// A program that does not know how to connect, as those of earlier commits, must not
// have measured something else.
func TestRunRefusesAChildThatDoesNotKnowItsRole(t *testing.T) {
	server := natstest.Start(t).URL
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "bench")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n[ $1 != connect ] || exit 1\nexec "+self+" $1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), Plan{
		Sides:  append([]Side{sideBefore(program, Cluster{Servers: []string{server}})}, sidesOn(Cluster{Servers: []string{server}})...),
		Loads:  []Load{{whatConnect, 1, 128}},
		Rounds: 1, WarmUp: time.Millisecond, Length: time.Millisecond,
	}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "connect before") {
		t.Errorf("error %v, want one that names the child", err)
	}
}

func TestRunSaysWhyNothingCouldBeMeasured(t *testing.T) {
	_, err := Run(t.Context(), Plan{
		Sides: sidesOn(Cluster{Servers: []string{"nats://127.0.0.1:1"}}), Loads: []Load{{whatRequest, 1, 128}},
		Rounds: 1, WarmUp: time.Millisecond, Length: time.Millisecond,
	}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("error %v, want one that names the address", err)
	}
}

func TestPlanIsChecked(t *testing.T) {
	sides := sidesOn(Cluster{Servers: []string{"a"}})
	good := Plan{Sides: sides, Loads: []Load{{whatRequest, 1, 1}}, Rounds: 1, WarmUp: 1, Length: 1}
	if err := good.validate(); err != nil {
		t.Fatalf("a good plan is refused: %v", err)
	}
	for name, spoil := range map[string]func(*Plan){
		"no side":      func(p *Plan) { p.Sides = nil },
		"no servers":   func(p *Plan) { p.Sides = sidesOn(Cluster{}) },
		"no loads":     func(p *Plan) { p.Loads = nil },
		"zero callers": func(p *Plan) { p.Loads = []Load{{whatRequest, 4, 1}, {whatRequest, 0, 1}} },
		"empty bodies": func(p *Plan) { p.Loads = []Load{{whatRequest, 1, 0}} },
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

func TestFlagsSayWhatIsMeasured(t *testing.T) {
	for _, c := range []struct {
		name  string
		args  string
		loads []Load
	}{
		{"requests of all sizes, then connections", "-bin b -callers 1,16 -sizes 128,1024 -connects 4", []Load{
			{whatRequest, 1, 128}, {whatRequest, 16, 128}, {whatRequest, 1, 1024}, {whatRequest, 16, 1024}, {whatConnect, 4, 128},
		}},
		{"no requests", "-servers a,b -callers= -connects 1", []Load{{whatConnect, 1, 128}}},
		{"no connections", "-bin b -before d -callers 1 -sizes 128 -connects=", []Load{{whatRequest, 1, 128}}},
		{"a cluster's coming up alone", "-bin b -callers= -connects= -ups 3", nil},
	} {
		s, err := parse(strings.Fields(c.args))
		if err != nil || !slices.Equal(s.plan.Loads, c.loads) {
			t.Errorf("%s: loads %v, error %v, want %v", c.name, s.plan.Loads, err, c.loads)
		}
	}
	for name, args := range map[string]string{
		"no cluster":                  "",
		"two clusters":                "-bin b -servers a",
		"an earlier one, without bin": "-servers a -before d",
		"coming up, without bin":      "-servers a -ups 1",
		"less than none":              "-bin b -ups -1",
		"no number":                   "-bin b -callers x",
		"nothing to measure":          "-bin b -callers= -connects=",
		"what is no flag":             "-bin b before",
	} {
		if s, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s: %+v, want an error", name, s)
		}
	}
}
