package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
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

// backOnOld is how long after the gate a host may take to be back on its old version.
const backOnOld = 10 * time.Second

// ill builds a program that says its version and then is ill.
func (c *cluster) ill(how string) string {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "kbroker")
	build := exec.Command("go", "build", "-ldflags", "-X main.how="+how, "-o", path, "./testdata/ill")
	if out, err := build.CombinedOutput(); err != nil {
		c.t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// alone is a cluster of one host that runs from a program of its own, with an app.
func alone(t *testing.T) *cluster {
	t.Helper()
	c := upgradableTo(t, 1)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(20*time.Second, "wordcount", "wordcount", 3, nil)
	return c
}

// refused upgrades h1 to a program that has to be refused, within the gate and what
// comes after it: exit code 1, why, the old version, no process of an application
// touched.
func (c *cluster) refused(program string, gate time.Duration, why string) {
	c.t.Helper()
	before, old := c.incarnations(), c.programOf("h1")
	began := time.Now()
	var out string
	var code int
	wait.Until(c.t, 20*time.Second, func() error { // the upgrade before may still settle
		began = time.Now()
		if out, code = c.try("agent", "upgrade", "--dir", c.host("h1"), "--binary", program, "--gate", gate.String()); code == 4 {
			return fmt.Errorf("refused: %s", out)
		}
		return nil
	})
	took := time.Since(began)
	c.t.Logf("exit code %d after %v\n%s", code, took.Round(10*time.Millisecond), out)
	if code != 1 || !strings.Contains(out, "host h1 is back on version") || !strings.Contains(out, why) || !strings.Contains(out, "this program is ill") {
		c.t.Errorf("exit code %d, want 1, that the host is back, %q and the log:\n%s", code, why, out)
	}
	if limit := gate + gate/3 + backOnOld; took > limit {
		c.t.Errorf("back after %v, want %v", took, limit)
	}
	c.unchanged(before, old)
}

// unchanged holds that the host runs its old program, and the applications the
// processes of before.
func (c *cluster) unchanged(before map[kbroker.InstanceID]string, old []byte) {
	c.t.Helper()
	if after := c.incarnations(); !maps.Equal(before, after) {
		c.t.Errorf("instances are\n%v, want the processes of before:\n%v", after, before)
	}
	if now := c.programOf("h1"); !bytes.Equal(now, old) {
		c.t.Error("h1 runs another program than before")
	}
	disk, err := os.ReadFile(kbrokerBin)
	if err != nil || !bytes.Equal(disk, old) {
		c.t.Errorf("on disk is another program than before (%v)", err)
	}
	if left, err := filepath.Glob(kbrokerBin + ".next*"); err != nil || len(left) > 0 {
		c.t.Errorf("left are %v, %v", left, err)
	}
}

// programOf is the program that the agent of a host executes.
func (c *cluster) programOf(host string) []byte {
	c.t.Helper()
	var program []byte
	wait.Until(c.t, 10*time.Second, func() error {
		for pid, cmd := range c.processes(host) {
			if strings.Contains(cmd, " agent ") {
				var err error
				program, err = os.ReadFile(fmt.Sprintf("/proc/%d/exe", pid))
				return err
			}
		}
		return fmt.Errorf("host %s has no agent", host)
	})
	return program
}

// TestUpgradeToAProgramThatEndsIsUndone: the host is back on the old one at once.
func TestUpgradeToAProgramThatEndsIsUndone(t *testing.T) {
	needLong(t)
	c := alone(t)
	c.refused(c.ill("exits"), 5*time.Second, "it ended after")
}

// TestUpgradeToAnIllProgramIsUndone under load, which goes to other cores meanwhile:
// no request fails, also of a method that may not be repeated.
func TestUpgradeToAnIllProgramIsUndone(t *testing.T) {
	needLong(t)
	c := upgradable(t)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.must("deploy", c.once())
	for _, app := range []string{"wordcount", "once"} {
		c.waitReady(20*time.Second, app, app, 3, nil)
	}
	endOnce := c.callOnce(50)
	for _, ill := range []struct {
		how, why string
		gate     time.Duration
		loaded   time.Duration // longer than the upgrade takes
	}{
		{"exits", "it ended after", 30 * time.Second, 20 * time.Second},
		{"panics", "it ended after 1", 30 * time.Second, 20 * time.Second},
		{"panics-late", "it ended after 8", 30 * time.Second, 25 * time.Second},
		{"hangs", "it said nothing within 5s", 5 * time.Second, 25 * time.Second},
		{"holds", "it said nothing within 30s", 30 * time.Second, 50 * time.Second},
	} {
		t.Run(ill.how, func(t *testing.T) {
			program := c.ill(ill.how)
			end := c.load(ill.loaded)
			c.refused(program, ill.gate, ill.why)
			end()
		})
	}
	wait.Until(t, 20*time.Second, func() error { return c.upgrade("h1", "--binary", c.newProgram()) })
	endOnce()
}

// asking is an upgrade of h1 whose command runs; it is watched.
func (c *cluster) asking(program string, gate time.Duration) (*exec.Cmd, lastUpgrade) {
	c.t.Helper()
	cmd := c.client(context.Background(), kbrokerBin, "agent", "upgrade", "--dir", c.host("h1"), "--binary", program, "--gate", gate.String())
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	c.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	return cmd, c.awaitUpgrade(20*time.Second, "watched")
}

// lastUpgrade is what a test reads of upgrade.json.
type lastUpgrade struct {
	Phase, Reason string
	Agent, Guard  struct{ PID int }
}

// awaitUpgrade waits for a phase of the upgrade of h1.
func (c *cluster) awaitUpgrade(within time.Duration, phase string) lastUpgrade {
	c.t.Helper()
	var last lastUpgrade
	wait.Until(c.t, within, func() error {
		raw, err := os.ReadFile(filepath.Join(c.host("h1"), "upgrade.json"))
		if err == nil {
			err = json.Unmarshal(raw, &last)
		}
		if err == nil && last.Phase != phase {
			err = fmt.Errorf("the upgrade is %s, want %s", raw, phase)
		}
		return err
	})
	return last
}

// back waits until h1 takes writes.
func (c *cluster) back() {
	c.t.Helper()
	wait.Until(c.t, backOnOld, c.write)
}

// TestUpgradeIsUndoneWithoutItsCommand: it is killed as soon as the agent is asked.
func TestUpgradeIsUndoneWithoutItsCommand(t *testing.T) {
	needLong(t)
	c := alone(t)
	before, old := c.incarnations(), c.programOf("h1")
	const gate = 5 * time.Second
	cmd, _ := c.asking(c.ill("hangs"), gate)
	began := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.awaitUpgrade(gate+backOnOld, "returned")
	c.back()
	t.Logf("back on the old program %v after the command was killed", time.Since(began).Round(10*time.Millisecond))
	if took := time.Since(began); took > gate+backOnOld {
		t.Errorf("back after %v, want %v", took, gate+backOnOld)
	}
	c.unchanged(before, old)
}

// TestUpgradeIsUndoneWhenTheNewAgentIsKilled, and what it says is that.
func TestUpgradeIsUndoneWhenTheNewAgentIsKilled(t *testing.T) {
	needLong(t)
	c := alone(t)
	before, old := c.incarnations(), c.programOf("h1")
	_, watched := c.asking(c.newProgram(), 30*time.Second)
	wait.Until(t, 20*time.Second, c.executesNext(watched.Agent.PID))
	if err := syscall.Kill(watched.Agent.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if last := c.awaitUpgrade(backOnOld, "returned"); !strings.Contains(last.Reason, "it ended after") {
		t.Errorf("returned because %q", last.Reason)
	}
	c.back()
	c.unchanged(before, old)
}

// executesNext holds that a process executes a program that is on trial.
func (c *cluster) executesNext(pid int) func() error {
	return func() error {
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && path != kbrokerBin+".next" {
			err = fmt.Errorf("process %d executes %s", pid, path)
		}
		return err
	}
}

// TestUpgradePassesWithoutItsFirstGuard: the new agent starts another one; and when
// both are killed, the next start of the agent is of the old program.
func TestUpgradePassesWithoutItsFirstGuard(t *testing.T) {
	needLong(t)
	c := alone(t)
	before, old := c.incarnations(), c.programOf("h1")
	program := c.newProgram()
	_, watched := c.asking(program, 6*time.Second)
	wait.Until(t, 20*time.Second, c.executesNext(watched.Agent.PID))
	for _, pid := range []int{watched.Guard.PID, watched.Agent.PID} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	c.up()
	if last := c.awaitUpgrade(backOnOld, "returned"); !strings.Contains(last.Reason, "started anew") {
		t.Errorf("returned because %q", last.Reason)
	}
	c.back()
	c.unchanged(before, old)
	c.settled(20*time.Second, "wordcount", 3)

	_, watched = c.asking(program, 6*time.Second)
	wait.Until(t, 20*time.Second, c.executesNext(watched.Agent.PID))
	if err := syscall.Kill(watched.Guard.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if last := c.awaitUpgrade(20*time.Second, "passed"); last.Guard.PID == watched.Guard.PID || last.Agent.PID != watched.Agent.PID {
		t.Errorf("passed as %+v, was %+v", last, watched)
	}
	want, err := os.ReadFile(program)
	if now := c.programOf("h1"); err != nil || !bytes.Equal(now, want) {
		t.Errorf("h1 does not run the new program (%v)", err)
	}
	if after := c.incarnations(); !maps.Equal(before, after) {
		t.Errorf("instances are\n%v, want the processes of before:\n%v", after, before)
	}
}

// TestUpgradeEndsWithItsCluster: nothing of it is left after down.
func TestUpgradeEndsWithItsCluster(t *testing.T) {
	needLong(t)
	c := alone(t)
	old := c.programOf("h1")
	cmd, _ := c.asking(c.ill("hangs"), 30*time.Second)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.must("down", "--dir", c.dir)
	wait.Until(t, time.Second, func() error { // the command may be on its way out
		if left := c.processes(""); len(left) > 0 {
			return fmt.Errorf("left are %v", left)
		}
		return nil
	})
	c.up()
	c.awaitUpgrade(time.Second, "returned")
	if now := c.programOf("h1"); !bytes.Equal(now, old) {
		t.Error("h1 does not run the old program")
	}
}
