package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a hostile program tries, as an instance. Each attempt returns nil if it was not
// refused.

const (
	hostileJob = "hostile"
	hostileEnv = "TEST_E2E_HOSTILE"
	// programEnv is childEnv of an instance, whose spec may not set that.
	programEnv = "TEST_E2E_PROGRAM"
	// usernsJob is what it does within a user namespace of its own.
	usernsJob = "userns"
)

// foe is what a hostile program knows: more than it would be told.
type foe struct {
	Dir     string // of its host
	Agent   int    // a process
	Victim  int    // a process of another instance
	Home    string // the directory of that
	Creds   string // the file of its credential
	Cluster string // of the host's identity
	Port    int    // somebody listens there who is not the broker
	Strict  bool
	PIDs    int
	Files   int
}

// attempt is one, and what became of it.
type hostileAttempt struct {
	Name    string `json:"name"`
	Refused bool   `json:"refused"`
	Said    string `json:"said"`
}

const hostileDone = "all was tried"

// hostile tries everything, prints what became of it, and stays.
func hostile(job string) int {
	var f foe
	if err := json.Unmarshal([]byte(os.Getenv(hostileEnv)), &f); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if job == usernsJob {
		if err := f.withinUserNamespace(); err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	for _, a := range f.attempts() {
		err := a.try()
		said := "done"
		if err != nil {
			said = err.Error()
		}
		line, _ := json.Marshal(hostileAttempt{a.name, err != nil, said})
		fmt.Println(string(line))
	}
	fmt.Println(hostileDone)
	select {}
}

type tried struct {
	name string
	try  func() error
}

func (f foe) attempts() []tried {
	key := filepath.Join(f.Dir, "identity", "host.key")
	proc := func(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }
	all := []tried{
		{"read the host's key", reading(key)},
		{"read the secret of the cluster", reading(filepath.Join(f.Cluster, "accounts.key"))},
		{"read the credential of an admin", reading(filepath.Join(f.Dir, "context.json"))},
		{"list the directory of the agent", listing(filepath.Join(f.Dir, "identity"))},
		{"read what the host is to run", reading(filepath.Join(f.Dir, "view.json"))},
		{"read /etc/shadow", reading("/etc/shadow")},
		{"list the directory of another instance", listing(f.Home)},
		{"read the credential of another instance", reading(f.Creds)},
		{"read the environment of another instance", reading(proc(f.Victim, "environ"))},
		{"read the memory of another instance", reading(proc(f.Victim, "mem"))},
		{"list the files of another instance", listing(proc(f.Victim, "fd"))},
		{"see the file system as another instance", listing(proc(f.Victim, "root/"))},
		{"read the environment of the agent", reading(proc(f.Agent, "environ"))},
		{"read the host's key as the agent sees it", reading(proc(f.Agent, "root") + key)},
		{"list the files of the agent", listing(proc(f.Agent, "fd"))},
		{"write to the memory of the agent", opening(proc(f.Agent, "mem"), os.O_RDWR)},
		{"ask the agent's own socket", f.dialUnix},
		{"signal the agent", func() error { return syscall.Kill(f.Agent, syscall.SIGCONT) }},
		{"signal another instance", func() error { return syscall.Kill(f.Victim, syscall.SIGCONT) }},
		{"signal everybody", signalAll},
		{"trace the agent", tracing(f.Agent)},
		{"trace another instance", tracing(f.Victim)},
		{"read the agent's memory at once", peeking(f.Agent)},
		{"take a file from the agent", stealing(f.Agent)},
		{"mount", func() error { return unix.Mount("tmpfs", os.Getenv("TMPDIR"), "tmpfs", 0, "") }},
		{"unmount", func() error { return unix.Unmount("/proc", unix.MNT_DETACH) }},
		{"change the root", func() error { return unix.Chroot(os.Getenv("TMPDIR")) }},
		{"enter the view of the agent", entering(proc(f.Agent, "ns/mnt"))},
		{"enter the view of the first process", entering("/proc/1/ns/mnt")},
		{"open a raw socket", opensSocket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
		{"open a packet socket", opensSocket(unix.AF_PACKET, unix.SOCK_RAW, 0)},
		{"lift its own limits", f.liftLimits},
		{"leave its control group", f.leaveGroup},
		{"start more processes than it may", f.forkBomb},
		{"open more files than it may", f.openFiles},
		{"raise its limit of files", func() error {
			return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16})
		}},
		{"become root by a call", func() error { return errors.Join(syscall.Setuid(0), syscall.Setgid(0)) }},
		{"become root by su", becomingRoot},
		{"gain a capability", gaining},
		{"be spared when memory is short", func() error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) }},
		{"run before all others", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) }},
		{"make a device", func() error {
			return unix.Mknod(filepath.Join(os.Getenv("TMPDIR"), "mem"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1)))
		}},
		{"open the memory of the machine", opening("/dev/mem", os.O_RDONLY)},
		{"load a module", func() error { return unix.InitModule([]byte{0}, "") }},
		{"set the clock", func() error { return unix.Settimeofday(&unix.Timeval{Sec: time.Now().Unix()}) }},
		{"name the host", func() error { return unix.Sethostname([]byte("mine")) }},
		{"set what the kernel runs after a crash", opening("/proc/sys/kernel/core_pattern", os.O_WRONLY)},
		{"press a key of the system", opening("/proc/sysrq-trigger", os.O_WRONLY)},
		{"change the programs of the system", opening("/usr/bin/mine", os.O_CREATE|os.O_WRONLY)},
		{"change its own program", func() error { return f.changeProgram() }},
		{"put a file where the agent keeps its record", opening(filepath.Join(filepath.Dir(filepath.Dir(os.Getenv("KBROKER_INSTANCE"))), "record.json"), os.O_CREATE|os.O_WRONLY)},
		{"see more in a user namespace of its own", f.userNamespace},
	}
	if f.Strict {
		all = append(all,
			tried{"connect to a port that is not the broker's", func() error { return dialing(f.Port) }},
			tried{"connect to it by MPTCP", func() error { return f.connecting(unix.AF_INET, unix.IPPROTO_MPTCP) }},
			tried{"connect to it by SMC", func() error { return f.connecting(unix.AF_SMC, 0) }},
			tried{"set up io_uring, which makes sockets", ring},
			tried{"listen on a port", func() error { return listens(0) }},
			tried{"write to /tmp", opening(fmt.Sprintf("/tmp/hostile-%d", os.Getpid()), os.O_CREATE|os.O_WRONLY)},
			tried{"read what everybody may read elsewhere", listing("/var")},
			tried{"speak to an abstract socket of others", f.dialAbstract},
		)
	}
	return append(all, tried{"have the agent read what is not its own", f.forge})
}

