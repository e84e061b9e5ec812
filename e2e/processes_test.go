package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

const (
	// agentGrows bounds by what an agent may grow by the fault of an instance.
	agentGrows = 20 << 20
	// calm is how long it is measured how a neighbour answers.
	calm = 5 * time.Second
	// crowdedP99 bounds how a neighbour answers while all processors are busy. Twice of
	// what it was is not to be had then: who wakes up waits for the slice of another,
	// some milliseconds each (EEVDF), the longer the less of a processor it asks for.
	crowdedP99 = 50 * time.Millisecond
	// killedWithin is what a kill may take after the grace.
	killedWithin = time.Second
)

// hostile deploys an app of one service that hurts its host in this way; settings are
// further lines of the service.
func (c *cluster) hostile(app, settings string, args ...string) {
	c.t.Helper()
	dir := c.t.TempDir()
	buildInto(c.t, dir, "hostile", "./testdata/hostile")
	path := filepath.Join(dir, "app.yaml")
	writeFile(c.t, path, fmt.Sprintf("name: %s\nservices:\n  %[1]s:\n    run: hostile\n    args: [%s]\n    health: {ready: alive}\n    %s\n", app, strings.Join(quoted(args), ", "), settings), 0o600)
	c.must("deploy", "--detach", path)
}

func quoted(all []string) (out []string) {
	for _, s := range all {
		out = append(out, strconv.Quote(s))
	}
	return out
}

// neighbour starts hello on each of three hosts, or three times on one; same holds
// that its processes are those of now, and that it answers.
func (c *cluster) neighbour() (same func()) {
	c.t.Helper()
	before := c.waitReady(20*time.Second, "hello", "hello", 3, nil)
	return func() {
		c.t.Helper()
		for _, b := range before {
			c.waitReady(5*time.Second, "hello", "hello", 1, func(r kbroker.InstanceRow) bool {
				return *r.Instance == *b.Instance && *r.PID == *b.PID && r.Restarts == b.Restarts
			})
		}
		if err := c.request(); err != nil {
			c.t.Errorf("hello: %v", err)
		}
	}
}

// TestHostileProcesses: what takes too much memory, too many files or the whole disk
// fails alone; what the starter of an agent had open reaches no process.
func TestHostileProcesses(t *testing.T) {
	c := upWithOpenFiles(t, 50)
	same := c.neighbour()
	for _, hurt := range []func(*testing.T){c.takesMemory, c.takesFiles, c.inheritsNothing, c.fillsItsDisk} {
		hurt(t)
		same()
	}
}

// takesMemory: 100 MB of 32 MB. The kernel kills what takes them, and it alone.
func (c *cluster) takesMemory(t *testing.T) {
	const limit = "resources: {memory: 32MiB, memory_limit: 32MiB}"
	c.hostile("eater", limit, "eat", "1000000") // so that the agent has what a deployment takes
	c.waitReady(10*time.Second, "eater", "eater", 1, nil)
	c.says(5*time.Second, "it has taken 1000000 bytes", []string{"logs", "eater"})
	agent := c.agentOf("h1")
	before := residentBytes(t, agent)
	began := time.Now()
	c.hostile("eater", limit, "eat", "100000000")
	var row kbroker.InstanceRow
	wait.Until(t, 20*time.Second, func() error {
		for _, row = range c.rows("eater") {
			if row.Service == "eater" && row.Exit != nil && row.Exit.OOM && row.Restarts > 0 {
				return nil
			}
		}
		return fmt.Errorf("nothing was killed for its memory: %s", show(c.rows("eater")))
	})
	if row.Exit.Signal != "SIGKILL" || row.Exit.Code != nil || !strings.Contains(row.Message, "memory") {
		t.Errorf("ps says %s, want SIGKILL and the reason", show(row))
	}
	grown := residentBytes(t, agent) - before
	t.Logf("RESULT P3 32 MiB, 100 MB wanted: oom true, %d restarts %v after deploy; the agent grew by %d KiB; %q", row.Restarts, time.Since(began).Round(10*time.Millisecond), grown>>10, row.Message)
	if grown > agentGrows {
		t.Errorf("the agent grew by %d KiB", grown>>10)
	}
	if logs := c.must("logs", "eater"); strings.Contains(logs, "it has taken 100000000") {
		t.Errorf("it got what it wanted:\n%s", logs)
	}
	c.must("stop", "eater")
}

