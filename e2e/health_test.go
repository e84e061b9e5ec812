package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// hungWithin is how long a process that hangs may take to run again as another one.
const hungWithin = 10 * time.Second

// buildInto builds a program of this module into a directory.
func buildInto(t *testing.T, dir, name, pkg string) {
	t.Helper()
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), pkg).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}

// freePort is a port that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// says waits until each of the commands prints a text.
func (c *cluster) says(timeout time.Duration, text string, commands ...[]string) {
	c.t.Helper()
	for _, args := range commands {
		wait.Until(c.t, timeout, func() error {
			if out, code := c.try(args...); code != 0 || !strings.Contains(out, text) {
				return fmt.Errorf("kbroker %s: exit code %d, no %q in:\n%s", strings.Join(args, " "), code, text, out)
			}
			return nil
		})
	}
}

// workDir is where an instance runs.
func (c *cluster) workDir(r kbroker.InstanceRow) string {
	c.t.Helper()
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", *r.PID))
	if err != nil {
		c.t.Fatalf("working directory of %s: %v", *r.Instance, err)
	}
	return dir
}

// TestAWebServerThatHangs: programs that know nothing of kbroker, one checked over
// HTTP, one by a program. Who says no is not ready, who hangs is killed, and ps and
// events say why.
func TestAWebServerThatHangs(t *testing.T) {
	needLong(t)
	dir := t.TempDir()
	buildInto(t, dir, "web", "./testdata/web")
	c := up(t, 1)
	port := freePort(t)
	writeFile(t, filepath.Join(dir, "app.yaml"), fmt.Sprintf(`
name: shop
services:
  web:
    run: web
    env: {WEB: "%d"}
    ports: {web: %d}
    health: {ready: http, path: /up, interval: 100ms, timeout: 200ms}
  job:
    run: web
    env: {WEB: "%d"}
    health: {ready: exec, command: [sh, -c, "test -e hung && sleep 60; test ! -e sick"], interval: 100ms, timeout: 300ms, failures: 2}
`, port, port, freePort(t)), 0o600)
	c.must("deploy", filepath.Join(dir, "app.yaml"))
	for _, service := range []string{"web", "job"} {
		was := c.waitReady(10*time.Second, "shop", service, 1, nil)[0]
		sick := filepath.Join(c.workDir(was), "sick")
		writeFile(t, sick, "", 0o600)
		wait.Until(t, 10*time.Second, func() error {
			_, err := c.ready("shop", service, 0, nil)
			return err
		})
		if err := os.Remove(sick); err != nil {
			t.Fatal(err)
		}
		c.waitReady(10*time.Second, "shop", service, 1, func(r kbroker.InstanceRow) bool { return *r.PID == *was.PID })
	}
	web, job := c.waitReady(0, "shop", "web", 1, nil)[0], c.waitReady(0, "shop", "job", 1, nil)[0]
	hung := filepath.Join(c.workDir(job), "hung")
	writeFile(t, hung, "", 0o600)
	began := time.Now()
	if err := syscall.Kill(*web.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c.waitReady(hungWithin, "shop", "web", 1, func(r kbroker.InstanceRow) bool { return *r.PID != *web.PID && r.Restarts == web.Restarts+1 })
	t.Logf("a web server that hangs, six checks of 200 ms: ready again after %v (ps included)", time.Since(began).Round(10*time.Millisecond))
	c.says(5*time.Second, "killed: hung, 6 checks in a row were not answered (http: no answer in time)", []string{"ps", "shop"}, []string{"events"})
	c.says(10*time.Second, "killed: hung, 6 checks in a row were not answered (exec: no answer in time)", []string{"ps", "shop"}, []string{"events"})
	if err := os.Remove(hung); err != nil {
		t.Fatal(err)
	}
	c.waitReady(10*time.Second, "shop", "job", 1, nil)
}

// TestAHungInstanceUnderLoad: an instance that hangs, on each host once, is killed and
// runs again, and no request fails meanwhile.
func TestAHungInstanceUnderLoad(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	for _, host := range []kbroker.HostID{"h1", "h2", "h3"} {
		end := c.load(14 * time.Second)
		<-time.After(3 * time.Second) // of load
		all := c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
		was := all[0]
		for _, r := range all {
			if *r.Host == host {
				was = r
			}
		}
		began := time.Now()
		if err := syscall.Kill(*was.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		c.waitReady(hungWithin, "wordcount", "wordcount", 1, func(r kbroker.InstanceRow) bool {
			return *r.Instance == *was.Instance && *r.PID != *was.PID
		})
		took := time.Since(began).Round(10 * time.Millisecond)
		r := end()
		t.Logf("RESULT %s on %s hung: another process is ready after %v; %d of %d requests failed", *was.Instance, host, took, r.Failed, r.Requests)
		c.says(5*time.Second, "killed: hung, 6 looks in a row saw no sign of life (sdk)", []string{"ps", "wordcount"}, []string{"events"})
	}
}

// slowArchive is wordcount behind a script that takes its time.
func slowArchive(t *testing.T, dir string) {
	t.Helper()
	buildInto(t, dir, "wordcount", "../examples/wordcount")
	program, err := os.ReadFile(filepath.Join(dir, "wordcount"))
	if err != nil {
		t.Fatal(err)
	}
	const script = "#!/bin/sh\nsleep \"$SLOW\"\nexec \"$KBROKER_ARTIFACT_DIR/wordcount\"\n"
	writeFile(t, filepath.Join(dir, "slow.tar.gz"), string(tarball(t, [2]string{"start.sh", script}, [2]string{"wordcount", string(program)})), 0o600)
}

// TestASlowStart: instances that take long to get ready get no request before, and
// nobody fails for it; those that take too long are killed, which is said, and the
// ones before them stay.
func TestASlowStart(t *testing.T) {
	needLong(t)
	c, dir := up(t, 3), t.TempDir()
	slowArchive(t, dir)
	spec := filepath.Join(dir, "app.yaml")
	deploy := func(slow, start time.Duration) (string, int) {
		t.Helper()
		writeFile(t, spec, fmt.Sprintf(`
name: wordcount
services:
  wordcount:
    artifact: {path: slow.tar.gz, command: start.sh}
    env: {SLOW: "%v"}
    count: 3
    health: {start: %v}
    update: {deadline: 20s}
`, slow.Seconds(), start), 0o600)
		return c.try("deploy", spec)
	}
	if out, code := deploy(0, 30*time.Second); code != 0 {
		t.Fatalf("deploy: exit code %d\n%s", code, out)
	}
	end := c.load(75 * time.Second)
	wait.Until(t, 10*time.Second, func() error { return answering(c) })
	began := time.Now()
	const slow = 4 * time.Second
	if out, code := deploy(slow, 30*time.Second); code != 0 {
		t.Fatalf("deploy of a slow version: exit code %d\n%s", code, out)
	}
	if took := time.Since(began); took < 3*slow {
		t.Errorf("three instances that take %v each were replaced one after the other in %v", slow, took)
	}
	kept := c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	out, code := deploy(1000*time.Second, 3*time.Second)
	const reason = "killed: not ready within 3s (sdk: no SDK in it answers)"
	if code != 1 || !strings.Contains(out, reason) {
		t.Errorf("deploy of a version that is never ready: exit code %d, want 1 and %q in:\n%s", code, reason, out)
	}
	c.says(5*time.Second, reason, []string{"ps", "wordcount"}, []string{"events"})
	for _, k := range kept {
		c.waitReady(5*time.Second, "wordcount", "wordcount", 1, func(r kbroker.InstanceRow) bool { return *r.Instance == *k.Instance && *r.PID == *k.PID })
	}
	r := end()
	t.Logf("RESULT slow starts of %v, and ones that never get ready: %d of %d requests failed", slow, r.Failed, r.Requests)
}

// TestAStoppedHostKillsNothing: after a minute in which neither the agent nor
// anything else of a host ran, nothing is taken for hung, nor for late.
func TestAStoppedHostKillsNothing(t *testing.T) {
	needLong(t)
	const stopped = time.Minute
	dir := t.TempDir()
	buildInto(t, dir, "web", "./testdata/web")
	c := up(t, 1)
	spec := func(app string, late time.Duration) string {
		path, port := filepath.Join(dir, app+".yaml"), freePort(t)
		writeFile(t, path, fmt.Sprintf(`
name: %s
services:
  %s:
    run: web
    env: {WEB: "%d", LATE: %v}
    ports: {web: %d}
    health: {ready: http, interval: 200ms, start: 30s, live: {ready: tcp, interval: 200ms}}
`, app, app, port, late, port), 0o600)
		return path
	}
	c.must("deploy", spec("shop", 0))
	c.must("deploy", "../examples/hello/app.yaml")
	c.allSettled(20*time.Second, map[string]int{"hello": 3, "shop": 1})
	// It begins to listen after the host has gone on, and longer than its start.
	c.must("deploy", "--detach", spec("late", stopped+15*time.Second))
	wait.Until(t, 10*time.Second, func() error {
		rows, err := list[kbroker.InstanceRow](c, "ps", "late")
		for _, r := range rows {
			if r.Service == "late" && r.State == kbroker.StateRunning {
				return nil
			}
		}
		return fmt.Errorf("late does not run: %s, %w", show(rows), err)
	})
	before := c.processes("")
	if n := c.signal("", "", syscall.SIGSTOP); n < 9 {
		t.Fatalf("%d processes were stopped", n)
	}
	<-time.After(stopped)
	c.signal("", "", syscall.SIGCONT)
	<-time.After(15 * time.Second) // longer than any of its processes may hang
	c.allSettled(20*time.Second, map[string]int{"hello": 3, "shop": 1, "late": 1})
	after := c.processes("")
	for pid, command := range before {
		if after[pid] == "" {
			t.Errorf("process %d was killed: %s", pid, command)
		}
	}
	if out := c.must("events", "-n", "100"); strings.Contains(out, kbroker.KilledText) {
		t.Errorf("events tell of a kill:\n%s", out)
	}
}
