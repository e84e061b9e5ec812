package spawn

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Start starts a process and holds it at its first instruction. After an error
// nothing runs.
func Start(cfg Config) (*Child, error) {
	type outcome struct {
		child *Child
		err   error
	}
	started := make(chan outcome, 1)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread stands for the whole process in /proc: it is kept
			// here while another one is used.
			done := make(chan struct{})
			go func() { defer close(done); run() }()
			<-done
			runtime.UnlockOSThread()
			return
		}
		child, err := start(cfg)
		started <- outcome{child, err}
		if err == nil {
			<-child.release
			let(child.PID())
			close(child.done)
			if cfg.Bound {
				<-child.forget
			}
		}
		// Locked to the end: the thread ends here.
	}
	go run()
	o := <-started
	return o.child, o.err
}

// untraced: nobody may be traced here.
var untraced atomic.Bool

// Holds reports whether a process does not run before its Release, nor if this process
// ends before that (but for the moment between its fork and its exec, in which nobody
// has stopped it yet); as far as is known: where nobody may be traced, the first
// start finds that out.
func Holds() bool {
	if b, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && strings.TrimSpace(string(b)) == "3" {
		return false
	}
	return !untraced.Load()
}

// start runs on the thread that is thrown away.
func start(cfg Config) (*Child, error) {
	// Go opens files close-on-exec; who started this process may not have.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keep files from the process: %w", err)
	}
	// In the session of this process it could send SIGCONT to it, and to others there,
	// whatever user it is (kill(2)).
	attr := &syscall.SysProcAttr{Setsid: true, Setctty: cfg.Terminal, Ptrace: true}
	if cfg.Bound {
		attr.Pdeathsig = syscall.SIGKILL // of this thread
	}
	if cfg.Group != nil {
		if err := cfg.Group.EnterThread(); err != nil {
			return nil, err
		}
		dir, err := cfg.Group.Open()
		if err != nil {
			return nil, fmt.Errorf("open the cgroup: %w", err)
		}
		if dir != nil {
			defer dir.Close()
			attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
		}
	}
	if cfg.View != nil {
		if err := cfg.View.enter(); err != nil {
			return nil, err
		}
	}
	if cfg.User != nil {
		if err := dropCapabilities(); err != nil {
			return nil, err
		}
		attr.Credential = &syscall.Credential{Uid: cfg.User.UID, Gid: cfg.User.GID}
	}
	if cfg.User != nil || cfg.Sandbox != nil {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("refuse new privileges: %w", err)
		}
	}
	if cfg.Sandbox != nil {
		if err := cfg.Sandbox.enter(); err != nil {
			return nil, err
		}
	}
	cmd := &exec.Cmd{
		Path: cfg.Path, Args: append([]string{cfg.Path}, cfg.Args...), Env: cfg.Env, Dir: cfg.Dir,
		SysProcAttr: attr,
	}
	if cfg.Stdin != nil {
		cmd.Stdin = cfg.Stdin
	}
	if cfg.Stdout != nil {
		cmd.Stdout = cfg.Stdout
	}
	if cfg.Stderr != nil {
		cmd.Stderr = cfg.Stderr
	}
	err := cmd.Start()
	if errors.Is(err, unix.EPERM) && attr.Ptrace {
		untraced.Store(true)
		// Nobody is traced here (yama): it is limited as soon as it runs.
		attr.Ptrace = false
		cmd = &exec.Cmd{Path: cmd.Path, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir, SysProcAttr: attr, Stdin: cmd.Stdin, Stdout: cmd.Stdout, Stderr: cmd.Stderr}
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	child := &Child{Cmd: cmd, release: make(chan struct{}), done: make(chan struct{}), forget: make(chan struct{})}
	if err := hold(cmd.Process.Pid, cfg, attr.Ptrace); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return child, nil
}

// hold waits until the child has stopped before its first instruction, and limits
// it there. A child that was killed meanwhile is no error: its end says so.
func hold(pid int, cfg Config, stops bool) error {
	var info unix.Siginfo
	if err := retry(func() error {
		if !stops {
			return nil
		}
		return unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
	}); err != nil {
		return fmt.Errorf("wait for the start of %d: %w", pid, err)
	}
	if stops {
		if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_EXITKILL); err != nil && err != unix.ESRCH {
			return fmt.Errorf("hold %d: %w", pid, err)
		}
	}
	if cfg.Files > 0 {
		if err := limitFiles(pid, cfg); err != nil && err != unix.ESRCH {
			return fmt.Errorf("limit the open files of %d: %w", pid, err)
		}
	}
	return nil
}

// limitFiles works without CAP_SYS_RESOURCE too, which containers do not have: who has
// the real ids of a process may limit it (prlimit(2)). Those of the thread alone change,
// and not what it may do.
func limitFiles(pid int, cfg Config) error {
	limit := unix.Rlimit{Cur: cfg.Files, Max: cfg.Files}
	err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil)
	if err != unix.EPERM || cfg.User == nil {
		return err
	}
	const same = ^uintptr(0)
	if _, _, errno := unix.Syscall(unix.SYS_SETRESGID, uintptr(cfg.User.GID), same, same); errno != 0 {
		return errno
	}
	if _, _, errno := unix.Syscall(unix.SYS_SETRESUID, uintptr(cfg.User.UID), same, same); errno != 0 {
		return errno
	}
	err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil)
	// At once, and before the child runs: its user could signal this whole process
	// through a thread that has its id.
	_, _, user := unix.Syscall(unix.SYS_SETRESUID, 0, same, same)
	_, _, group := unix.Syscall(unix.SYS_SETRESGID, 0, same, same)
	if user != 0 || group != 0 {
		return errors.Join(err, fmt.Errorf("take the ids back: %w, %w", user, group))
	}
	return err
}