// takesFiles: 100 files of 64.
func (c *cluster) takesFiles(t *testing.T) {
	c.hostile("opener", "resources: {fds: 64}", "open", "100")
	c.waitReady(10*time.Second, "opener", "opener", 1, nil)
	c.says(5*time.Second, "of 100: too many open files", []string{"logs", "opener"})
	t.Logf("RESULT P14 64 files: %s", strings.TrimSpace(c.must("logs", "opener/opener", "--tail", "2")))
	c.must("stop", "opener")
}

// upWithOpenFiles starts a cluster of one host by a process that has so many files open
// which a program that it executes has, too.
func upWithOpenFiles(t *testing.T, n int) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "cluster"), hosts: 1}
	t.Cleanup(c.down)
	path := filepath.Join(t.TempDir(), inherited)
	cmd := c.client(context.Background(), kbrokerBin, "up", "--demo", "--dir", c.dir)
	for range n {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	return c
}

// inherited is the name of what a process had open that started an agent.
const inherited = "inherited-by-nobody"

// inheritsNothing: neither the agent nor an instance has what is not its own; a program
// that opens nothing has input, output and errors.
func (c *cluster) inheritsNothing(t *testing.T) {
	c.must("deploy", c.tiny("quiet", 1))
	quiet := *c.waitReady(10*time.Second, "quiet", "quiet", 1, nil)[0].PID
	extra, looked := 0, 0
	for pid, cmd := range c.processes("") {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		looked += len(fds)
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.Contains(to, inherited) {
				t.Errorf("%d (%s) has %s open as %s", pid, cmd, to, fd)
				extra++
			}
		}
		if pid != quiet {
			continue
		}
		slices.Sort(fds)
		if dir := fmt.Sprintf("/proc/%d/fd/", pid); !slices.Equal(fds, []string{dir + "0", dir + "1", dir + "2"}) {
			t.Errorf("%s has open %v", cmd, fds)
		}
	}
	t.Logf("RESULT P15 up from a process with 50 open files: %d of them in the agent and its instances, which have %d", extra, looked)
	if looked < 10 {
		t.Errorf("only %d open files were seen", looked)
	}
	c.must("stop", "quiet")
}

