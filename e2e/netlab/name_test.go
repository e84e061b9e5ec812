//go:build linux

package netlab

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestOnlyLabsOfDeadProcessesAreOrphaned(t *testing.T) {
	pid, start := os.Getpid(), startOf(os.Getpid())
	if start == 0 {
		t.Fatal("this process has no start")
	}
	for name, want := range map[string]struct {
		lab  string
		dead bool
	}{
		ownName(1):         {ownName(1), false},
		ownName(1) + "-h1": {ownName(1), false},
		fmt.Sprintf("kbnetlab-%d-%d-2-sw", pid, start+1): {fmt.Sprintf("kbnetlab-%d-%d-2", pid, start+1), true}, // the number was given again
		"kbnetlab-4194305-77-3-op":                       {"kbnetlab-4194305-77-3", true},                       // above the highest process number
		"kbnetlab-1":                                     {"", false},
		"kbnetlab--1-2-3":                                {"", false},
		"kbnetlab-0-2-3":                                 {"", false},
		"kbnetlab-x-2-3":                                 {"", false},
		"somebody-else":                                  {"", false},
	} {
		if lab, dead := orphaned(name); lab != want.lab || dead != want.dead {
			t.Errorf("orphaned(%q) = %q, %v, want %q, %v", name, lab, dead, want.lab, want.dead)
		}
	}
}

// traces is what the system still has of a lab, asked in other ways than those
// that remove it.
func traces(t *testing.T, name string) []string {
	t.Helper()
	var left []string
	for _, command := range [][]string{{"ip", "netns", "list"}, {"losetup", "--all", "--list"}, {"cat", "/proc/mounts"}, {"ls", os.TempDir()}} {
		out, err := exec.Command(command[0], command[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", command, err)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, name) && !strings.HasPrefix(line, "nsfs ") { // a namespace's file

				left = append(left, command[0]+": "+strings.TrimSpace(line))
			}
		}
	}
	return left
}

func TestALabIsSeenWhileItIsThere(t *testing.T) {
	l := New(t, 2)
	if got := traces(t, l.name); len(got) != 4+2+3+1 {
		t.Errorf("%d traces %q, want four namespaces, two loop devices, three mounts and a directory", len(got), got)
	}
}

// leaveEnv makes TestLeavesALab, in a process of its own, end in that way.
const leaveEnv = "KBROKER_TEST_NETLAB_LEAVE"

// TestLeavesALab makes a lab with a process and faults, says its name, and ends
// badly. It is run by the tests below.
func TestLeavesALab(t *testing.T) {
	how := os.Getenv(leaveEnv)
	if how == "" {
		t.Skip("for the tests that run it")
	}
	l := New(t, 3)
	for _, h := range l.Hosts() {
		h.Start("sleep", "1000")
	}
	l.Operator().Start("sleep", "1000")
	l.Host(1).Cut()
	l.Host(2).Pause()
	l.Host(3).PowerOff()
	fmt.Println("lab " + l.name)
	switch how {
	case "pass":
	case "fail":
		t.Fatal("as it was told")
	case "hang":
		<-t.Context().Done()
	}
}

// leave runs it and returns the lab's name when it has been made; end waits for
// the process.
func leave(t *testing.T, how string) (name string, cmd *exec.Cmd) {
	t.Helper()
	cmd = exec.Command(os.Args[0], "-test.run", "^TestLeavesALab$", "-test.v")
	cmd.Env = append(os.Environ(), leaveEnv+"="+how)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var said bytes.Buffer
	for in := bufio.NewScanner(out); in.Scan(); {
		said.WriteString(in.Text() + "\n")
		if _, after, ok := strings.Cut(in.Text(), "lab kbnetlab-"); ok {
			name = namePrefix + after
			if how == "hang" {
				return name, cmd
			}
		}
	}
	if name == "" {
		t.Fatalf("no lab was made:\n%s", said.String())
	}
	return name, cmd
}

func TestNothingIsLeft(t *testing.T) {
	if err := lacking(); err != nil {
		New(t, 1) // skips or fails, as it says
	}
	for _, how := range []string{"pass", "fail"} {
		t.Run(how, func(t *testing.T) {
			name, cmd := leave(t, how)
			if err := cmd.Wait(); (err == nil) != (how == "pass") {
				t.Errorf("the test that was to %s: %v", how, err)
			}
			if left := traces(t, name); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

func TestTheNextRunSweepsWhatAKilledOneLeft(t *testing.T) {
	if err := lacking(); err != nil {
		New(t, 1) // skips or fails, as it says
	}
	name, cmd := leave(t, "hang")
	New(t, 1) // of a living process: stays
	if left := traces(t, name); len(left) == 0 {
		t.Fatal("the lab of a living process was swept")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if left := traces(t, name); len(left) == 0 {
		t.Fatal("a killed process left nothing: there is nothing to sweep")
	}
	began := time.Now()
	New(t, 1)
	t.Logf("swept, and a lab made: %v", time.Since(began).Round(time.Millisecond))
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
