package agent

import (
	"os/exec"
	"runtime"
	"syscall"
)

// boundToThread has a program end with this agent, if that is killed: the kernel
// sees to it for the thread that starts it, which the caller keeps until leave.
func boundToThread(cmd *exec.Cmd) (leave func()) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}