func reading(path string) func() error { return opening(path, os.O_RDONLY) }

func opening(path string, flags int) func() error {
	return func() error {
		f, err := os.OpenFile(path, flags, 0o600)
		if err == nil {
			f.Close()
		}
		return err
	}
}

func listing(path string) func() error {
	return func() error { _, err := os.ReadDir(path); return err }
}

func opensSocket(domain, kind, protocol int) func() error {
	return func() error { _, err := unix.Socket(domain, kind, protocol); return err }
}

// signalAll signals whomever it may but itself; nobody, that is.
func signalAll() error {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	own := os.Getuid()
	for _, dir := range all {
		var st unix.Stat_t
		pid := 0
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err != nil || unix.Stat(dir, &st) != nil || int(st.Uid) == own {
			continue
		}
		if syscall.Kill(pid, 0) == nil {
			fmt.Println("signalled", pid)
			return nil
		}
	}
	return unix.EPERM
}

func tracing(pid int) func() error {
	return func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := unix.PtraceSeize(pid)
		if err == nil {
			_ = unix.PtraceDetach(pid)
		}
		return err
	}
}

func peeking(pid int) func() error {
	return func() error {
		into := make([]byte, 8)
		_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &into[0], Len: 8}}, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
		if errors.Is(err, unix.EFAULT) { // it might have looked elsewhere
			return nil
		}
		return err
	}
}

func stealing(pid int) func() error {
	return func() error {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		_, err = unix.PidfdGetfd(fd, 3, 0)
		return err
	}
}

func entering(path string) func() error {
	return func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // and never unlocked
			done <- errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(int(f.Fd()), unix.CLONE_NEWNS))
		}()
		return <-done
	}
}

func (f foe) dialUnix() error {
	all, _ := filepath.Glob(filepath.Join(f.Dir, "*.sock"))
	for _, path := range append(all, filepath.Join(f.Dir, "metrics.sock")) {
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return nil
		}
	}
	return unix.ENOENT
}

func dialing(port int) error {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
	if err == nil {
		conn.Close()
	}
	return err
}

func listens(port int) error {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		l.Close()
	}
	return err
}

// connecting is dialing by what may not be TCP to the kernel, and is to the other side.
func (f foe) connecting(family, protocol int) error {
	fd, err := unix.Socket(family, unix.SOCK_STREAM, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Port: f.Port, Addr: [4]byte{127, 0, 0, 1}})
}

