package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/kbroker/kbroker"
)

const (
	agentLog = "agent.log"
	// agentLogLines and agentLogBytes bound what is shown of the log of an
	// agent that did not get ready.
	agentLogLines = 15
	agentLogBytes = 16 << 10
)

// spawned is an agent that this process has started and that outlives it.
type spawned struct {
	host kbroker.HostID
	pid  int
	log  int64 // where its output begins in the log
}

// spawn starts program as the agent of a host: detached, its output appended to
// a file in the host's directory.
func (l *localCluster) spawn(program string, h localHost) (spawned, error) {
	dir := l.hostDir(h.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return spawned{}, fmt.Errorf("make directory of host %s: %w", h.Name, err)
	}
	out, err := os.OpenFile(filepath.Join(dir, agentLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return spawned{}, fmt.Errorf("open log of host %s: %w", h.Name, err)
	}
	defer out.Close()
	before, err := out.Stat()
	if err != nil {
		return spawned{}, fmt.Errorf("look at log of host %s: %w", h.Name, err)
	}
	cmd := exec.Command(program, l.agentArgs(h)...)
	cmd.Env = agentEnviron(os.Environ())
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := keepFiles(); err != nil {
		return spawned{}, err
	}
	if err := cmd.Start(); err != nil {
		return spawned{}, fmt.Errorf("start agent of host %s: %w", h.Name, err)
	}
	return spawned{host: h.Name, pid: cmd.Process.Pid, log: before.Size()}, nil
}

// agentArgs is the command line of a host's agent: the first founds, the others
// join through the cores.
func (l *localCluster) agentArgs(h localHost) []string {
	args := []string{"agent", "--dir", l.hostDir(h.Name), "--name", string(h.Name)}
	if h.worker() {
		args = append(args, "--role", string(kbroker.RoleWorker))
	} else {
		args = append(args, "--advertise", loopback,
			"--client-port", strconv.Itoa(h.ClientPort), "--route-port", strconv.Itoa(h.RoutePort))
	}
	if h.Name == l.Hosts[0].Name {
		return append(args, "--found")
	}
	var others []string
	for _, o := range l.cores() {
		if o.Name != h.Name {
			others = append(others, o.client())
		}
	}
	return append(args, "--join", strings.Join(others, ","), "--token-file", filepath.Join(l.hostDir(h.Name), tokenFile))
}

// agentEnviron is the environment without what would configure the agent or
// make it somebody else: its flags say everything.
func agentEnviron(environ []string) []string {
	var kept []string
	for _, e := range environ {
		if !strings.HasPrefix(e, "KBROKER_") {
			kept = append(kept, e)
		}
	}
	return kept
}

// ended reports how an agent ended, nil while it runs.
func (s spawned) ended() error {
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(s.pid, &status, syscall.WNOHANG, nil)
	switch {
	case err != nil && !errors.Is(err, syscall.EINTR):
		return fmt.Errorf("agent of host %s: %w", s.host, err)
	case pid != s.pid:
		return nil
	case status.Signaled():
		return kbroker.Errorf(kbroker.Failed, "the agent of host %s was ended by %v", s.host, status.Signal())
	}
	return kbroker.Errorf(kbroker.Failed, "the agent of host %s ended with %d", s.host, status.ExitStatus())
}

// withLog is failed with the last lines of the log of a host's agent, not those
// before an offset.
func (l *localCluster) withLog(h kbroker.HostID, start int64, failed error) error {
	lines, err := logEnd(filepath.Join(l.hostDir(h), agentLog), start)
	if err != nil {
		lines = []string{err.Error()}
	}
	return &outputError{error: failed, title: fmt.Sprintf("last lines of the log of %s:", h), lines: lines}
}

// logEnd is the end of a log, from an offset on.
func logEnd(path string, start int64) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(start, info.Size()-agentLogBytes)
	b, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return lines[max(0, len(lines)-agentLogLines):], nil
}
