package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// socket is one TCP socket of a process of the cluster.
type socket struct {
	pid           int
	local, remote uint16 // ports; remote is 0 of one that listens
	state         string // as the kernel writes it
}

const (
	established = "01"
	listening   = "0A"
)

// sockets are those of the given processes, in this network namespace.
func (c *cluster) sockets(processes map[int]string) []socket {
	pids := map[string]int{} // by inode
	for pid := range processes {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "socket:[") {
				pids[strings.Trim(target[len("socket:"):], "[]")] = pid
			}
		}
	}
	var raw []byte
	for _, of := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(of)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			c.t.Fatalf("read the kernel's sockets: %v", err)
		}
		raw = append(raw, b...)
	}
	port := func(address string) uint16 {
		_, hex, _ := strings.Cut(address, ":")
		n, _ := strconv.ParseUint(hex, 16, 16)
		return uint16(n)
	}
	var out []socket
	for line := range strings.Lines(string(raw)) {
		const local, remote, state, inode = 1, 2, 3, 9 // proc_pid_net(5)
		f := strings.Fields(line)
		if len(f) <= inode {
			continue
		}
		if pid, ok := pids[f[inode]]; ok {
			out = append(out, socket{pid, port(f[local]), port(f[remote]), f[state]})
		}
	}
	return out
}

// ports are the addresses on which the cluster's processes listen now.
func (c *cluster) ports() []string {
	var out []string
	for _, s := range c.sockets(c.processes("")) {
		if s.state == listening {
			out = append(out, fmt.Sprintf("127.0.0.1:%d", s.local))
		}
	}
	return out
}

// workersOn counts the worker agents that are connected to each core.
func (c *cluster) workersOn() map[string]int {
	core := map[uint16]string{}
	for _, h := range c.hostRows() {
		if addr, err := netip.ParseAddrPort(h.Client); err == nil {
			core[addr.Port()] = string(h.Name)
		}
	}
	workers := c.processes("")
	for pid, cmd := range workers {
		if !strings.Contains(cmd, "--role worker") {
			delete(workers, pid)
		}
	}
	out := map[string]int{}
	for _, s := range c.sockets(workers) {
		if name, ok := core[s.remote]; ok && s.state == established {
			out[name]++
		}
	}
	return out
}
