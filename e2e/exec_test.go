package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// execute runs a command in an instance.
func (c *cluster) execute(stdin string, args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := c.client(ctx, kbrokerBin, append([]string{"exec"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	_ = cmd.Run()
	if cmd.ProcessState == nil {
		c.t.Fatalf("kbroker exec %v did not start", args)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// began starts a command in an instance, and waits until it says a text.
func (c *cluster) began(text string, args ...string) (cmd *exec.Cmd, out *lockedBuffer) {
	c.t.Helper()
	cmd, out = c.client(context.Background(), kbrokerBin, append([]string{"exec"}, args...)...), &lockedBuffer{}
	stdin, err := cmd.StdinPipe()
	cmd.Stdout, cmd.Stderr = out, out
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { stdin.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	wait.Until(c.t, 10*time.Second, func() error {
		if !strings.Contains(out.String(), text) {
			return fmt.Errorf("no %q in %q", text, out.String())
		}
		return nil
	})
	return cmd, out
}

// lockedBuffer is what a command has written so far.
type lockedBuffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// goneWithin waits until no process has a word in its command line.
func (c *cluster) goneWithin(d time.Duration, word string) {
	c.t.Helper()
	wait.Until(c.t, d, func() error {
		for pid, line := range c.processes("") {
			if strings.Contains(line, word) && !strings.Contains(line, "kbroker exec") {
				return fmt.Errorf("process %d is %s", pid, line)
			}
		}
		return nil
	})
}

// TestExecAndSignal on another host than the one that is asked: streams, codes, what ends a
// command, who may, and what the trail tells.
func TestExecAndSignal(t *testing.T) {
	needLong(t)
	c := up(t, 2)
	c.must("deploy", "../examples/hello/app.yaml")
	rows := c.waitReady(20*time.Second, "hello", "hello", 3, nil)
	for _, r := range rows {
		name := string(*r.Instance)
		out, errs, code := c.execute("typed\n", name, "--", "sh", "-c", "cat; echo $KBROKER_INCARNATION; echo oh >&2; exit 42")
		if code != 42 || !strings.HasPrefix(out, "typed\n"+name+".") || errs != "oh\n" {
			t.Errorf("on %s: %d, %q, %q", *r.Host, code, out, errs)
		}
	}
	one := string(*rows[0].Instance)
	big := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB each way
	if out, _, code := c.execute(big, one, "--", "cat"); code != 0 || out != big {
		t.Errorf("of 4 MiB %d came back, code %d", len(out), code)
	}
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{one, "--", "not-there"}, 127, "command not found"},
		{[]string{"hello-hello-99", "--", "true"}, 5, "no instance"},
		{[]string{one, "--", "sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{one}, 2, ""},
	} {
		if _, errs, code := c.execute("", test.args...); code != test.code || !strings.Contains(errs, test.says) {
			t.Errorf("exec %v: %d, %q, want %d and %q", test.args, code, errs, test.code, test.says)
		}
	}

	cmd, _ := c.began("go", one, "--", "sh", "-c", "echo go; exec sleep 7654")
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("interrupted it ended with %d, want 130", code)
	}
	cmd, _ = c.began("go", "-t", one, "--", "sh", "-c", "tty > /dev/null && echo go; sleep 7655; true")
	began := time.Now()
	_ = cmd.Process.Kill()
	c.goneWithin(8*time.Second, "7655")
	t.Logf("RESULT kbroker exec killed: its command is gone after %v", time.Since(began).Round(10*time.Millisecond))

	c.must("signal", one, "cont", "--all")
	if out, code := c.try("signal", one, "9"); code != 2 {
		t.Errorf("a number for a signal: %d, %s", code, out)
	}
	_, out := c.began("go", one, "--", "sh", "-c", "echo go; exec sleep 7656")
	c.must("signal", one, "KILL")
	c.waitReady(20*time.Second, "hello", "hello", 3, nil)
	c.goneWithin(5*time.Second, "7656")
	wait.Until(t, 10*time.Second, func() error {
		if rows, err := list[kbroker.InstanceRow](c, "ps"); err != nil || !strings.Contains(show(rows), "SIGKILL") && !strings.Contains(show(rows), `"restarts":1`) {
			return fmt.Errorf("no crash in %s, %v; the command said %q", show(rows), err, out.String())
		}
		return nil
	})
	deployer := c.user("dora", "deployer")
	if out, code := c.try("exec", one, "--context", deployer, "--", "true"); code != 4 {
		t.Errorf("a deployer: %d, %s", code, out)
	}
	operator := c.user("oscar", "operator")
	c.must("exec", one, "--context", operator, "--", "echo", "a-secret")
	all, err := c.trail()
	if err != nil {
		t.Fatal(err)
	}
	told := false
	for _, r := range all {
		told = told || r.Action == "exec" && r.Actor.Name == "oscar" && r.Object == "instance "+one && strings.HasPrefix(r.Message, "runs echo on host ")
	}
	if !told || strings.Contains(show(all), "a-secret") {
		t.Errorf("the trail is %s", show(all))
	}
	c.intact()
}
