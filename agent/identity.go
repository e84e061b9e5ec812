package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// NextSuffix is added to the name of a program that is to replace one, until it
// has proved to work.
const NextSuffix = ".next"

// EnvHostDir names the data directory in the environment of what is ended with its
// host's applications; see Sweep.
const EnvHostDir = envHostDir

// Executable is the path under which an agent's program is found for good:
// that of this process, also while it is a program that is still on trial.
func Executable() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the own executable: %w", err)
	}
	return strings.TrimSuffix(path, NextSuffix), nil
}

// Identity is a process of this machine, now and for ever: a pid alone is
// reused, and so is its start time after a boot. It stays the same when the
// process executes another program.
type Identity struct {
	procID
	BootID string `json:"boot_id"`
}

// Identify tells who has a pid now.
func Identify(pid int) (Identity, error) {
	boot, err := bootID()
	if err != nil {
		return Identity{}, err
	}
	s, err := readStat(pid)
	if err != nil {
		return Identity{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return Identity{procID: s.procID, BootID: boot}, nil
}

// Alive reports whether the process is there; one that only waits to be reaped
// is not.
func (i Identity) Alive() bool {
	boot, err := bootID()
	if err != nil || i.PID <= 0 || boot != i.BootID {
		return false
	}
	s, err := readStat(i.PID)
	return err == nil && s.Start == i.Start && !s.ended()
}

// ThisBoot reports whether it is a process of this boot of the machine.
func (i Identity) ThisBoot() bool {
	boot, err := bootID()
	return err == nil && boot == i.BootID
}

// Signal signals the process, and never another one; that it is not there any
// more is no error.
func (i Identity) Signal(sig unix.Signal) error {
	if !i.Alive() {
		return nil
	}
	if err := signalProcess(i.procID, sig); err != nil && !errors.Is(err, errGone) {
		return err
	}
	return nil
}
