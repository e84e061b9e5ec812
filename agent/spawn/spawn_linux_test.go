package spawn

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker/agent/cgroup"
	"github.com/kbroker/kbroker/internal/wait"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
}

// output runs a shell script within the bounds of cfg and returns what it prints.
func output(t *testing.T, cfg Config, script string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cfg.Stdout, cfg.Stderr = w, w
	if cfg.Path == "" {
		cfg.Path = "/bin/sh"
	}
	if script != "" {
		cfg.Args = []string{"-c", script}
	}
	cfg.Env = append(cfg.Env, "PATH=/usr/bin:/bin:/usr/sbin:/sbin")
	if cfg.Dir == "" {
		cfg.Dir = "/"
	}
	c, err := Start(cfg)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Cmd.Wait()
	return string(out)
}

func TestAChildWaitsForItsRelease(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := Start(Config{Path: "/bin/sh", Args: []string{"-c", "echo runs"}, Dir: "/", Stdout: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.PID()))
	if err != nil || !bytes.Contains(stat, []byte(" t ")) {
		t.Errorf("before its release the process is %s (%v), want stopped", stat, err)
	}
	c.Release()
	if out, err := io.ReadAll(r); err != nil || string(out) != "runs\n" {
		t.Errorf("it wrote %q (%v)", out, err)
	}
	if err := c.Cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// Who is killed while it holds a process takes that with it: nothing runs that nobody
// has put on record.
func TestAHeldProcessEndsWithWhoHoldsIt(t *testing.T) {
	const holds = "KBROKER_TEST_HOLDS"
	if os.Getenv(holds) != "" {
		c, err := Start(Config{Path: "/bin/sleep", Args: []string{"1000"}, Dir: "/"})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("held %d\n", c.PID())
		select {}
	}
	if !Holds() {
		t.Skip("SKIPPED: nobody may be traced here")
	}
	holder := exec.Command(os.Args[0], "-test.run", "^TestAHeldProcessEndsWithWhoHoldsIt$")
	holder.Env = append(os.Environ(), holds+"=1")
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "held %d\n", &pid); err != nil || pid == 0 {
		t.Fatal(pid, err)
	}
	_ = holder.Process.Kill()
	_ = holder.Wait()
	wait.Until(t, 5*time.Second, func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(b, []byte(") Z ")) {
			return nil
		}
		return fmt.Errorf("it is there: %s", b)
	})
}

// The ids that a thread takes to limit files are given back before the child runs: with
// them its user could signal this process.
func TestNoThreadKeepsTheUserOfItsChild(t *testing.T) {
	needRoot(t)
	c, err := Start(Config{Path: "/bin/sleep", Args: []string{"1000"}, Dir: "/", Files: 64, User: &User{1_900_000_126, 1_900_000_126}, Bound: true})
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
	defer func() { c.Forget(); _ = c.Cmd.Wait() }()
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(threads) == 0 {
		t.Fatal(threads, err)
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err == nil && !(bytes.Contains(b, []byte("Uid:\t0\t0\t0\t0\n")) && bytes.Contains(b, []byte("Gid:\t0\t0\t0\t0\n"))) {
			t.Errorf("%s is of another user:\n%s", path, b)
		}
	}
}

func TestAUserOfItsOwnHasNothing(t *testing.T) {
	needRoot(t)
	cfg := Config{User: &User{1_900_000_123, 1_900_000_123}}
	out := output(t, cfg, "id -u; id -G; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; cat /etc/shadow; kill -0 "+fmt.Sprint(os.Getpid()))
	for _, want := range []string{
		"1900000123\n1900000123\n", "CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "/etc/shadow: Permission denied", "ot permitted",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestNoFilesButThreeAndTheirLimit(t *testing.T) {
	var held []*os.File
	for range 50 {
		f, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, f)
	}
	defer func() {
		for _, f := range held {
			f.Close()
		}
	}()
	out := output(t, Config{Files: 64}, "ls /proc/self/fd | wc -l; ulimit -n; ulimit -Hn")
	if out != "4\n64\n64\n" { // ls itself opens the directory
		t.Errorf("files and their limits: %q, want 4, 64 and 64", out)
	}
}

