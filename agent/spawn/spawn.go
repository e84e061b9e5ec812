// Package spawn starts a process inside its bounds: in its control group, with a
// user, limits, a view of the file system and a sandbox of its own, and with
// nothing that was not given to it.
//
// There is no helper program and no second exec. What the kernel keeps for each
// thread (version 1 groups, root and working directory, mount namespace,
// privileges that can be had, Landlock) is set on a thread that is made for one
// start and thrown away; the child is forked from it and inherits. The rest is set
// in the child between fork and exec, or while it is stopped at its first
// instruction:
//
//	thread   enter groups of version 1, own view of the file system, drop the
//	         bounding set, no new privileges, Landlock, a filter of system calls
//	child    cloned into the group of version 2, own session, own user
//	stopped  limits of open files, OOM score; its start is put on record
//	release  it runs
//
// A thread cannot be trusted to come back from any of that: the goroutine that owns
// it ends while it is locked to it, and the runtime ends the thread
// (runtime.LockOSThread).
package spawn

import (
	"os"
	"os/exec"
	"sync"

	"github.com/kbroker/kbroker/agent/cgroup"
)

// Config is what to start, and within which bounds. Path, Env and Dir are required.
type Config struct {
	Path string
	Args []string // without the name of the program
	Env  []string
	Dir  string
	// Stdin is its input, Stdout and Stderr are its outputs; nil: none.
	Stdin, Stdout, Stderr *os.File
	// Terminal: Stdin is a terminal, that of the session of the process.
	Terminal bool
	// Group is where it and whatever it forks is; nil: nowhere.
	Group *cgroup.Group
	// User is who it runs as, without capabilities and without a way to new ones; nil: as
	// this process.
	User *User
	// Files bounds the open files of it and each of its children; 0: as of this
	// process.
	Files uint64
	// View hides what only this process may enter; nil: the file system as it is.
	// Root alone can give one.
	View *View
	// Bound kills it when this process ends, however that comes. Then a thread is kept
	// for it until Forget.
	Bound bool
	// Sandbox is what it may do at most; nil: what its user may.
	Sandbox *Sandbox
}

// User is a user without a name, who is nobody else.
type User struct{ UID, GID uint32 }

// View is the file system as the process sees it: of directories that not everybody
// may enter nothing is there but these paths. Each exists.
type View struct {
	Read  []string // files and directories, read-only
	Write []string // directories
}

// Sandbox is what a process may do at most. What is not named is refused, for it
// and whatever it starts: reading and writing files, connecting to and listening on
// TCP ports, signals to and abstract sockets of others.
type Sandbox struct {
	Read    []string // and execute
	Write   []string
	Connect []int // TCP ports
	Listen  []int
}

// Child is a process that has been started. It waits for its Release.
type Child struct {
	Cmd     *exec.Cmd // started; the caller waits for it
	release chan struct{}
	done    chan struct{}
	forget  chan struct{}
	once    [2]sync.Once
}

// PID of the process.
func (c *Child) PID() int { return c.Cmd.Process.Pid }

// Release lets the process run, if that did not happen before; without it, it never
// does.
func (c *Child) Release() {
	c.once[0].Do(func() { close(c.release) })
	<-c.done
}

// Forget gives up the thread of a Bound process: once it has been waited for, or to
// kill it.
func (c *Child) Forget() { c.once[1].Do(func() { close(c.forget) }) }