// fillsItsDisk: a disk that an instance alone writes to is full. It is told so; the
// agent, whose records are on another, goes on.
func (c *cluster) fillsItsDisk(t *testing.T) {
	c.hostile("filler", "env: {}", "fill")
	was := c.waitReady(10*time.Second, "filler", "filler", 1, nil)[0]
	work := c.workDir(was)
	mount(t, "size=4m", work)
	if err := syscall.Kill(*was.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.waitReady(5*time.Second, "filler", "filler", 1, func(r kbroker.InstanceRow) bool { return *r.PID != *was.PID })
	c.says(5*time.Second, "no space left on device", []string{"logs", "filler/filler"})
	full := c.waitReady(5*time.Second, "filler", "filler", 1, nil)[0]
	began := time.Now()
	if err := syscall.Kill(*full.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.waitReady(5*time.Second, "filler", "filler", 1, func(r kbroker.InstanceRow) bool { return *r.PID != *full.PID })
	t.Logf("RESULT P11 a disk of 4 MiB is full: %s; killed, it runs again after %v", strings.TrimSpace(c.must("logs", "filler/filler", "--tail", "2")), time.Since(began).Round(10*time.Millisecond))
	c.must("stop", "filler")
}

// mount mounts a memory disk over a directory until the test ends.
func mount(t *testing.T, options, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOTHING IS TESTED of full disks: a mount needs root")
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// TestAProcessThatDoesNotLeave is killed when its grace is over.
func TestAProcessThatDoesNotLeave(t *testing.T) {
	needLong(t)
	const grace = 10 * time.Second
	c := up(t, 1)
	c.hostile("deaf", fmt.Sprintf("stop: {grace: %v}", grace), "deaf")
	pid := *c.waitReady(10*time.Second, "deaf", "deaf", 1, nil)[0].PID
	c.says(5*time.Second, "it stays", []string{"logs", "deaf"})
	began := time.Now()
	c.must("stop", "deaf", "--detach")
	wait.Until(t, 2*grace, func() error { return gone(pid) })
	took := time.Since(began)
	t.Logf("RESULT P7 SIGTERM is ignored, grace %v: gone after %v", grace, took.Round(10*time.Millisecond))
	if took < grace || took > grace+killedWithin {
		t.Errorf("gone after %v, want between %v and %v", took, grace, grace+killedWithin)
	}
}

// TestAForkBomb is bound by the limit of its processes; its neighbours answer as before,
// the host can be used, and nothing of it is left.
func TestAForkBomb(t *testing.T) {
	needLong(t)
	const most, enough = 256, 100
	c := up(t, 1, "--demo")
	same := c.neighbour()
	before, failed := c.greetedFor(calm)
	if failed > 0 {
		t.Fatalf("%d calls failed before", failed)
	}
	c.hostile("bomb", fmt.Sprintf("resources: {pids: %d}", most), "bomb")
	bomb := *c.waitReady(10*time.Second, "bomb", "bomb", 1, nil)[0].PID
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	peak := make(chan int, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			n = max(n, threadsBeside(bomb))
			<-time.After(20 * time.Millisecond)
		}
		peak <- n
	}()
	during, failed := c.greetedFor(calm)
	used := time.Now()
	c.must("ps")
	took := time.Since(used)
	cancel()
	n := <-peak
	t.Logf("RESULT P9 up to %d processes: p99 of a neighbour %v in %d calls, %d failed, %v before; ps took %v", n, p99(during), len(during), failed, p99(before), took.Round(time.Millisecond))
	if n > most || n < enough || failed > 0 || p99(during) > max(2*p99(before), crowdedP99) || took > time.Second {
		t.Errorf("want %d to %d processes, no failed call, a p99 of at most %v, ps within a second", enough, most, max(2*p99(before), crowdedP99))
	}
	same()
	c.must("stop", "bomb")
	c.settled(20*time.Second, "hello", 3)
	if err := gone(bomb); err != nil {
		t.Error(err)
	}
}

// threadsBeside is how many threads are in the control group of a process; 0 where
// nothing counts them.
func threadsBeside(pid int) (n int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)) // it may have ended
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, hierarchy := range []string{"pids", ""} {
			if len(f) == 3 && (f[1] == hierarchy) {
				count, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup", hierarchy, f[2], "pids.current"))
				_, _ = fmt.Sscan(string(count), &n)
			}
		}
	}
	return n
}

// greetedFor is greetings for a time.
func (c *cluster) greetedFor(d time.Duration) ([]time.Duration, int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return c.greetings(ctx)
}

// TestAProcessorHog gets what it may have, on each of three hosts; no heartbeat is late.
func TestAProcessorHog(t *testing.T) {
	needLong(t)
	const limit, hogs = 0.2, 3
	c := up(t, 3, "--demo")
	same := c.neighbour()
	before, failed := c.greetedFor(calm)
	if failed > 0 {
		t.Fatalf("%d calls failed before", failed)
	}
	c.hostile("hog", fmt.Sprintf("count: %d\n    resources: {cpu: 0.1, cpu_limit: %v}", hogs, limit), "hog")
	rows := c.waitReady(20*time.Second, "hog", "hog", hogs, nil)
	began, had, silent := time.Now(), 0.0, 0.0
	for _, r := range rows {
		had -= cpuSeconds(t, *r.PID)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for time.Since(began) < calm {
			silent = max(silent, c.heartbeatAge())
			if err := allReady(c); err != nil {
				t.Errorf("beside a hog: %v", err)
			}
		}
	}()
	during, failed := c.greetedFor(calm)
	<-ended
	for _, r := range rows {
		had += cpuSeconds(t, *r.PID)
	}
	share := had / time.Since(began).Seconds() / hogs
	t.Logf("RESULT P10 each of %d hogs has %.3f of a processor, limit %v; p99 of a neighbour %v in %d calls, %d failed, %v before; heartbeats are answered within %.1f s", hogs, share, limit, p99(during), len(during), failed, p99(before), silent)
	if share > 1.1*limit || share < limit/2 || failed > 0 || silent > floodBeat {
		t.Errorf("want %v of a processor, no failed call, a heartbeat in %v s", limit, floodBeat)
	}
	same()
}
