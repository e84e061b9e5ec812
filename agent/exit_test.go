package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// agentAlone is an agent in a process of its own, until it is killed.
func agentAlone(dir, url string) {
	d, err := Lock(dir)
	if err != nil {
		panic(err)
	}
	conn, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		panic(err)
	}
	a, err := New(Config{
		Dir: d, Host: testHost, Role: kbroker.RoleWorker, Conn: conn, Servers: func() []string { return []string{url} },
		Executable: os.Args[0], Version: "test", Log: slog.New(slog.NewTextHandler(os.Stdout, nil)),
	})
	if err == nil {
		err = a.Run(context.Background())
	}
	panic(err)
}

// alone starts an agent of dir in a process of its own; kill ends it as kill -9 does.
func (c *core) alone(dir string) (kill func()) {
	c.t.Helper()
	cmd := exec.Command(os.Args[0], "builtin", "agent", dir, c.srv.URL)
	cmd.Stdout, cmd.Stderr = c.t.Output(), c.t.Output()
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	c.t.Cleanup(func() {
		kill()
		if _, err := Sweep(context.Background(), dir, 0); err != nil {
			c.t.Errorf("sweep: %v", err)
		}
	})
	return kill
}

// TestTheExitOfAnAdoptedProcessIsKnown: the agent that started it was killed, and the
// next one is not its parent.
func TestTheExitOfAnAdoptedProcessIsKnown(t *testing.T) {
	t.Parallel()
	needExits(t)
	for _, tc := range []struct {
		program, want string
		by            unix.Signal
	}{
		{"seven", "exit code 7", unix.SIGUSR1},
		{"plain", "ended by SIGSEGV", unix.SIGSEGV},
		{"plain", "ended by SIGKILL", unix.SIGKILL},
	} {
		t.Run(tc.want, func(t *testing.T) {
			t.Parallel()
			c, dir := newCore(t), t.TempDir()
			p := placement("shop-web-1", tc.program)
			c.want(p)
			kill9 := c.alone(dir)
			s := c.awaitState(p.Instance, kbroker.StateReady)
			awaitNote(t, dir, p)
			kill9()
			c.forgetStatuses()
			c.alone(dir)
			now := c.awaitState(p.Instance, kbroker.StateReady)
			if now.PID != s.PID || now.Restarts != 0 {
				t.Fatalf("adopted as %+v, was %+v", now, s)
			}
			kill(t, s.PID, tc.by)
			now = c.await(p.Instance, 2*time.Second, "a restart", func(n kbroker.Status) bool { return n.State == kbroker.StateReady && n.PID != s.PID })
			if now.Exit == nil || exitText(*now.Exit) != tc.want {
				t.Errorf("exit %+v, want %s", now.Exit, tc.want)
			}
		})
	}
}

// awaitNote waits for the note that a program leaves when it can be told to end.
func awaitNote(t *testing.T, dir string, p kbroker.Placement) {
	t.Helper()
	wait.Until(t, 10*time.Second, func() error {
		_, err := os.Stat(filepath.Join((&Dir{Path: dir}).home(keyOf(p)), workDir, "note"))
		return err
	})
}

// parent starts a program and says its pid; it reaps it when its standard input ends.
func parent(command []string) {
	cmd := exec.Command(command[0], command[1:]...)
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	fmt.Println(cmd.Process.Pid)
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = cmd.Wait()
	os.Exit(0)
}

// grandchild is a process of which this one is not the parent, and a handle of it;
// reap has its parent reap it.
func grandchild(t *testing.T, command ...string) (id procID, pidfd *os.File, reap func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"builtin", "parent"}, command...)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	said := bufio.NewScanner(stdout)
	pid := 0
	for pid == 0 {
		if !said.Scan() {
			t.Fatalf("a parent said nothing: %v", said.Err())
		}
		_, _ = fmt.Sscan(said.Text(), &pid)
	}
	s, err := readStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err = openPidfd(s.procID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pidfd.Close() })
	return s.procID, pidfd, func() { _ = stdin.Close() }
}

func TestAStatusIsTakenFromAZombieAndOfAReapedProcess(t *testing.T) {
	t.Parallel()
	needExits(t)
	for _, tc := range []struct{ command, zombie, reaped string }{
		{"exit 7", "exit code 7", "exit code 7"},
		{"kill -SEGV $$", "ended by SIGSEGV", "ended by SIGSEGV"},
		{"exit 0", exitText(kbroker.Exit{Unknown: true}), "exit code 0"},
	} {
		id, pidfd, reap := grandchild(t, "/bin/sh", "-c", tc.command)
		if _, err := pidfdStatus(pidfd); !errors.Is(err, errNotReaped) {
			t.Errorf("%s: status of a process that was not reaped: %v", tc.command, err)
		}
		wait.Until(t, 5*time.Second, func() error {
			if s, err := readStat(id.PID); err != nil || !s.ended() {
				return fmt.Errorf("process %d is no zombie: %c, %v", id.PID, s.State, err)
			}
			return nil
		})
		if e := adoptedExit(id, pidfd); exitText(e) != tc.zombie {
			t.Errorf("%s: of a zombie %+v, want %s", tc.command, e, tc.zombie)
		}
		reap()
		wait.Until(t, 5*time.Second, func() error {
			if _, err := readStat(id.PID); err == nil {
				return fmt.Errorf("process %d was not reaped", id.PID)
			}
			return nil
		})
		if e := adoptedExit(id, pidfd); exitText(e) != tc.reaped {
			t.Errorf("%s: reaped %+v, want %s", tc.command, e, tc.reaped)
		}
	}
}

// needExits skips where the kernel does not tell how a reaped process ended.
func needExits(t *testing.T) {
	t.Helper()
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := openPidfd(s.procID)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if status, err := pidfdStatus(pidfd); err != nil || status.ExitStatus() != 0 {
		t.Skipf("this kernel does not tell how a process ended that was reaped (Linux 6.15 does): %v", err)
	}
}
