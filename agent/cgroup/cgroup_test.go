package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Texts of /proc/self/mountinfo and /proc/self/cgroup, of hosts as they are.
const (
	unifiedMounts = `24 1 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
25 24 0:23 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
`
	hybridMounts = `24 1 0:22 / /sys/fs/cgroup rw shared:7 - tmpfs tmpfs rw
25 24 0:23 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
26 24 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:10 - cgroup cgroup rw,cpu,cpuacct
27 24 0:25 / /sys/fs/cgroup/memory rw,relatime shared:11 - cgroup cgroup rw,memory
28 24 0:26 / /sys/fs/cgroup/systemd rw,relatime shared:12 - cgroup cgroup rw,name=systemd
29 24 0:27 / /sys/fs/cgroup/pids ro,relatime shared:13 - cgroup cgroup rw,pids
`
	hybridOwn = "11:name=systemd:/\n4:memory:/box/7f\n3:cpu,cpuacct:/\n2:pids:/\n0::/\n"
	// A container sees its own part as the root of the mount.
	containerMounts = `30 29 0:30 /docker/ab /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
31 29 0:31 /docker/cd /sys/fs/cgroup\040two rw,nosuid - cgroup cgroup rw,pids
`
)

func TestHierarchies(t *testing.T) {
	for name, c := range map[string]struct {
		mounts, own string
		want        []hierarchy
	}{
		"version 2":          {unifiedMounts, "0::/user.slice/a.scope\n", []hierarchy{{"/sys/fs/cgroup", true, nil, "/user.slice/a.scope"}}},
		"no version at all":  {"24 1 0:22 / /sys rw - sysfs sysfs rw\n", "", nil},
		"what is not text":   {"garbage\n1 2 - -\n", "x\n:::\n", nil},
		"version 2 unnamed":  {unifiedMounts, "", nil},
		"a part of the tree": {containerMounts, "3:memory:/docker/ab\n2:pids:/elsewhere\n", []hierarchy{{"/sys/fs/cgroup/memory", false, []string{memory}, "/"}, {"/sys/fs/cgroup two", false, []string{pids}, "/"}}},
		"both, one of them only to be read": {hybridMounts, hybridOwn, []hierarchy{
			{"/sys/fs/cgroup/unified", true, nil, "/"},
			{"/sys/fs/cgroup/cpu,cpuacct", false, []string{cpu, cpuacct}, "/"},
			{"/sys/fs/cgroup/memory", false, []string{memory}, "/box/7f"},
			{"/sys/fs/cgroup/systemd", false, []string{"name=systemd"}, "/"},
		}},
	} {
		if got := hierarchies(c.mounts, c.own); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestSettings(t *testing.T) {
	all := Limits{CPU: 1.5, Share: 0.25, MemoryBytes: 32 << 20, PIDs: 100}
	for name, c := range map[string]struct {
		place  place
		limits Limits
		want   string
	}{
		"version 2":                  {place{Unified: "/u", Controllers: []string{cpu, memory, pids}}, all, `/u/g/cpu.weight=25 /u/g/cpu.max=150000 100000 /u/g/memory.max=33554432 /u/g/memory.swap.max=0 /u/g/memory.oom.group=1 /u/g/pids.max=100`},
		"version 1":                  {place{V1: map[string]string{cpu: "/c", memory: "/m", pids: "/p"}}, all, `/c/g/cpu.shares=256 /c/g/cpu.cfs_period_us=100000 /c/g/cpu.cfs_quota_us=150000 /m/g/memory.limit_in_bytes=33554432 /m/g/memory.memsw.limit_in_bytes=33554432 /p/g/pids.max=100`},
		"both":                       {place{Unified: "/u", V1: map[string]string{memory: "/m"}}, all, `/m/g/memory.limit_in_bytes=33554432 /m/g/memory.memsw.limit_in_bytes=33554432`},
		"less than the kernel takes": {place{Unified: "/u", Controllers: []string{cpu}}, Limits{CPU: 0.001, Share: 0.001}, `/u/g/cpu.weight=1 /u/g/cpu.max=1000 100000`},
		"more than the kernel takes": {place{V1: map[string]string{cpu: "/c"}}, Limits{Share: 1024}, `/c/g/cpu.shares=262144`},
		"no limits":                  {place{Unified: "/u", Controllers: []string{cpu, memory, pids}}, Limits{}, ``},
	} {
		var got []string
		for _, s := range (&Group{"g", &Root{c.place}}).settings(c.limits) {
			got = append(got, filepath.Join(s.dir, s.file)+"="+s.value)
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s:\n%s, want\n%s", name, text, c.want)
		}
	}
}

// Where there is no version 2, a group is frozen to be killed: what forks as fast as
// it can dies all the same.
func TestVersionOneAlone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	all, err := mounted()
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(h hierarchy) bool { return h.v2 })
	p := find(all, "kbroker-test-"+filepath.Base(t.TempDir()))
	root := &Root{p}
	if !root.Features().Group || !root.Features().PIDs {
		t.Skip("SKIPPED: no freezer or no pids of version 1 here")
	}
	defer func() {
		if err := root.Remove(); err != nil {
			t.Error(err)
		}
	}()
	g := root.Group("bomb")
	if err := g.Make(Limits{PIDs: 50}); err != nil {
		t.Fatal(err)
	}
	// A shell that enters by itself; the bomb is its child.
	script := ""
	for _, dir := range g.dirs() {
		script += "echo 0 > " + filepath.Join(dir, "cgroup.procs") + "; "
	}
	cmd := exec.Command("/bin/bash", "-c", script+"bomb() { bomb | bomb & }; bomb; exec sleep 1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for most := 0; most < 10; {
		found, err := g.Processes()
		if err != nil {
			t.Fatal(err)
		}
		most = len(found)
		if t.Context().Err() != nil {
			t.Fatalf("%d processes", most)
		}
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if n, err := g.End(t.Context()); err != nil {
		t.Errorf("%d killed: %v", n, err)
	}
	if g.There() {
		t.Error("the group is still there")
	}
}

func TestAPlaceIsFoundAgain(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	dir := t.TempDir()
	first, err := Open(dir, "boot 1")
	if err != nil {
		t.Fatal(err)
	}
	if len(first.place.dirs()) == 0 {
		t.Skip("SKIPPED: no cgroups here")
	}
	defer func() {
		if err := first.Remove(); err != nil {
			t.Error(err)
		}
	}()
	if again := Find(dir, "boot 1"); !reflect.DeepEqual(again.place, first.place) {
		t.Errorf("found %+v, want %+v", again.place, first.place)
	}
	if other := Find(dir, "boot 2"); len(other.place.dirs()) != 0 {
		t.Errorf("after another boot found %+v", other.place)
	}
	if err := os.WriteFile(filepath.Join(dir, placeFile), []byte(`{"boot":"boot 1","unified":"/etc","v1":{"cpu":"/"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if forged := Find(dir, "boot 1"); len(forged.place.dirs()) != 0 {
		t.Errorf("a place elsewhere is taken: %+v", forged.place)
	}
}

// Another directory at the same path, as in another container, has groups of its own.
func TestADirectoryHasItsOwnName(t *testing.T) {
	top := t.TempDir()
	path := filepath.Join(top, "data")
	names := map[string]bool{}
	for n := range 2 {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		first, err := nameOf(path)
		again, errAgain := nameOf(path)
		if err != nil || errAgain != nil || first != again {
			t.Errorf("%q and %q of the same directory (%v, %v)", first, again, err, errAgain)
		}
		names[first] = true
		if err := os.Rename(path, fmt.Sprint(path, n)); err != nil { // it stays, and keeps its inode
			t.Fatal(err)
		}
	}
	if len(names) != 2 {
		t.Errorf("two directories have the names %v", names)
	}
}
