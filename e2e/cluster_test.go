package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

var long = flag.Bool("long", false, "run every fault, not only the smoke test")

// Programs under test, built once.
var kbrokerBin, loadBin string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if job := cmp.Or(os.Getenv(childEnv), os.Getenv(programEnv)); job != "" {
		return child(job)
	}
	dir, err := os.MkdirTemp("", "kbroker-e2e-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // instances, too, run what is there
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	kbrokerBin, loadBin = filepath.Join(dir, "kbroker"), filepath.Join(dir, "load")
	for bin, pkg := range map[string]string{kbrokerBin: "../cmd/kbroker", loadBin: "../examples/wordcount/load"} {
		if out, err := exec.Command("go", "build", "-o", bin, pkg).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, out)
			return 1
		}
	}
	return m.Run()
}

func needLong(t *testing.T) {
	t.Helper()
	if !*long {
		t.Skip("long: run with `go test ./e2e -long`")
	}
}

// cluster is one that `kbroker up` runs in a directory of the test; or one on
// other hosts, whose context is in that directory.
type cluster struct {
	t     *testing.T
	dir   string
	hosts int

	// core is the data directory of a core; empty: that of h1 in dir.
	core     string
	coreFile string // see coreCreds
	// Both are nil for one on this machine: how to run a program where the
	// cluster's people are, and the live processes of a host (empty: of all).
	command func(ctx context.Context, program string, args ...string) *exec.Cmd
	inside  func(host string) map[int]string
}

// shared is a directory that instances may write to: each has a user of its own, and
// nobody else enters the directories of tests.
func shared(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kbroker-e2e-shared-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// client is a program that uses the cluster.
func (c *cluster) client(ctx context.Context, program string, args ...string) *exec.Cmd {
	command := exec.CommandContext
	if c.command != nil {
		command = c.command
	}
	cmd := command(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KBROKER_DIR="+c.dir)
	return cmd
}

// up starts a cluster; when the test ends it is taken down, and nothing may be
// left of it.
func up(t *testing.T, hosts int, args ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "cluster"), hosts: hosts}
	t.Cleanup(c.down)
	c.up(args...)
	return c
}

func (c *cluster) up(args ...string) {
	c.t.Helper()
	c.must(append([]string{"up", "--hosts", strconv.Itoa(c.hosts), "--dir", c.dir}, args...)...)
	if left, err := filepath.Glob(filepath.Join(c.dir, "*", "join.token")); err != nil || len(left) > 0 {
		c.t.Errorf("up has left tokens: %v, %v", left, err)
	}
}

// down ends everything, whatever the state, and checks that nothing is left.
func (c *cluster) down() {
	if c.t.Failed() {
		c.showLogs()
	}
	ports, groups := c.ports(), groups(c.dir)
	out, code := c.try("down", "--dir", c.dir)
	if code != 0 {
		c.t.Errorf("down: exit code %d\n%s", code, out)
	}
	if left := c.processes(""); len(left) > 0 {
		c.t.Errorf("processes left after down: %v", left)
		for pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for _, port := range ports {
		if conn, err := net.DialTimeout("tcp", port, time.Second); err == nil {
			conn.Close()
			c.t.Errorf("port %s still listens after down", port)
		}
	}
	if left := leftOf(groups); len(left) > 0 {
		c.t.Errorf("control groups left after down: %v", left)
	}
}

// showLogs prints the end of each agent's log.
func (c *cluster) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*", "agent.log"))
	for _, path := range logs {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		c.t.Logf("%s:\n%s", path, raw[max(0, len(raw)-8000):])
	}
}

// processes are the live processes of the cluster, or of one of its hosts: the
// agents by their command line, the others by their environment.
func (c *cluster) processes(host string) map[int]string {
	if c.inside != nil {
		return c.inside(host)
	}
	dir := c.dir
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	mark := dir + "/"
	if host != "" {
		mark += host + "\x00" // h2 is not h20
	}
	out := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.t.Fatalf("read /proc: %v", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		inEnv := bytes.Contains(environ, []byte("KBROKER_HOST_DIR="+mark))
		isAgent := bytes.Contains(cmdline, []byte("agent\x00")) && bytes.Contains(cmdline, []byte(mark))
		if inEnv || isAgent {
			out[pid] = strings.ReplaceAll(string(bytes.TrimRight(cmdline, "\x00")), "\x00", " ")
		}
	}
	return out
}

// try runs the CLI against the cluster.
func (c *cluster) try(args ...string) (out string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := c.client(ctx, kbrokerBin, args...)
	raw, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("run kbroker %v: %v", args, err)
	}
	return string(raw), cmd.ProcessState.ExitCode()
}

