package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

func oomScore(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func setOOMScore(t *testing.T, pid int, score string) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(score), 0); err != nil {
		t.Skipf("NOT TESTED: the OOM score of a process cannot be set to %s here: %v", score, err)
	}
}

// Not parallel: children of other tests would inherit the score.
func TestAnInstanceIsNotProtectedAsItsAgentIs(t *testing.T) {
	before := oomScore(t, os.Getpid())
	setOOMScore(t, os.Getpid(), "-50")
	t.Cleanup(func() { setOOMScore(t, os.Getpid(), before) })
	c := newCore(t)
	p := placement("shop-web-1", "run")
	c.want(p)
	c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateReady)
	if got := oomScore(t, s.PID); got != ordinaryOOMScore {
		t.Errorf("the instance has the score %s, want %s: the agent's own is -50", got, ordinaryOOMScore)
	}
}

func TestExposeNeverLowersAScore(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	defer func() {
		if err := expose(pid); err != nil {
			t.Errorf("expose a process that has ended: %v", err)
		}
	}()
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	setOOMScore(t, pid, "300")
	if err := expose(pid); err != nil || oomScore(t, pid) != "300" {
		t.Errorf("the score is %s after %v, want 300 as before", oomScore(t, pid), err)
	}
}

func TestExposeTakesProtectionAndNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oom_score_adj")
	for before, want := range map[string]string{"-900\n": ordinaryOOMScore, "-1\n": ordinaryOOMScore, "0\n": "0\n", "300\n": "300\n"} {
		if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		err := exposeAt(path)
		if got, readErr := os.ReadFile(path); err != nil || readErr != nil || string(got) != want {
			t.Errorf("the score %q became %q (%v, %v), want %q", before, got, err, readErr, want)
		}
	}
}
