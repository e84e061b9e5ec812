package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// guardName is the hidden command that a guard is.
const guardName = "guard"

// guard leads the process group of a program that `run` starts, and ends all of
// it when this process is gone, however it went: kill -9 too. It sees that by
// its input, whose other end nobody else has; and removes the files of the instance,
// with their folder, that this process cannot remove any more. As the group's leader it
// keeps the group's number from being given to others.
//
// A death signal on the program (PR_SET_PDEATHSIG) would reach it alone, not
// what it has started: with `go run .` that is the program itself.
type guard struct {
	cmd  *exec.Cmd
	held io.Closer
}

// newGuard starts a guard of the files of an instance, in one folder, that is ready
// for the first signal to its group. The caller ends it.
func newGuard(files []string) (*guard, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.Command(program, append([]string{"builtin", guardName}, files...)...)
	cmd.Args[0] = "kbroker"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	held, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	g := &guard{cmd: cmd, held: held}
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		g.end()
		return nil, fmt.Errorf("start the guard: it ended: %w", err)
	}
	return g, nil
}

// group is the number of the guarded process group.
func (g *guard) group() int { return g.cmd.Process.Pid }

// signal sends s to all of the group; the guard itself heeds SIGKILL alone.
func (g *guard) signal(s syscall.Signal) { _ = syscall.Kill(-g.group(), s) } // what has ended needs no signal

// end kills what is left of the group, the guard with it.
func (g *guard) end() {
	g.signal(syscall.SIGKILL)
	_ = g.cmd.Wait() // it was killed
	_ = g.held.Close()
}

// guardCommand is the guard.
func (c *cli) guardCommand() *cobra.Command {
	return &cobra.Command{
		Use:               guardName + " FILE...",
		Short:             "Remove files, with their folder, and end this process group when the input ends",
		Example:           "  kbroker builtin guard /tmp/kbroker-run-1/instance.json",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			if syscall.Getpgrp() != os.Getpid() {
				return errors.New("a guard leads a process group of its own")
			}
			signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			if _, err := c.out.Write([]byte{'.'}); err != nil {
				return fmt.Errorf("say ready: %w", err)
			}
			_, _ = io.Copy(io.Discard, c.in) // an error is an end, too
			var removed error
			for _, file := range args {
				removed = errors.Join(removed, os.Remove(file))
			}
			if removed == nil {
				removed = os.Remove(filepath.Dir(args[0])) // not with what else is in it
			}
			return errors.Join(removed, syscall.Kill(0, syscall.SIGKILL))
		},
	}
}
