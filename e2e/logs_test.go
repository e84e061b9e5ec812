package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
)

const (
	// What a flood may do: to who writes, to the disk, to the others.
	floodWrite = time.Second
	floodDisk  = 64 << 20 // at 1 GB/s
	floodP99   = 250 * time.Millisecond
	floodBeat  = 3.0 // seconds without an answer to a heartbeat
)

// chatter deploys an app of one instance that writes lines.
func (c *cluster) chatter(app string, args ...string) kbroker.InstanceRow {
	c.t.Helper()
	dir := c.t.TempDir()
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "chatter"), "./testdata/chatter").CombinedOutput(); err != nil {
		c.t.Fatalf("build: %v\n%s", err, out)
	}
	spec := fmt.Sprintf("name: %s\nservices:\n  %s:\n    run: chatter\n    args: [%q, %q]\n    health: {ready: alive}\n", app, app, args[0], args[1])
	writeFile(c.t, filepath.Join(dir, "app.yaml"), spec, 0o600)
	c.must("deploy", filepath.Join(dir, "app.yaml"))
	return c.waitReady(10*time.Second, app, app, 1, nil)[0]
}

// followed is what `logs -f` has printed.
type followed struct {
	mu    sync.Mutex
	lines []client.LogLine
	bad   []string
}

func (f *followed) count(ok func(client.LogLine) bool) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.lines {
		if ok(l) {
			n++
		}
	}
	return n
}

// followLogs runs `logs -f`; end interrupts it, and returns what it said on stderr.
func (c *cluster) followLogs(args ...string) (f *followed, end func() string) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := c.client(ctx, kbrokerBin, append([]string{"logs", "-f", "-o", "json"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	f = &followed{}
	var reading sync.WaitGroup
	reading.Go(func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			var l client.LogLine
			err := json.Unmarshal(s.Bytes(), &l)
			f.mu.Lock()
			if f.lines = append(f.lines, l); err != nil {
				f.bad = append(f.bad, s.Text())
			}
			f.mu.Unlock()
		}
	})
	var once sync.Once
	end = func() string {
		once.Do(func() {
			cancel()
			reading.Wait()
			_ = cmd.Wait() // by a signal
		})
		return stderr.String()
	}
	c.t.Cleanup(func() { end() })
	return f, end
}

// TestFollowedLogsHaveEveryLineOnce, in order: while the file is cut, while the agent
// is killed and another one comes, and when the instance is started again.
func TestFollowedLogsHaveEveryLineOnce(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	row := c.chatter("talk", "count", "20000")
	f, end := c.followLogs("talk/talk", "--tail", "-1")
	all := func(client.LogLine) bool { return true }
	lines := func(atLeast int) {
		t.Helper()
		wait.Until(t, 60*time.Second, func() error {
			if n := f.count(all); n < atLeast {
				return fmt.Errorf("%d lines, want %d", n, atLeast)
			}
			return nil
		})
	}
	lines(150_000) // some 30 MB: the file has been cut
	c.kill("h1", true)
	c.up()
	lines(400_000)
	if err := syscall.Kill(*row.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	before := f.count(all)
	wait.Until(t, 20*time.Second, func() error {
		if f.count(func(l client.LogLine) bool { return strings.HasPrefix(strings.SplitN(l.Line+" ", " ", 2)[1], "0 ") }) < 2 {
			return fmt.Errorf("no line of the second start")
		}
		return nil
	})
	lines(before + 50_000)
	said := end()
	f.mu.Lock()
	defer f.mu.Unlock()
	var start string
	next, starts := 0, 0
	for i, l := range f.lines {
		words := strings.Fields(l.Line)
		if len(words) != 3 || l.Dropped > 0 {
			t.Fatalf("line %d is %+v", i, l)
		}
		if words[0] != start {
			start, next, starts = words[0], 0, starts+1
		}
		if words[1] != strconv.Itoa(next) {
			t.Fatalf("line %d of start %d has number %s, want %d", i, starts, words[1], next)
		}
		next++
	}
	if starts != 2 || len(f.bad) > 0 {
		t.Errorf("%d starts were seen, want 2; %q is no JSON", starts, f.bad)
	}
	size, oldest := c.outputOf("talk")
	t.Logf("%d lines, each once and in order, over a kill -9 of the agent and a restart; %d of %d bytes are not kept any more; stderr %q", len(f.lines), oldest, size, said)
	if oldest == 0 {
		t.Error("the file was never cut: the test has shown nothing")
	}
}

// outputOf is what the agent's metrics say of the output of a service.
func (c *cluster) outputOf(service string) (written, dropped int64) {
	c.t.Helper()
	for line := range strings.Lines(c.must("metrics", "--dir", filepath.Join(c.dir, "h1"))) {
		name, rest, _ := strings.Cut(line, "{")
		if !strings.Contains(rest, fmt.Sprintf("service=%q", service)) {
			continue
		}
		value, _ := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64)
		switch name {
		case "kbroker_agent_instance_output_bytes_total":
			written = int64(value)
		case "kbroker_agent_instance_output_dropped_bytes_total":
			dropped = int64(value)
		}
	}
	return written, dropped
}

// onDisk is what the files below dir take of the disk.
func onDisk(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it has gone meanwhile
		}
		if info, err := d.Info(); err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += s.Blocks * 512
			}
		}
		return nil
	})
	return sum
}

