package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kbroker/kbroker/bench/child"
)

// childGrace is how long a child may take to end once its input is closed.
const childGrace = 10 * time.Second

// process is a running child. Not safe for concurrent use.
type process struct {
	name    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *json.Decoder
	address string // of a responder
	killed  atomic.Bool
}

// startChild returns once the child of a side is ready. It ends with ctx.
func startChild(ctx context.Context, s Side, role string, j child.Job) (*process, error) {
	program, err := s.Program, error(nil)
	if program == "" {
		program, err = os.Executable()
	}
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	j.Peer = s.Peer
	c := &process{name: role + " " + s.Name, cmd: exec.CommandContext(ctx, program, role)}
	c.cmd.Env = s.environ(os.Environ())
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is the runner's
	c.cmd.WaitDelay = childGrace
	c.cmd.Cancel = c.kill
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(stdout)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	first, err := c.exchange(j)
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	c.address = first.Address
	return c, nil
}

// say sends a word and returns the child's answer.
func (c *process) say(word string) (child.Report, error) { return c.exchange(word) }

// exchange sends one line and reads one report.
func (c *process) exchange(line any) (child.Report, error) {
	b, err := json.Marshal(line)
	if err != nil {
		return child.Report{}, err
	}
	var r child.Report
	if _, err := c.in.Write(append(b, '\n')); err != nil {
		return r, fmt.Errorf("%s: write: %w", c.name, err)
	}
	if err := c.out.Decode(&r); err != nil {
		return r, fmt.Errorf("%s: read: %w", c.name, err)
	}
	if r.Failure != "" {
		return r, fmt.Errorf("%s: %s", c.name, r.Failure)
	}
	return r, nil
}

func (c *process) kill() error {
	c.killed.Store(true)
	return c.cmd.Process.Kill()
}

// stop ends the child and waits for it; a second call does nothing.
func (c *process) stop() error {
	if c.cmd.ProcessState != nil {
		return nil
	}
	_ = c.in.Close() // the child may have ended already
	kill := time.AfterFunc(childGrace, func() { _ = c.kill() })
	defer kill.Stop()
	if err := c.cmd.Wait(); err != nil && !c.killed.Load() {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}
