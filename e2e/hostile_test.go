package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// agentAnswers is the longest that an agent may take to have its heartbeat answered while
// somebody attacks it.
const agentAnswers = 3 // seconds

// program copies this test binary into a directory of an app, as a program of a name.
func program(t *testing.T, dir, name string) {
	t.Helper()
	from, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
}

// strangers accept connections that no instance in a sandbox may make.
func strangers(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port = l.Addr().(*net.TCPAddr).Port
	abstract, err := net.Listen("unix", fmt.Sprintf("@kbroker-hostile-%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); abstract.Close() })
	return port
}

// foe is what a hostile program on h1 knows of its victim.
func (c *cluster) foe(victim kbroker.InstanceRow) foe {
	c.t.Helper()
	dir, err := filepath.EvalSymlinks(c.host("h1"))
	if err != nil {
		c.t.Fatal(err)
	}
	home := filepath.Join(dir, "instances", "default", string(*victim.Instance))
	creds, err := filepath.Glob(filepath.Join(home, "run", "*.creds"))
	if err != nil || len(creds) != 1 {
		c.t.Fatalf("the credential of %s is %v, %v", *victim.Instance, creds, err)
	}
	ids, err := filepath.Glob(filepath.Join(dir, "identity", "*", "accounts.key"))
	if err != nil || len(ids) != 1 {
		c.t.Fatalf("the secret of the cluster is %v, %v", ids, err)
	}
	return foe{
		Dir: dir, Agent: *c.hostRows()[0].PID, Victim: *victim.PID, Home: home, Creds: creds[0], Cluster: filepath.Dir(ids[0]),
		Port: strangers(c.t), PIDs: 150, Files: 200,
	}
}

// TestAHostileProgram tries all that an instance must not be able to do, with and without a
// sandbox. All of it is refused, the agent goes on answering, and another instance serves
// and keeps its credential.
func TestAHostileProgram(t *testing.T) {
	needLong(t)
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	c := up(t, 1)
	c.must("deploy", "../examples/hello/app.yaml")
	victim := c.waitReady(20*time.Second, "hello", "hello", 3, nil)[0]
	f := c.foe(victim)
	dir := t.TempDir()
	program(t, dir, "hostile")
	plain, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Strict = true
	strict, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	service := `
  %s:
    run: hostile
    %s
    env: {%s: %s, %s: %q}
    health: {ready: alive}
    resources: {pids: 150, fds: 200, memory: 64MiB, memory_limit: 512MiB}
`
	writeFile(t, filepath.Join(dir, "app.yaml"), "name: foe\nservices:"+
		fmt.Sprintf(service, "plain", "", programEnv, hostileJob, hostileEnv, plain)+
		fmt.Sprintf(service, "strict", "sandbox: strict", programEnv, hostileJob, hostileEnv, strict), 0o600)
	ends := c.watchAgent()
	c.must("deploy", filepath.Join(dir, "app.yaml"))
	for _, name := range []string{"plain", "strict"} {
		all := c.attemptsOf(name)
		if i := c.waitReady(0, "foe", name, 1, nil)[0]; len(i.Unenforced) > 0 {
			t.Logf("%s: not enforced here: %q", name, i.Unenforced)
		}
		refused, tried := 0, 0
		for _, a := range all {
			tried++
			if a.Refused {
				refused++
			}
			t.Logf("%s: %s: refused %t: %s", name, a.Name, a.Refused, a.Said)
			if !a.Refused {
				t.Errorf("%s: it was not refused to %s", name, a.Name)
			}
		}
		if tried++; c.eats(name) {
			t.Errorf("%s: it was not refused to use more memory than it may", name)
		} else {
			refused++
		}
		t.Logf("RESULT %s: %d of %d attempts refused", name, refused, tried)
		// Forged files are read, if at all, when a start ends, and when the next one begins.
		i := c.waitReady(0, "foe", name, 1, nil)[0]
		c.must("signal", string(*i.Instance), "KILL")
		c.waitReady(20*time.Second, "foe", name, 1, func(r kbroker.InstanceRow) bool { return *r.PID != *i.PID })
	}
	c.must("stop", "foe")
	wait.Until(t, 20*time.Second, func() error {
		if rows, err := list[kbroker.InstanceRow](c, "ps", "foe"); err != nil || len(rows) > 0 {
			return fmt.Errorf("there are still %s, %v", show(rows), err)
		}
		return nil
	})
	worst := ends()
	t.Logf("RESULT the agent was answered at least every %.1f s", worst)
	if worst > agentAnswers {
		t.Errorf("the agent was silent for %.1f s", worst)
	}
	now := c.waitReady(0, "hello", "hello", 3, nil)
	for _, r := range now {
		if *r.Instance == *victim.Instance && (*r.PID != *victim.PID || r.Restarts != victim.Restarts) {
			t.Errorf("another instance was %s, it is %s", show(victim), show(r))
		}
	}
	if nc, err := c.dial(*c.credsIn("h1", "instances", "default", string(*victim.Instance), "run", "*.creds")); err != nil {
		t.Errorf("the credential of another instance does not hold any more: %v", err)
	} else {
		nc.Close()
	}
	if err := c.request(); err != nil {
		t.Errorf("another instance does not answer: %v", err)
	}
}

// eats reports whether a program in the instance of a service may use more memory than that
// has. The kernel may end the whole instance for it.
func (c *cluster) eats(service string) bool {
	i := c.waitReady(0, "foe", service, 1, nil)[0]
	_, errs, code := c.execute("", string(*i.Instance), "--", "sh", "-c", "head -c 700000000 /dev/zero | tail -c 650000000 > /dev/null")
	c.t.Logf("%s: use more memory than it may: exit code %d, %q", service, code, errs)
	c.waitReady(20*time.Second, "foe", service, 1, nil)
	return code != 137
}

// attemptsOf are those of a service's instance, when all were made.
func (c *cluster) attemptsOf(service string) (all []hostileAttempt) {
	c.t.Helper()
	wait.Until(c.t, 60*time.Second, func() error {
		out, code := c.try("logs", "foe/"+service, "--tail", "200")
		if code != 0 || !strings.Contains(out, hostileDone) {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		all = nil
		for line := range strings.Lines(out) {
			_, object, ok := strings.Cut(line, "{")
			var a hostileAttempt
			if ok && json.Unmarshal([]byte("{"+object), &a) == nil && a.Name != "" {
				all = append(all, a)
			}
		}
		if len(all) == 0 {
			return errors.New("nothing was tried")
		}
		return nil
	})
	return all
}

// watchAgent looks at h1's heartbeat until the end, and returns its greatest age.
func (c *cluster) watchAgent() (end func() float64) {
	stop, done := make(chan struct{}), make(chan float64)
	go func() {
		worst := 0.0
		for tick := time.NewTicker(200 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				done <- worst
				return
			case <-tick.C:
				worst = max(worst, c.heartbeatAge())
			}
		}
	}()
	end = sync.OnceValue(func() float64 { close(stop); return <-done })
	c.t.Cleanup(func() { end() })
	return end
}

const (
	daemonJob  = "daemon"
	zombiesJob = "zombies"
	// zombies are left by a process that does not wait for its children.
	zombies = 100
)

// misbehave is a program that leaves processes behind, and says which.
func misbehave(job string) int {
	if job == daemonJob {
		// The first fork leads a session, the second is a daemon: no parent, no environment,
		// no files, another directory.
		first := exec.Command("/bin/sh", "-c", "cd /; (exec setsid sleep 86399) > /dev/null 2>&1 < /dev/null & echo process $!")
		first.Env, first.SysProcAttr = []string{"PATH=/usr/bin:/bin"}, &syscall.SysProcAttr{Setsid: true}
		out, err := first.Output()
		fmt.Printf("%s%v\n", out, err)
	}
	for range zombies {
		c := exec.Command("/bin/true")
		if err := c.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("process", c.Process.Pid)
	}
	fmt.Println("process", os.Getpid())
	fmt.Println(hostileDone)
	select {}
}

// TestNothingIsLeftOfDaemonsAndZombies: five seconds after an app has stopped, and after its
// process was killed, there is no process of it, dead or alive.
func TestNothingIsLeftOfDaemonsAndZombies(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	dir := t.TempDir()
	program(t, dir, "bad")
	spec := "name: foe\nservices:"
	jobs := []string{daemonJob, zombiesJob}
	for _, job := range jobs {
		spec += fmt.Sprintf("\n  %s:\n    run: bad\n    env: {%s: %s}\n    health: {ready: alive}\n    resources: {memory_limit: 512MiB}\n", job, programEnv, job)
	}
	writeFile(t, filepath.Join(dir, "app.yaml"), spec, 0o600)
	c.must("deploy", filepath.Join(dir, "app.yaml"))
	for _, killed := range []bool{true, false} {
		left := map[string]map[int]uint64{}
		for _, job := range jobs {
			left[job] = c.processesOf(job)
		}
		if killed {
			for _, job := range jobs {
				c.must("signal", string(*c.waitReady(10*time.Second, "foe", job, 1, nil)[0].Instance), "KILL")
			}
		} else {
			c.must("stop", "foe")
		}
		began := time.Now()
		for _, job := range jobs {
			wait.Until(t, 5*time.Second-time.Since(began), func() error { return noneLeft(left[job]) })
			t.Logf("RESULT %s, killed %t: 0 of %d processes and zombies left after %v", job, killed, len(left[job]), time.Since(began).Round(time.Millisecond))
		}
	}
}

// processesOf are those that the last start of a service has told, with their start times.
func (c *cluster) processesOf(job string) map[int]uint64 {
	c.t.Helper()
	want, all := zombies+1, map[int]uint64{}
	if job == daemonJob {
		want++
	}
	wait.Until(c.t, 20*time.Second, func() error {
		out, _ := c.try("logs", "foe/"+job, "--tail", fmt.Sprint(want+2))
		clear(all)
		for line := range strings.Lines(out) {
			pid := 0
			if _, said, ok := strings.Cut(line, "process "); ok {
				if _, err := fmt.Sscan(said, &pid); err == nil {
					if s, ok := startOf(pid); ok {
						all[pid] = s
					}
				}
			}
		}
		if len(all) != want {
			return fmt.Errorf("%d processes, want %d: %s", len(all), want, out)
		}
		return nil
	})
	return all
}

// startOf is when a process was started, dead or alive.
func startOf(pid int) (ticks uint64, ok bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	_, err = fmt.Sscan(fields[19], &ticks)
	return ticks, err == nil
}

// noneLeft is nil if none of the processes is there, not even as a zombie.
func noneLeft(all map[int]uint64) error {
	for pid, start := range all {
		if s, ok := startOf(pid); ok && s == start {
			raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return fmt.Errorf("process %d is there: %s", pid, raw)
		}
	}
	return nil
}
