//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Namespace is one participant of the lab's network: a host, or the operator.
type Namespace struct {
	Name   string     // h1; the operator's is op
	IP     netip.Addr // its only address, apart from loopback
	Output string     // file with the output of what Start started; not on a host's disk

	lab    *Lab
	netns  string // name of the namespace
	port   string // name of its port of the switch
	number byte   // of its addresses

	mu      sync.Mutex
	started []*Process
}

// Command is exec.CommandContext in this namespace. The process dies with the
// test process at the latest.
func (n *Namespace) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + filepath.Join(netnsDir, n.netns), "--", program}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Process is one that Start started.
type Process struct {
	PID  int
	done chan struct{} // closed when it has ended
}

// Start starts a process in the background, its output appended to Output. It
// ends by itself, by a fault, or with the lab.
func (n *Namespace) Start(program string, args ...string) *Process {
	n.lab.t.Helper()
	out, err := os.OpenFile(n.Output, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	n.lab.must(err)
	defer out.Close()
	cmd := n.Command(context.Background(), program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		n.lab.t.Fatalf("start %s on %s: %v", program, n.Name, err)
	}
	p := &Process{PID: cmd.Process.Pid, done: make(chan struct{})}
	go func() { // reap waits for it
		defer close(p.done)
		_ = cmd.Wait() // how it ended is in Output
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.started = append(n.started, p)
	return p
}

// reap waits for the end of everything that Start started: it was killed.
func (n *Namespace) reap() {
	n.mu.Lock()
	started := n.started
	n.started = nil
	n.mu.Unlock()
	for _, p := range started {
		<-p.done
	}
}

// Processes are the live processes of the namespace with their command lines.
func (n *Namespace) Processes() map[int]string {
	n.lab.t.Helper()
	pids, err := pidsIn(n.netns)
	n.lab.must(err)
	out := map[int]string{}
	for _, pid := range pids {
		// One that ends in this moment has none.
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		out[pid] = string(bytes.ReplaceAll(bytes.TrimRight(cmdline, "\x00"), []byte{0}, []byte{' '}))
	}
	return out
}

// Signal sends a signal to all processes and returns to how many.
func (n *Namespace) Signal(s syscall.Signal) int {
	n.lab.t.Helper()
	pids, err := pidsIn(n.netns)
	n.lab.must(err)
	sent := 0
	for _, pid := range pids {
		if syscall.Kill(pid, s) == nil {
			sent++
		}
	}
	return sent
}

// pidsIn are the live processes in a network namespace. A zombie is in none.
func pidsIn(netns string) ([]int, error) {
	var want syscall.Stat_t
	if err := syscall.Stat(filepath.Join(netnsDir, netns), &want); err != nil {
		return nil, fmt.Errorf("namespace %s: %w", netns, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var have syscall.Stat_t
		if syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &have) == nil && have.Ino == want.Ino && have.Dev == want.Dev {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// endAll kills the processes in a network namespace until there is none, also
// those that are being forked meanwhile. No namespace is no process.
func endAll(netns string) error {
	return within(endTime, func() error {
		pids, err := pidsIn(netns)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
		if len(pids) > 0 {
			return fmt.Errorf("processes %v of %s: %w", pids, netns, errStill)
		}
		return nil
	})
}