// let lets the child run: ESRCH says that it was killed.
func let(pid int) {
	_ = unix.PtraceDetach(pid)
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// Isolates is nil if this process can give others a user and a view of their own,
// and says why not otherwise.
func Isolates() error {
	if unix.Geteuid() != 0 {
		return errors.New("it needs root")
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, c := range []int{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_SYS_ADMIN} {
		if data[0].Effective&(1<<c) == 0 {
			return fmt.Errorf("capability %d is missing (capabilities(7))", c)
		}
	}
	tried := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is thrown away
		tried <- (&View{}).enter()
	}()
	return <-tried
}

// dropCapabilities takes from the thread what no program may gain that it starts.
// The user takes the rest: a change from root to another one clears what is
// permitted and effective (capabilities(7)).
func dropCapabilities() error {
	for c := range uintptr(64) {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL {
			break // the kernel has no more
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != unix.EINVAL {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("drop inheritable capabilities: %w", err)
	}
	return nil
}

// enter gives the thread the view.
func (v *View) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("own view of the file system: %w", err)
	}
	// What the host unmounts is unmounted here; not the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("own view of the file system: %w", err)
	}
	for _, c := range v.covers(Reachable) {
		if err := c.mount(); err != nil {
			return fmt.Errorf("own view of %s: %w", c.dir, err)
		}
	}
	return nil
}

// mount replaces the directory.
func (c *covered) mount() error {
	type held struct {
		shown
		fd    int
		isDir bool
	}
	var all []held
	defer func() {
		for _, h := range all {
			unix.Close(h.fd)
		}
	}()
	for _, s := range c.paths {
		fd, err := unix.Open(s.path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", s.path, err)
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		all = append(all, held{s, fd, st.Mode&unix.S_IFMT == unix.S_IFDIR})
		if err != nil {
			return fmt.Errorf("look at %s: %w", s.path, err)
		}
	}
	if err := unix.Mount("tmpfs", c.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m,nr_inodes=1k"); err != nil {
		return err
	}
	for _, h := range all {
		if err := os.MkdirAll(filepath.Dir(h.path), 0o755); err != nil {
			return err
		}
		if h.isDir {
			if err := os.MkdirAll(h.path, 0o755); err != nil {
				return err
			}
		} else if err := unix.Mknod(h.path, unix.S_IFREG|0o644, 0); err != nil {
			// Not by opening it: another start that forks meanwhile would keep it open for
			// writing, and this from becoming read-only.
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", h.fd), h.path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("show %s: %w", h.path, err)
		}
		if !h.write {
			if err := unix.Mount("", h.path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
				return fmt.Errorf("show %s read-only: %w", h.path, err)
			}
		}
	}
	return unix.Mount("", c.dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// Landlock, as of its documentation (userspace-api/landlock.rst).
const (
	accessFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	accessRead = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	// accessAll is everything of the ABI that network rules came with.
	accessAll = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_TRUNCATE

	// abiNetwork has rules for TCP ports, abiDevices for ioctl, abiScopes for signals and
	// abstract sockets.
	abiNetwork, abiDevices, abiScopes = 4, 5, 6

	ruleNetPort = 2 // LANDLOCK_RULE_NET_PORT
)

// landlock is the version of Landlock that the kernel has; 0: none.
func landlock() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// Sandboxes reports whether the kernel can hold a process to all of a Sandbox.
func Sandboxes() bool { return landlock() >= abiScopes && filters() }

// enter holds the thread to the sandbox.
func (s *Sandbox) enter() error {
	attr := unix.LandlockRulesetAttr{
		Handled_access_fs:  accessAll | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV,
		Handled_access_net: unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP,
		Scoped:             unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL,
	}
	rules, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("make a sandbox: %w", errno)
	}
	defer unix.Close(int(rules))
	for _, p := range s.Read {
		if err := allowPath(int(rules), p, accessRead); err != nil {
			return err
		}
	}
	for _, p := range s.Write {
		if err := allowPath(int(rules), p, accessAll); err != nil {
			return err
		}
	}
	ports := map[int]uint64{}
	for _, p := range s.Connect {
		ports[p] |= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	for _, p := range s.Listen {
		ports[p] |= unix.LANDLOCK_ACCESS_NET_BIND_TCP
	}
	for port, access := range ports {
		rule := struct{ access, port uint64 }{access, uint64(port)} // struct landlock_net_port_attr
		if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, rules, ruleNetPort, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
			return fmt.Errorf("allow port %d in a sandbox: %w", port, errno)
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, rules, 0, 0); errno != 0 {
		return fmt.Errorf("enter a sandbox: %w", errno)
	}
	return enterFilter()
}

// allowPath allows a path and what is below it; one that is not there is no loss.
func allowPath(rules int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("allow %s in a sandbox: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("allow %s in a sandbox: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= accessFile // the others are of directories alone
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("allow %s in a sandbox: %w", path, errno)
	}
	return nil
}
