package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/cgroup"
	"github.com/kbroker/kbroker/internal/wait"
)

// Instances have users of their own, which are nobody else's, also under a directory
// that only root may enter; what they may not see they do not see.
func TestInstancesAreStrangersToEachOther(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	top := t.TempDir()
	if err := os.Chmod(top, 0o700); err != nil {
		t.Fatal(err)
	}
	c := newCore(t)
	one, two := placement("shop-web-1", "run"), placement("shop-web-2", "spy")
	c.want(one, two)
	a := c.startAgent(filepath.Join(top, "data"))
	first := c.awaitState(one.Instance, kbroker.StateReady)
	second := c.awaitState(two.Instance, kbroker.StateReady)
	users := map[string]int{}
	for _, pid := range []int{first.PID, second.PID} {
		users[statusOf(t, pid, "Uid")]++
		for field, want := range map[string]string{"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1"} {
			if got := statusOf(t, pid, field); got != want {
				t.Errorf("%s of process %d is %s, want %s", field, pid, got, want)
			}
		}
	}
	if len(users) != 2 || users["0"] > 0 {
		t.Errorf("users %v, want two that are not root", users)
	}
	out := a.awaitOutput(two.Instance, "spied\n")
	if !strings.Contains(out, "\nopened "+instancePath(a.home(two.Instance))+"\n") {
		t.Errorf("an instance could not open its own file:\n%s", out)
	}
	for _, hidden := range []string{"shop-web-1", recordFile, outputFile, agentFile, viewFile, "\nopened /etc/shadow"} {
		if strings.Contains(out, hidden) {
			t.Errorf("an instance has seen %s:\n%s", hidden, out)
		}
	}
	if s := first.Unenforced; len(s) > 0 && a.contain.can.Group {
		t.Errorf("not enforced: %q", s)
	}
}

func statusOf(t *testing.T, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.Fields(value)[0]
		}
	}
	t.Fatalf("no %s in the status of %d", field, pid)
	return ""
}

// spy prints what of a host it can open: everything that it knows of.
func spy() {
	own := os.Getenv(envInstance)
	data := os.Getenv(envHostDir)
	paths := []string{own, "/etc/shadow", data}
	for dir := filepath.Dir(filepath.Dir(own)); len(dir) >= len(data); dir = filepath.Dir(dir) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
		paths = append(paths, dir)
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			fmt.Println(strings.Replace(err.Error(), "open", "not opened", 1))
			continue
		}
		fmt.Println("opened", path)
		f.Close()
	}
	fmt.Println("spied")
}

func (r *running) awaitOutput(i kbroker.InstanceID, want string) string {
	r.t.Helper()
	var out string
	wait.Until(r.t, 10*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(r.home(i), outputFile))
		out = string(b)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("no %q in %q", want, out)
		}
		return err
	})
	return out
}

// bombed has an agent run a fork bomb that may have 64 processes.
func bombed(t *testing.T) (*core, *running, kbroker.Placement, *cgroup.Group) {
	t.Helper()
	c := newCore(t)
	p := placement("shop-web-1", "bomb")
	p.Spec.Resources.PIDs = 64
	c.want(p)
	a := c.startAgent(t.TempDir())
	if !a.contain.can.Group {
		t.Skip("SKIPPED: no control groups here")
	}
	s := c.awaitState(p.Instance, kbroker.StateReady)
	return c, a, p, a.contain.groups.Group(string(s.Incarnation))
}

// Whatever an instance forks ends with it: daemons, in sessions of their own and
// without its environment; and a fork bomb hurts nobody else.
func TestNothingOutlivesItsInstance(t *testing.T) {
	c, a, p, group := bombed(t)
	wait.Until(t, 10*time.Second, func() error {
		if all, err := group.Processes(); err != nil || len(all) < 10 {
			return fmt.Errorf("%d processes (%v)", len(all), err)
		}
		return nil
	})
	if all, _ := group.Processes(); a.contain.can.PIDs && len(all) > 64 {
		t.Errorf("%d processes, at most 64 are allowed", len(all))
	}
	stopped := p
	stopped.Stop, stopped.Epoch = true, p.Epoch+1
	c.want(stopped)
	c.awaitState(p.Instance, kbroker.StateExited)
	if all, err := group.Processes(); len(all) > 0 || err != nil {
		t.Errorf("%d processes are left (%v)", len(all), err)
	}
	wait.Until(t, 5*time.Second, func() error {
		if group.There() {
			return fmt.Errorf("the control group is there")
		}
		return nil
	})
}

// The agent is dead when everything is to end.
func TestSweepEndsAForkBomb(t *testing.T) {
	_, a, _, group := bombed(t)
	a.stop()
	if _, err := Sweep(context.Background(), a.cfg.Dir.Path, 100*time.Millisecond); err != nil {
		t.Error(err)
	}
	if all, err := group.Processes(); len(all) > 0 || err != nil || group.There() {
		t.Errorf("%d processes are left (%v), group there: %t", len(all), err, group.There())
	}
}

func TestAnInstanceThatTakesTooMuchMemoryIsSaidToHave(t *testing.T) {
	c := newCore(t)
	p := placement("shop-web-1", "hungry")
	p.Spec.Resources.MemoryLimitBytes = 32 << 20
	c.want(p)
	a := c.startAgent(t.TempDir())
	if !a.contain.can.Memory {
		t.Skip("SKIPPED: memory cannot be limited here")
	}
	s := c.await(p.Instance, 10*time.Second, "ended", func(s kbroker.Status) bool { return s.Exit != nil })
	if !s.Exit.OOM || s.Exit.Signal != "SIGKILL" || !strings.Contains(s.Message, "memory") {
		t.Errorf("its exit is %+v, and the message %q", s.Exit, s.Message)
	}
}

// eat takes memory, and touches it, as long as it gets some.
func eat() {
	var all [][]byte
	for {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = byte(i)
		}
		all = append(all, b)
		if len(all) == 1<<10 {
			panic("nobody cares: " + strconv.Itoa(len(all)))
		}
	}
}
