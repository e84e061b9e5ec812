package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// The test binary is also the agent that is restarted, and the programs that
// it starts.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		os.Exit(m.Run())
	}
	if err := play(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func play(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	switch args[0] {
	case "agent":
		return Serve(ctx, Config{Dir: args[1], Name: "h1", Found: true, Advertise: "127.0.0.1", Log: log})
	case "version":
		return json.NewEncoder(os.Stdout).Encode(BuildVersion{Version: Version, Go: "go", OS: "linux", Arch: "any"})
	}
	if args[0] != "builtin" {
		return fmt.Errorf("unknown arguments %q", args)
	}
	if args[1] == kbroker.BuiltinAllocator {
		return RunAllocator(ctx, log)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for { // until it is told to leave, or finds the file that tells it how
		if _, err := os.Stat("die"); err == nil {
			os.Exit(7)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// copyProgram puts the test binary to path, as somebody who upgrades would.
func copyProgram(t *testing.T, path string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close(), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// agentProcess is a host in a process of its own.
type agentProcess struct {
	t    *testing.T
	dir  string
	exe  string
	pid  int
	log  string
	conn *nats.Conn
}

func startProcess(t *testing.T) *agentProcess {
	t.Helper()
	base := t.TempDir()
	p := &agentProcess{t: t, dir: filepath.Join(base, "h1"), exe: filepath.Join(base, "kbroker"), log: filepath.Join(base, "log")}
	copyProgram(t, p.exe)
	out, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(p.exe, "agent", p.dir)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the agent ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the agent did not end")
			_ = cmd.Process.Kill()
			<-ended
		}
		if _, err := Sweep(context.Background(), p.dir, 0); err != nil {
			t.Errorf("sweep: %v", err)
		}
		if raw, err := os.ReadFile(p.log); err == nil && t.Failed() {
			t.Logf("log of the agent:\n%s", raw)
		}
	})
	m := awaitLeader(t, p.dir)
	if p.conn, err = m.dial(nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.conn.Close)
	return p
}

// instance is the one row of the app's service, as it should be.
func (p *agentProcess) instance(what string, ok func(kbroker.InstanceRow) bool) kbroker.InstanceRow {
	p.t.Helper()
	var found kbroker.InstanceRow
	wait.Until(p.t, 20*time.Second, func() error {
		reply, err := p.conn.Request(subjects.Core(subjects.VerbInstances, kbroker.DefaultTenant), []byte("{}"), time.Second)
		if err != nil {
			return err
		}
		var rows []kbroker.InstanceRow
		if err := json.Unmarshal(reply.Data, &rows); err != nil {
			return err
		}
		for _, found = range rows {
			if found.Service == "web" && ok(found) {
				return nil
			}
		}
		return fmt.Errorf("instances are %s, want one that is %s", reply.Data, what)
	})
	return found
}

func (p *agentProcess) deploy() {
	p.t.Helper()
	body, err := json.Marshal(kbroker.DeployRequest{App: kbroker.App{Name: "shop", Services: []kbroker.Service{{
		Name: "web", Artifact: kbroker.Artifact{Builtin: kbroker.BuiltinHello}, Count: kbroker.Count{Min: 1, Max: 1},
		Resources: kbroker.Resources{CPU: 0.1, MemoryBytes: 64 << 20}, Spread: "host", Health: kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthAlive, Interval: time.Second}},
		Update: kbroker.Update{Parallel: 1, MinHealthy: time.Second, Deadline: time.Minute},
		Stop:   kbroker.Stop{Signal: "SIGTERM", Grace: time.Second},
	}}}})
	if err != nil {
		p.t.Fatal(err)
	}
	reply, err := p.conn.Request(subjects.Super(subjects.VerbDeploy, kbroker.DefaultTenant, subjects.NoKey), body, 10*time.Second)
	if err != nil || reply.Header.Get(subjects.HeaderCode) != "" {
		p.t.Fatalf("deploy: %v, %+v", err, reply)
	}
}

// restart asks for one and waits until another agent holds the directory.
func (p *agentProcess) restart() agent.Holder {
	p.t.Helper()
	before, _, err := agent.HolderOf(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := AskRestart(p.dir); err != nil {
		p.t.Fatal(err)
	}
	var h agent.Holder
	wait.Until(p.t, 20*time.Second, func() error {
		var alive bool
		if h, alive, err = agent.HolderOf(p.dir); err != nil || !alive || h.Process == before.Process {
			return fmt.Errorf("held by %+v, alive %t, %v; want another process than %s", h, alive, err, before.Process)
		}
		return nil
	})
	awaitLeader(p.t, p.dir)
	return h
}

func (p *agentProcess) logged(text string) error {
	raw, err := os.ReadFile(p.log)
	if err == nil && !strings.Contains(string(raw), text) {
		err = fmt.Errorf("the log does not say %q", text)
	}
	return err
}

// TestRestartInPlace: the program on disk is replaced and executed, the pid and
// the children stay.
func TestRestartInPlace(t *testing.T) {
	t.Parallel()
	p := startProcess(t)
	p.deploy()
	ready := func(r kbroker.InstanceRow) bool { return r.State == kbroker.StateReady && r.PID != nil }
	before := p.instance("ready", ready)

	copyProgram(t, p.exe) // another file at the same path
	h := p.restart()
	if h.PID != p.pid || h.Executable != p.exe || len(h.Starts) != 2 {
		t.Errorf("held by %+v, want process %d of %s at its second start", h, p.pid, p.exe)
	}
	if !sameProgram(t, p.pid, p.exe) {
		t.Errorf("process %d does not execute what is at %s", p.pid, p.exe)
	}
	if err := Scrape(t.Context(), p.dir, io.Discard); err != nil {
		t.Errorf("metrics after the restart: %v", err)
	}
	after := p.instance("ready", ready)
	if *after.PID != *before.PID || after.Restarts != 0 || *after.Instance != *before.Instance {
		t.Errorf("the instance was %s (%d), now it is %s (%d) after %d restarts", *before.Instance, *before.PID, *after.Instance, *after.PID, after.Restarts)
	}

	// The new program learns how its inherited child ends, and reaps it.
	die := filepath.Join(p.dir, "instances", "default", string(*after.Instance), "work", "die")
	if err := os.WriteFile(die, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	crashed := p.instance("restarted after exit code 7", func(r kbroker.InstanceRow) bool {
		return r.Restarts > 0 && r.Exit != nil && r.Exit.Code != nil && *r.Exit.Code == 7
	})
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", *after.PID)); err == nil {
		t.Errorf("process %d is still in the process table", *after.PID)
	}
	if err := os.Remove(die); err != nil {
		t.Fatal(err)
	}
	p.instance("ready again", func(r kbroker.InstanceRow) bool { return ready(r) && *r.PID != *before.PID })

	// A second time, nothing of the first may be in the way.
	if h := p.restart(); h.PID != p.pid {
		t.Errorf("process %d holds the directory, want %d", h.PID, p.pid)
	}
	if last := p.instance("ready", ready); last.Restarts < crashed.Restarts {
		t.Errorf("%d restarts, were %d", last.Restarts, crashed.Restarts)
	}
	for pid, state := range children(t, p.pid) {
		if state == "Z" {
			t.Errorf("child %d is a zombie", pid)
		}
	}
}

// TestABrokenProgramIsNotExecuted: the host goes on with the one that runs.
func TestABrokenProgramIsNotExecuted(t *testing.T) {
	p := startProcess(t)
	before, _, err := agent.HolderOf(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"no program": "x", "one that fails": "#!/bin/sh\necho broken >&2; exit 3\n"} {
		if err := os.WriteFile(p.exe+".new", []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(p.exe+".new", p.exe); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(p.log, 0); err != nil {
			t.Fatal(err)
		}
		if err := AskRestart(p.dir); err != nil {
			t.Fatal(err)
		}
		wait.Until(t, 10*time.Second, func() error { return p.logged("not restarted") })
		h, alive, err := agent.HolderOf(p.dir)
		if err != nil || !alive || h.Process != before.Process {
			t.Errorf("%s: held by %+v, alive %t, %v; want %s as before", name, h, alive, err, before.Process)
		}
	}
	awaitLeader(t, p.dir)
}

func TestAskRestartNeedsAnAgent(t *testing.T) {
	if err := AskRestart(t.TempDir()); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("%v, want not found", err)
	}
}

func TestProgramVersionRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"another program": "#!/bin/sh\necho hello\n",
		"no version":      "#!/bin/sh\necho '{}'\n",
		"no program":      "x",
		"one that fails":  "#!/bin/sh\nexit 1\n",
		"no end":          "#!/bin/sh\nexec yes\n",
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if v, err := ProgramVersion(t.Context(), path); !errors.Is(err, kbroker.Refused) {
			t.Errorf("%s: %+v, %v, want refused", name, v, err)
		}
	}
	if _, err := ProgramVersion(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a file that is not there: %v, want refused", err)
	}
}

// sameProgram reports whether a process executes the file that is at path now.
func sameProgram(t *testing.T, pid int, path string) bool {
	t.Helper()
	runs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(runs, is)
}

// children are the processes whose parent is pid, and their states.
func children(t *testing.T, pid int) map[int]string {
	t.Helper()
	out := map[int]string{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		child, rest := 0, string(raw)[strings.LastIndexByte(string(raw), ')')+1:]
		if _, err := fmt.Sscan(string(raw), &child); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if f := strings.Fields(rest); f[1] == fmt.Sprint(pid) {
			out[child] = f[0]
		}
	}
	return out
}