// greetings sends requests to hello, one after the other on each of some connections,
// until ctx ends, and returns how long each has taken.
func (c *cluster) greetings(ctx context.Context) (took []time.Duration, failed int) {
	c.t.Helper()
	const callers, pause = 4, 5 * time.Millisecond
	var mu sync.Mutex
	var calls sync.WaitGroup
	for range callers {
		nc, err := c.connect("")
		if err != nil {
			c.t.Fatal(err)
		}
		defer nc.Close()
		calls.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for ctx.Err() == nil {
				began := time.Now()
				err := greet(nc)
				mu.Lock()
				if took = append(took, time.Since(began)); err != nil {
					failed++
				}
				mu.Unlock()
				<-tick.C
			}
		})
	}
	calls.Wait()
	slices.Sort(took)
	return took, failed
}

func p99(sorted []time.Duration) time.Duration { return sorted[len(sorted)*99/100] }

// TestALogFloodIsBound: a program that writes 1 GB a second, or as fast as it can, is
// not stopped, fills no disk, and disturbs neither its neighbours nor its agent; how
// much was dropped is said.
func TestALogFloodIsBound(t *testing.T) {
	needLong(t)
	for name, f := range map[string]struct {
		perSecond string
		disk      int64
	}{
		"1 GB a second":     {"1000000000", floodDisk},
		"as fast as it can": {"0", 3 * floodDisk}, // two or more GB a second
	} {
		t.Run(name, func(t *testing.T) { holdFlood(t, f.perSecond, f.disk) })
	}
}

func holdFlood(t *testing.T, perSecond string, disk int64) {
	c := up(t, 1, "--demo")
	c.waitReady(10*time.Second, "hello", "hello", 3, nil)
	calm, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	before, failed := c.greetings(calm)
	if failed > 0 {
		t.Fatalf("%d of %d calls failed before the flood", failed, len(before))
	}
	row := c.chatter("flood", "flood", perSecond)
	work, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", *row.PID))
	if err != nil {
		t.Fatal(err)
	}
	ctx, done := context.WithCancel(context.Background())
	defer done()
	var beside sync.WaitGroup
	var during []time.Duration
	var silent float64
	beside.Go(func() { during, failed = c.greetings(ctx) })
	beside.Go(func() {
		for ctx.Err() == nil {
			silent = max(silent, c.heartbeatAge())
			<-time.After(200 * time.Millisecond)
		}
	})
	var largest int64
	var raw []byte
	wait.Until(t, 30*time.Second, func() (err error) {
		largest = max(largest, onDisk(filepath.Dir(work)))
		raw, err = os.ReadFile(filepath.Join(work, "report"))
		return err
	})
	done()
	beside.Wait()
	var r struct {
		Bytes         int64
		Took, Longest time.Duration
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f GB in %v (%.2f GB/s), the longest write took %v; at most %d MiB on disk", float64(r.Bytes)/1e9, r.Took.Round(time.Millisecond),
		float64(r.Bytes)/1e9/r.Took.Seconds(), r.Longest.Round(time.Microsecond), largest>>20)
	t.Logf("hello: p99 %v in %d calls, %d failed, the slowest %v; p99 before %v; a heartbeat was answered at the latest %.1f s after the one before",
		p99(during), len(during), failed, during[len(during)-1].Round(time.Microsecond), p99(before), silent)
	if r.Longest > floodWrite || largest > disk || failed > 0 || p99(during) > floodP99 || silent > floodBeat {
		t.Errorf("want a write below %v, %d MiB on disk, no failed call, a p99 of %v, an answer each %v s", floodWrite, disk>>20, floodP99, floodBeat)
	}
	c.tellsDropped(r.Bytes)
}

// heartbeatAge is how long ago a core has answered the agent.
func (c *cluster) heartbeatAge() float64 {
	out, code := c.try("metrics", "--dir", filepath.Join(c.dir, "h1"))
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(line, "kbroker_agent_heartbeat_answer_age_seconds "); ok {
			age, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return age
		}
	}
	c.t.Errorf("no metrics: exit code %d\n%s", code, out)
	return 0
}

// tellsDropped holds that logs and metrics say how much of wrote is not there.
func (c *cluster) tellsDropped(wrote int64) {
	c.t.Helper()
	for _, args := range [][]string{{"logs", "flood/flood", "--tail", "-1"}, {"logs", "flood/flood", "--tail", "3"}, {"logs", "flood/flood", "--since", "1h"}} {
		lines, err := list[client.LogLine](c, args...)
		if err != nil {
			c.t.Fatal(err)
		}
		if len(lines) < 4 || lines[0].Dropped == 0 {
			c.t.Fatalf("%v begins with %s, want how much was dropped", args, show(lines[:min(4, len(lines))]))
		}
		sum := lines[0].Dropped
		for _, l := range lines[1:] {
			sum += int64(len(l.Line)) + 1 + l.Dropped
		}
		if args[2] == "--tail" && args[3] == "3" {
			continue
		}
		if sum != wrote {
			c.t.Errorf("%v has %d bytes, dropped ones included; %d were written", args, sum, wrote)
		}
	}
	out := c.must("logs", "flood/flood", "--tail", "3")
	first, _, _ := strings.Cut(out, "\n")
	if !strings.Contains(first, "| -- ") || !strings.HasSuffix(first, "iB dropped --") {
		c.t.Errorf("logs begin with %q", first)
	}
	written, dropped := c.outputOf("flood")
	if written != wrote || dropped == 0 || dropped > wrote {
		c.t.Errorf("metrics say %d written and %d dropped, want %d", written, dropped, wrote)
	}
	c.t.Logf("%s; metrics: %d written, %d dropped", first, written, dropped)
}
