//go:build linux

package netlab

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"
)

const (
	// diskBytes is the size of a host's disk; a sparse file.
	diskBytes = 512 << 20
	// ext4Shutdown is EXT4_IOC_SHUTDOWN, noLogFlush its flag not to write what is
	// in the journal's memory (fs/ext4/ext4.h).
	ext4Shutdown = 0x8004587d
	noLogFlush   = 2
)

// Host is one of the lab's hosts: a namespace with a disk.
type Host struct {
	*Namespace
	Dir string // where its disk is mounted

	image string
	on    bool
}

// format makes the empty disk.
func (h *Host) format() error {
	f, err := os.OpenFile(h.image, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(diskBytes); err != nil {
		return err
	}
	if err := os.Mkdir(h.Dir, 0o700); err != nil {
		return err
	}
	return run("", "mkfs.ext4", "-q", "-F", "-m", "0", h.image)
}

// mount mounts the disk; the loop device goes with the mount.
func (h *Host) mount() error { return run("", "mount", "-t", "ext4", "-o", "loop", h.image, h.Dir) }

// losePower makes the mounted disk stop as it is: what was not synced is gone,
// every further access is an error.
func (h *Host) losePower() error {
	f, err := os.Open(h.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flag := uint32(noLogFlush)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), ext4Shutdown, uintptr(unsafe.Pointer(&flag)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return fmt.Errorf("shut the file system of %s down: %w", h.Name, errno)
	}
	return nil
}

// PowerOff ends the host without a sign to anybody.
func (h *Host) PowerOff() {
	h.lab.t.Helper()
	h.lab.PowerOff(h)
}

// PowerOff ends hosts at once (none: all), without a sign to anybody: each step
// is done for all of them before the next.
func (l *Lab) PowerOff(hosts ...*Host) {
	l.t.Helper()
	if len(hosts) == 0 {
		hosts = slices.Clone(l.hosts)
	}
	var ports, names []string
	for _, h := range hosts {
		if !h.on {
			l.t.Fatalf("netlab: %s is off", h.Name)
		}
		ports, names = append(ports, h.port), append(names, h.Name)
	}
	l.detach(ports...)
	for _, h := range hosts {
		l.must(h.losePower())
	}
	l.log("power off: %s", strings.Join(names, ", "))
	for _, h := range hosts {
		l.must(endAll(h.netns))
		h.reap()
		l.must(unmount(h.Dir))
		l.plugOut(h.Namespace)
		h.on = false
	}
}

// PowerOn brings a host back after PowerOff, with what its disk has. The caller
// starts its processes.
func (h *Host) PowerOn() {
	h.lab.t.Helper()
	if h.on {
		h.lab.t.Fatalf("netlab: %s is on", h.Name)
	}
	h.lab.must(h.mount())
	h.lab.plugIn(h.Namespace)
	h.on = true
	h.lab.log("power on: %s", h.Name)
}

// On reports whether the host has power.
func (h *Host) On() bool { return h.on }

// Pause stops all processes of the host, also those that are being forked
// meanwhile.
func (h *Host) Pause() {
	h.lab.t.Helper()
	h.lab.must(within(endTime, func() error {
		h.Signal(syscall.SIGSTOP)
		for pid, cmd := range h.Processes() {
			if state := stateOf(pid); state != 'T' && state != 0 {
				return fmt.Errorf("process %d (%s) is in state %c", pid, cmd, state)
			}
		}
		return nil
	}))
	h.lab.log("%s is paused", h.Name)
}

// Resume ends Pause.
func (h *Host) Resume() {
	h.lab.t.Helper()
	n := h.Signal(syscall.SIGCONT)
	h.lab.log("%s goes on: %d processes", h.Name, n)
}

// Kill kills all processes of the host; it stays on.
func (h *Host) Kill() {
	h.lab.t.Helper()
	h.lab.must(endAll(h.netns))
	h.reap()
	h.lab.log("all processes of %s are killed", h.Name)
}

// stateOf is the state of a process as in /proc, 0 when it has ended.
func stateOf(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	after := strings.TrimSpace(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if after == "" || after[0] == 'Z' || after[0] == 'X' {
		return 0
	}
	return after[0]
}
