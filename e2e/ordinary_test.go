package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// ordinary is a user who may nothing that others may not.
const ordinary = 65534

// TestAnOrdinaryUsersCluster has no users and groups for its instances: ps says so of each; a
// sandbox holds all the same, and who cannot do without the rest is not placed there.
func TestAnOrdinaryUsersCluster(t *testing.T) {
	needLong(t)
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to be somebody else")
	}
	dir := shared(t)
	t.Setenv("HOME", dir)
	c := &cluster{t: t, dir: filepath.Join(dir, "cluster"), hosts: 1, command: func(ctx context.Context, program string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
		return cmd
	}}
	t.Cleanup(c.down)
	c.up()
	writeFile(t, filepath.Join(dir, "loop"), "#!/bin/sh\nwhile :; do sleep 1; done\n", 0o755)
	spec := func(name, more string) string {
		path := filepath.Join(dir, name+".yaml")
		writeFile(t, path, fmt.Sprintf("name: %s\nservices:\n  loop:\n    run: loop\n    health: {ready: alive}\n    resources: {memory_limit: 128MiB, pids: 50, fds: 64}\n    %s\n", name, more), 0o644)
		return path
	}
	c.must("deploy", spec("held", "sandbox: strict"))
	i := c.waitReady(20*time.Second, "held", "loop", 1, nil)[0]
	for _, want := range []string{"own user", "control group", "memory limit", "pids limit"} {
		if !slices.Contains(i.Unenforced, want) {
			t.Errorf("not enforced are %q, want %s among them", i.Unenforced, want)
		}
	}
	name := string(*i.Instance)
	for script, held := range map[string]bool{
		"ls /usr > /dev/null":                           false,
		"echo mine > file && cat file":                  false,
		"test $(ulimit -n) = 64":                        false,
		"ls /var":                                       true,
		"echo > /tmp/of-an-ordinary-user":               true,
		"cat " + c.host("h1") + "/context.json":         true,
		"ls " + c.host("h1") + "/identity":              true,
		fmt.Sprintf("kill -0 %d", *c.hostRows()[0].PID): true,
	} {
		out, errs, code := c.execute("", name, "--", "sh", "-c", script)
		if refused := code != 0; refused != held {
			t.Errorf("in the sandbox of an ordinary user: %s: exit code %d, %q, %q", script, code, out, errs)
		}
	}
	if out, code := c.try("deploy", spec("wants", `require: ["isolation.user == yes"]`)); code != 2 || !strings.Contains(out, "isolation.user") {
		t.Errorf("what requires a user of its own: exit code %d, want 2 and the label: %s", code, out)
	}
	if rows, err := c.ready("wants", "loop", 0, nil); err != nil {
		t.Errorf("what requires a user of its own is placed: %s, %v", show(rows), err)
	}
	c.placedWithRoot(spec("wants", `require: ["isolation.user == yes"]`))
	// What ends an instance ends what was run in it, without a group.
	cmd, _ := c.began("go", name, "--", "sh", "-c", "echo go; exec sleep 7657")
	c.must("stop", "held")
	c.goneWithin(10*time.Second, "7657")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 137 && code != 143 {
		t.Errorf("a command whose instance has stopped ended with %d", code)
	}
}

// placedWithRoot has a host of root join, where alone an app is placed; why says why.
func (c *cluster) placedWithRoot(spec string) {
	c.t.Helper()
	c.agent("h2", "--join", c.address("h1"), "--role", "worker", "--token-file", c.token(c.t.TempDir(), kbroker.RoleWorker))
	wait.Until(c.t, 20*time.Second, func() error {
		if rows := c.hostRows(); len(rows) != 2 || rows[1].State != kbroker.HostReady {
			return fmt.Errorf("hosts are %s", show(rows))
		}
		return nil
	})
	c.must("deploy", spec)
	if i := c.waitReady(20*time.Second, "wants", "loop", 1, nil)[0]; *i.Host != "h2" || slices.Contains(i.Unenforced, "own user") {
		c.t.Errorf("what requires a user of its own is %s, want it on h2", show(i))
	}
	if out := c.must("why", "wants"); !strings.Contains(out, "isolation.user") || !strings.Contains(out, "h1") {
		c.t.Errorf("why does not say what h1 lacks: %s", out)
	}
	c.must("stop", "wants")
	wait.Until(c.t, 20*time.Second, func() error {
		if left := c.processes("h2"); len(left) != 1 {
			return fmt.Errorf("on h2 are %v, want the agent alone", left)
		}
		return nil
	})
	for pid := range c.processes("h2") { // down, as an ordinary user, may not
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			c.t.Fatal(err)
		}
	}
	wait.Until(c.t, 20*time.Second, func() error {
		if left := c.processes("h2"); len(left) > 0 {
			return fmt.Errorf("on h2 are %v", left)
		}
		return os.RemoveAll(c.host("h2"))
	})
}