// Also where root lacks CAP_SYS_RESOURCE, as in a container.
func TestTheFilesOfAnotherUserAreLimited(t *testing.T) {
	needRoot(t)
	out := output(t, Config{Files: 64, User: &User{1_900_000_125, 1_900_000_126}}, "ulimit -n; ulimit -Hn; id -u; id -g")
	if want := "64\n64\n1900000125\n1900000126\n"; out != want {
		t.Errorf("limits and user %q, want %q", out, want)
	}
}

// Under a directory that only root may enter a process of another user finds its
// own files at their paths, and nothing else.
func TestAViewUnderADirectoryThatOnlyRootMayEnter(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	if err := os.Chmod(top, 0o700); err != nil {
		t.Fatal(err)
	}
	user := User{1_900_000_124, 1_900_000_124}
	dir := filepath.Join(top, "data", "one")
	for _, d := range []string{"data/one/work", "data/other", "data/artifacts"} {
		if err := os.MkdirAll(filepath.Join(top, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	work, program := filepath.Join(dir, "work"), filepath.Join(top, "data", "artifacts", "program")
	if err := os.Chown(work, int(user.UID), int(user.GID)); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(top, "data", "other", "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\npwd; echo written > file; cat file; touch $0 || echo refused; ls " + top + " " + top + "/data; cat " + secret + "; touch " + top + "/x; cd .. && ls\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	out := output(t, Config{
		Path: program, User: &user, Dir: work,
		View: &View{Read: []string{program}, Write: []string{work}},
	}, "")
	for _, want := range []string{work + "\nwritten\n", "refused", top + ":\ndata\n", "/data:\nartifacts\none\n", "secret: No such file", "/x': Read-only"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if b, err := os.ReadFile(filepath.Join(work, "file")); err != nil || string(b) != "written\n" {
		t.Errorf("what it wrote is %q (%v) outside", b, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), top) {
		t.Errorf("the view is seen outside: %s (%v)", mounts, err)
	}
}

func TestASandboxRefusesWhatIsNotNamed(t *testing.T) {
	if !Sandboxes() {
		t.Skip("SKIPPED: no Landlock here")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "read"), []byte("to read\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	write := t.TempDir()
	var ports []int
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	cfg := Config{Path: "/bin/bash", Sandbox: &Sandbox{
		Read: []string{"/usr", "/bin", "/lib", "/lib64", filepath.Join(dir, "read")}, Write: []string{write, "/dev/null"}, Connect: ports[:1],
	}}
	out := output(t, cfg, fmt.Sprintf(`cat %[1]s/read; echo new > %[2]s/new && cat %[2]s/new; cat /etc/hostname; echo no > %[1]s/no
		(: < /dev/tcp/127.0.0.1/%[3]d) && echo connected; (: < /dev/tcp/127.0.0.1/%[4]d) || echo not connected; kill -0 %[5]d`,
		dir, write, ports[0], ports[1], os.Getpid()))
	for _, want := range []string{"to read\nnew\n", "/etc/hostname: Permission denied", "/no: Permission denied", "\nconnected\n", "\nnot connected\n", "ot permitted"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// askSockets has this test binary say which sockets it may have.
const askSockets = "KBROKER_TEST_SOCKETS"

// What Landlock does not see, the filter does: other names of TCP, and io_uring. What
// programs use is there.
func TestASandboxHasNoOtherSockets(t *testing.T) {
	if os.Getenv(askSockets) != "" {
		saySockets()
		return
	}
	if !Sandboxes() {
		t.Skip("SKIPPED: no Landlock here")
	}
	out := output(t, Config{
		Path: os.Args[0], Args: []string{"-test.run=^TestASandboxHasNoOtherSockets$"}, Env: []string{askSockets + "=1"},
		Sandbox: &Sandbox{Read: []string{os.Args[0], "/usr", "/lib", "/lib64", "/etc", "/proc", "/sys"}, Write: []string{os.DevNull}},
	}, "")
	want := "mptcp protocol not supported\nsmc address family not supported by protocol\nvsock address family not supported by protocol\n" +
		"sctp protocol not supported\nraw protocol not supported\ntcp there\ntcp6 there\nudp there\nunix there\nnetlink there\nio_uring function not implemented\n"
	if out, _, _ = strings.Cut(out, "PASS"); out != want {
		t.Errorf("sockets in a sandbox are\n%swant\n%s", out, want)
	}
}

func saySockets() {
	say := func(name string, err error) {
		if err != nil {
			fmt.Println(name, err)
			return
		}
		fmt.Println(name, "there")
	}
	for _, s := range []struct {
		name                   string
		family, kind, protocol int
	}{
		{"mptcp", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
		{"smc", unix.AF_SMC, unix.SOCK_STREAM, 0},
		{"vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		{"sctp", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_SCTP},
		{"raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{"tcp", unix.AF_INET, unix.SOCK_STREAM, 0},
		{"tcp6", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP},
		{"udp", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
		{"unix", unix.AF_UNIX, unix.SOCK_STREAM, 0},
		{"netlink", unix.AF_NETLINK, unix.SOCK_RAW, 0},
	} {
		_, err := unix.Socket(s.family, s.kind, s.protocol)
		say(s.name, err)
	}
	var params [120]byte // struct io_uring_params
	_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params[0])), 0)
	say("io_uring", errno)
}

func TestAProcessHasASessionOfItsOwn(t *testing.T) {
	out := output(t, Config{}, "cut -d ' ' -f 1,5,6 /proc/self/stat; echo $$")
	var self, group, session, shell int
	if n, err := fmt.Sscan(out, &self, &group, &session, &shell); n != 4 || session != shell || group != shell {
		t.Errorf("a process in group %d, session %d of shell %d (%v): %q", group, session, shell, err, out)
	}
}

func groups(t *testing.T) *cgroup.Root {
	t.Helper()
	needRoot(t)
	root, err := cgroup.Open(t.TempDir(), "this boot")
	if err != nil {
		t.Fatal(err)
	}
	if !root.Features().Group {
		t.Skip("SKIPPED: no cgroups here")
	}
	t.Cleanup(func() {
		if err := root.Remove(); err != nil {
			t.Error(err)
		}
	})
	return root
}

func TestAForkBombDiesWithItsGroup(t *testing.T) {
	root := groups(t)
	g := root.Group("bomb")
	if err := g.Make(cgroup.Limits{PIDs: 50}); err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c, err := Start(Config{Path: "/bin/bash", Args: []string{"-c", "bomb() { bomb | bomb & }; setsid sleep 1000 & bomb; wait; sleep 1000"}, Dir: "/", Group: g, Stdout: null, Stderr: null, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
	most := 0
	for deadline := time.Now().Add(500 * time.Millisecond); time.Now().Before(deadline); {
		all, err := g.Processes()
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, len(all))
	}
	if most < 2 || most > 50 {
		t.Errorf("%d processes at a time, want 2 to 50", most)
	}
	began := time.Now()
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Cmd.Wait()
	if n, err := g.End(t.Context()); err != nil {
		t.Errorf("%d killed, %v", n, err)
	}
	t.Logf("%d processes at most; all gone within %v", most, time.Since(began))
	if g.There() {
		t.Error("the group is still there")
	}
}

func TestMemoryIsLimited(t *testing.T) {
	root := groups(t)
	if !root.Features().Memory {
		t.Skip("SKIPPED: no limit of memory here")
	}
	g := root.Group("fat")
	if err := g.Make(cgroup.Limits{MemoryBytes: 32 << 20, CPU: 0.5, Share: 0.25}); err != nil {
		t.Fatal(err)
	}
	c, err := Start(Config{Path: "/bin/sh", Args: []string{"-c", "head -c 100m /dev/zero | tail -c 100m"}, Dir: "/", Group: g, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
	_ = c.Cmd.Wait()
	if code := c.Cmd.ProcessState.ExitCode(); code == 0 { // 137; -1 where the whole group is killed
		t.Error("it ended as if nothing had happened")
	}
	if n := g.OutOfMemory(); n == 0 {
		t.Error("nothing was killed for lack of memory")
	}
	if u := g.Usage(); u.CPU == 0 {
		t.Errorf("usage is %+v", u)
	}
	if _, err := g.End(t.Context()); err != nil {
		t.Error(err)
	}
}

func BenchmarkStart(b *testing.B) {
	cfg := Config{Path: "/bin/true", Dir: "/"}
	contained := cfg
	if os.Getuid() == 0 {
		contained.User = &User{1_900_000_125, 1_900_000_125}
		contained.View = &View{Write: []string{b.TempDir()}}
	}
	for name, cfg := range map[string]Config{"plain": cfg, "contained": contained} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c, err := Start(cfg)
				if err != nil {
					b.Fatal(err)
				}
				c.Release()
				_ = c.Cmd.Wait()
			}
		})
	}
}