func (c *cluster) must(args ...string) string {
	c.t.Helper()
	out, code := c.try(args...)
	if code != 0 {
		c.t.Fatalf("kbroker %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// list runs a command that prints one JSON array.
func list[T any](c *cluster, args ...string) ([]T, error) {
	cmd := c.client(context.Background(), kbrokerBin, append(args, "-o", "json")...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("kbroker %v: %w: %s", args, err, stderr.String())
	}
	var rows []T
	if err := json.Unmarshal(stdout.Bytes(), &rows); err != nil {
		return nil, fmt.Errorf("kbroker %v printed %q: %w", args, stdout.String(), err)
	}
	return rows, nil
}

// ready returns the ready instances of a service, or an error that says what
// is missing for want of them.
func (c *cluster) ready(app, service string, want int, accept func(kbroker.InstanceRow) bool) ([]kbroker.InstanceRow, error) {
	rows, err := list[kbroker.InstanceRow](c, "ps")
	if err != nil {
		return nil, err
	}
	var ready []kbroker.InstanceRow
	for _, r := range rows {
		if string(r.App) == app && string(r.Service) == service && r.State == kbroker.StateReady && (accept == nil || accept(r)) {
			ready = append(ready, r)
		}
	}
	if len(ready) != want {
		return ready, fmt.Errorf("%d ready instances of %s/%s, want %d: %s", len(ready), app, service, want, show(rows))
	}
	return ready, nil
}

func (c *cluster) waitReady(timeout time.Duration, app, service string, want int, accept func(kbroker.InstanceRow) bool) []kbroker.InstanceRow {
	c.t.Helper()
	var rows []kbroker.InstanceRow
	wait.Until(c.t, timeout, func() (err error) {
		rows, err = c.ready(app, service, want, accept)
		return err
	})
	return rows
}

// elsewhereWithin is how long after the loss of a host what it ran may take to be
// ready on others.
const elsewhereWithin = 12 * time.Second

// elsewhere waits until as many instances of the app's service as wanted are
// ready on hosts other than gone, and returns how long after began they were.
func (c *cluster) elsewhere(began time.Time, app string, want int, gone string) time.Duration {
	c.t.Helper()
	c.waitReady(20*time.Second, app, app, want, func(r kbroker.InstanceRow) bool { return string(*r.Host) != gone })
	took := time.Since(began).Round(10 * time.Millisecond)
	if took > elsewhereWithin {
		c.t.Errorf("the instances of %s were ready elsewhere after %v, want %v", gone, took, elsewhereWithin)
	}
	return took
}

func (c *cluster) hostRows() []kbroker.HostRow {
	c.t.Helper()
	var rows []kbroker.HostRow
	wait.Until(c.t, 10*time.Second, func() (err error) {
		rows, err = list[kbroker.HostRow](c, "hosts")
		return err
	})
	return rows
}

// kill sends SIGKILL to all processes of a host at once; agentOnly: to the
// agent alone.
func (c *cluster) kill(host string, agentOnly bool) {
	c.t.Helper()
	killed := 0
	for pid, cmd := range c.processes(host) {
		if agentOnly && !strings.Contains(cmd, " agent ") {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err == nil {
			killed++
		}
	}
	if killed == 0 {
		c.t.Fatalf("host %s has no process to kill", host)
	}
}

// example writes a copy of an example's folder into the test, with its spec
// changed by edit, and returns the spec's path.
func (c *cluster) example(name string, edit func(spec string) string) string {
	c.t.Helper()
	src, err := filepath.Abs(filepath.Join("..", "examples", name))
	if err != nil {
		c.t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(src, "app.yaml"))
	if err != nil {
		c.t.Fatal(err)
	}
	text := string(raw)
	if edit != nil {
		text = edit(text)
	}
	path := filepath.Join(src, fmt.Sprintf("app-%d-%d.yaml", os.Getpid(), time.Now().UnixNano()))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { os.Remove(path) })
	return path
}

// result is the line that wordcount's load program prints.
type result struct {
	Words      int     `json:"words"`
	WordsLocal int     `json:"words_local"`
	Requests   int     `json:"requests"`
	OK         int     `json:"ok"`
	Failed     int     `json:"failed"`
	Unknown    int     `json:"unknown"`
	Retried    int     `json:"retried"`
	PerSecond  float64 `json:"requests_per_s"`
	P50        int64   `json:"p50_us"`
	P99        int64   `json:"p99_us"`
}

// load runs wordcount's load beside what the test does; end waits for it and
// holds that no request failed.
func (c *cluster) load(duration time.Duration) (end func() result) {
	c.t.Helper()
	l := c.startLoad(duration)
	return func() result {
		c.t.Helper()
		r := l.wait()
		if l.err != nil || r.Failed > 0 || r.Words != r.WordsLocal {
			c.t.Errorf("load failed (%v): %s\n%s", l.err, show(r), l.stderr.String())
		}
		return r
	}
}

// loadRun is a load that runs.
type loadRun struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	ended          bool
	err            error // how it ended
}

// startLoad starts the load; args are further flags of it.
func (c *cluster) startLoad(duration time.Duration, args ...string) *loadRun {
	c.t.Helper()
	args = append([]string{"-rate", "500", "-duration", duration.String()}, args...)
	l := &loadRun{t: c.t, cmd: c.client(context.Background(), loadBin, args...)}
	l.cmd.Stdout, l.cmd.Stderr = &l.stdout, &l.stderr
	if err := l.cmd.Start(); err != nil {
		c.t.Fatalf("start the load: %v", err)
	}
	c.t.Cleanup(func() {
		if !l.ended {
			_ = l.cmd.Process.Kill()
			_ = l.cmd.Wait()
		}
	})
	return l
}

// wait returns what the load says at its end.
func (l *loadRun) wait() result {
	l.t.Helper()
	l.ended = true
	l.err = l.cmd.Wait()
	var r result
	if err := json.Unmarshal(bytes.TrimSpace(l.stdout.Bytes()), &r); err != nil {
		l.t.Fatalf("the load printed %q (%v): %s", l.stdout.String(), l.err, l.stderr.String())
	}
	if r.Requests == 0 {
		l.t.Error("the load sent nothing")
	}
	l.t.Logf("load: %s", bytes.TrimSpace(l.stdout.Bytes()))
	return r
}

func show(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}
