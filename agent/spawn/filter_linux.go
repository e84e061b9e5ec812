package spawn

import (
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock decides on TCP alone: what speaks to TCP servers by another name (MPTCP, SMC),
// or makes a socket without the system call (io_uring), would pass it. So in a sandbox there
// are sockets of these families, and of the internet's of these protocols; a program that
// asks for others is told that the kernel has none.
var (
	socketFamilies  = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}
	socketProtocols = []uint32{0, unix.IPPROTO_TCP, unix.IPPROTO_UDP} // ICMP needs a socket of its own kind
)

// architectures are those of system calls, as of seccomp(2).
var architectures = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// Offsets in struct seccomp_data; of an argument its lower half, which is all that the
// kernel reads of these.
const (
	atNumber, atArch     = 0, 4
	atFamily, atProtocol = 16, 32
	x32                  = 0x40000000 // of a call of another ABI of amd64
)

// filter is the program, for the architecture.
func filter(arch uint32) []unix.SockFilter {
	const load, equal, atLeast, end = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	refuse := func(errno unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: end, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	allow := unix.SockFilter{Code: end, K: unix.SECCOMP_RET_ALLOW}
	program := []unix.SockFilter{
		{Code: load, K: atArch},
		{Code: equal, K: arch, Jt: 1},
		refuse(unix.ENOSYS),
		{Code: load, K: atNumber},
		{Code: atLeast, K: x32, Jf: 1},
		refuse(unix.ENOSYS),
		{Code: equal, K: unix.SYS_IO_URING_SETUP, Jf: 1},
		refuse(unix.ENOSYS),
		{Code: equal, K: unix.SYS_SOCKET, Jt: 1},
		allow,
		{Code: load, K: atFamily},
	}
	oneOf := func(values []uint32, otherwise unix.SockFilter) {
		for i, v := range values {
			program = append(program, unix.SockFilter{Code: equal, K: v, Jt: uint8(len(values) - i)}) // behind otherwise
		}
		program = append(program, otherwise)
	}
	oneOf(socketFamilies, refuse(unix.EAFNOSUPPORT))
	program = append(program,
		unix.SockFilter{Code: equal, K: unix.AF_INET, Jt: 2},
		unix.SockFilter{Code: equal, K: unix.AF_INET6, Jt: 1},
		allow,
		unix.SockFilter{Code: load, K: atProtocol},
	)
	oneOf(socketProtocols, refuse(unix.EPROTONOSUPPORT))
	return append(program, allow)
}

// enterFilter holds the thread, which can gain no privileges any more, to the filter.
func enterFilter() error {
	arch, ok := architectures[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("system calls of %s cannot be filtered", runtime.GOARCH)
	}
	program := filter(arch)
	if len(program) > math.MaxUint16 {
		panic("the filter is too long")
	}
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&f))); errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}

// filters reports whether system calls can be filtered here: the kernel knows the action.
func filters() bool {
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return errno == 0 && architectures[runtime.GOARCH] != 0
}