func ring() error {
	var params [120]byte // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params[0])), 0)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}

// dialAbstract connects to a socket that the test has, named as its port.
func (f foe) dialAbstract() error {
	conn, err := net.Dial("unix", fmt.Sprintf("@kbroker-hostile-%d", f.Port))
	if err == nil {
		conn.Close()
	}
	return err
}

// ownGroups are the directories of its control groups.
func ownGroups() (dirs []string) {
	raw, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(raw)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) < 3 || parts[2] == "/" {
			continue
		}
		for _, top := range []string{parts[1], "unified", ""} {
			dir := filepath.Join("/sys/fs/cgroup", top, parts[2])
			if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

func (f foe) liftLimits() error {
	n := 0
	for _, dir := range ownGroups() {
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, path := range files {
			name := filepath.Base(path)
			if !strings.HasSuffix(name, ".max") && !strings.HasSuffix(name, "limit_in_bytes") && !strings.HasPrefix(name, "cgroup.") && name != "tasks" && name != "release_agent" {
				continue
			}
			n++
			if opening(path, os.O_WRONLY)() == nil {
				fmt.Println("opened", path)
				return nil
			}
		}
	}
	if n == 0 {
		fmt.Println("it finds no limits of its own")
		return nil
	}
	return fmt.Errorf("%d files: %w", n, unix.EACCES)
}

func (f foe) leaveGroup() error {
	n := 0
	for _, dir := range ownGroups() {
		for ; len(dir) > len("/sys/fs/cgroup"); dir = filepath.Dir(dir) {
			n++
			if os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0) == nil || os.Mkdir(filepath.Join(dir, "mine"), 0o700) == nil {
				fmt.Println("wrote in", dir)
				return nil
			}
		}
	}
	if n == 0 {
		fmt.Println("it finds no groups of its own")
		return nil
	}
	return unix.EACCES
}

// forkBomb is stopped by the limit, by which what it started counts.
func (f foe) forkBomb() error {
	var started []*exec.Cmd
	defer func() {
		for _, c := range started {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	for len(started) < 2*f.PIDs {
		c := exec.Command("/bin/sleep", "60")
		if err := c.Start(); err != nil {
			return fmt.Errorf("after %d: %w", len(started), err)
		}
		started = append(started, c)
	}
	return nil
}

func (f foe) openFiles() error {
	var all []*os.File
	defer func() {
		for _, f := range all {
			f.Close()
		}
	}()
	for len(all) < f.Files {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return fmt.Errorf("after %d: %w", len(all), err)
		}
		all = append(all, null)
	}
	return nil
}

func becomingRoot() error {
	su, err := exec.LookPath("su")
	if err != nil {
		return err
	}
	out, err := exec.Command(su, "-c", "id -u", "root").CombinedOutput()
	if strings.TrimSpace(string(out)) == "0" {
		return nil
	}
	return fmt.Errorf("%q, %v", strings.TrimSpace(string(out)), err)
}

func gaining() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN}}
	return unix.Capset(&head, &data[0])
}

func (f foe) changeProgram() error {
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	if os.Chmod(own, 0o777) == nil || os.Rename(own, own+".old") == nil {
		return nil
	}
	return opening(own, os.O_WRONLY)()
}

// userNamespace has a process try, in a user namespace of its own, where it has all
// capabilities, to take away what hides the agent's files.
func (f foe) userNamespace() error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), programEnv+"="+usernsJob)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS}
	if !f.Strict { // where it may not say who it is; it can do all there without
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s (%w)", strings.TrimSpace(string(out)), err)
	}
	return nil
}

// withinUserNamespace is nil if it has seen the host's key, or may mount what others see.
func (f foe) withinUserNamespace() error {
	said := []string{"a user namespace is there"}
	if err := unix.Mount("tmpfs", os.Getenv("TMPDIR"), "tmpfs", 0, ""); err == nil {
		said = append(said, "it mounts in it")
	} else {
		said = append(said, "it mounts nothing: "+err.Error())
	}
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	lines := strings.Split(string(raw), "\n")
	for _, line := range slices.Backward(lines) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] != "/" {
			_ = unix.Unmount(fields[4], 0)
			_ = unix.Unmount(fields[4], unix.MNT_DETACH)
		}
	}
	key := filepath.Join(f.Dir, "identity", "host.key")
	err := reading(key)()
	if err == nil {
		return nil
	}
	if reading("/etc/shadow")() == nil || syscall.Kill(f.Agent, 0) == nil {
		return nil
	}
	return fmt.Errorf("%s, and sees no more: %w", strings.Join(said, "; "), err)
}

// forge puts links and pipes where the agent reads files of an instance. Whether it reads
// them is for the test to see; the attempt is that they lead anywhere.
func (f foe) forge() error {
	run := filepath.Dir(os.Getenv("KBROKER_INSTANCE"))
	if err := errors.Join(os.Remove(filepath.Join(run, "instance.json")), os.Symlink(filepath.Join(f.Dir, "identity", "host.key"), filepath.Join(run, "instance.json"))); err != nil {
		return fmt.Errorf("forge: %w", err)
	}
	own, _ := filepath.Glob(filepath.Join(run, "*.creds"))
	for _, path := range own {
		if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
			return fmt.Errorf("forge: %w", err)
		}
	}
	for i, to := range []string{f.Creds, filepath.Join(f.Cluster, "host.creds"), filepath.Join(f.Dir, "identity", "user.creds"), filepath.Join(f.Dir, "identity", "host.key"), "/dev/zero"} {
		_ = os.Symlink(to, filepath.Join(run, fmt.Sprintf("0-forged-%d.creds", i)))
	}
	for i := range 5000 {
		_ = unix.Mkfifo(filepath.Join(run, fmt.Sprintf("forged-%d.creds", i)), 0o600)
	}
	_ = os.Remove(filepath.Join(run, "alive"))
	_ = os.Symlink("/dev/zero", filepath.Join(run, "alive"))
	if _, err := os.ReadFile(filepath.Join(run, "instance.json")); err != nil {
		return fmt.Errorf("its own link leads nowhere: %w", err)
	}
	return nil
}
