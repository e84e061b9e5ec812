package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// period is that of a limit of processor time, the kernel's default
// (sched-bwc.rst).
const period = 100 * time.Millisecond

// Limits of a group. 0: none.
type Limits struct {
	CPU         float64 // cores that it may use
	Share       float64 // cores that it asks for: its weight when all want more than there is
	MemoryBytes int64
	PIDs        int
}

// Usage is what the processes of a group, those that have ended included, have
// used. A field is 0 where the host does not count it.
type Usage struct {
	CPU         time.Duration
	MemoryBytes int64 // now
	PIDs        int64 // now
}

// Group is one group.
type Group struct {
	name string
	root *Root
}

// Group names a group, whether it is there or not.
func (r *Root) Group(name string) *Group { return &Group{name, r} }

// dir is the directory of a controller, in version 2 if it has it; empty: none.
func (g *Group) dir(controller string) string {
	p := g.root.place
	for _, c := range p.Controllers {
		if c == controller {
			return filepath.Join(p.Unified, g.name)
		}
	}
	if dir := p.V1[controller]; dir != "" {
		return filepath.Join(dir, g.name)
	}
	return ""
}

func (g *Group) unified() string {
	if g.root.place.Unified == "" {
		return ""
	}
	return filepath.Join(g.root.place.Unified, g.name)
}

func (g *Group) dirs() []string {
	all := g.root.place.dirs()
	for i := range all {
		all[i] = filepath.Join(all[i], g.name)
	}
	return all
}

// Make makes the group with its limits. One that is there is taken as it is, with
// these limits.
func (g *Group) Make(l Limits) error {
	for _, dir := range g.dirs() {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a cgroup: %w", err)
		}
	}
	for _, s := range g.settings(l) {
		err := write(s.dir, s.file, s.value)
		if s.wish && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP)) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("limit %s of a cgroup to %s: %w", s.file, s.value, err)
		}
	}
	return nil
}

// setting is a value for a file of a group; a wish need not be there: the kernel may
// be built without it.
type setting struct {
	dir, file, value string
	wish             bool
}

// v2 reports whether a directory of the group is one of version 2.
func (g *Group) v2(dir string) bool {
	return g.root.place.Unified != "" && strings.HasPrefix(dir, g.root.place.Unified+"/")
}

func (g *Group) settings(l Limits) (all []setting) {
	if dir := g.dir(cpu); g.v2(dir) {
		if l.Share > 0 {
			all = append(all, setting{dir, "cpu.weight", fmt.Sprint(clamp(l.Share*100, 1, 10_000)), false})
		}
		if l.CPU > 0 {
			all = append(all, setting{dir, "cpu.max", fmt.Sprintf("%d %d", quota(l.CPU), period.Microseconds()), false})
		}
	} else if dir != "" {
		if l.Share > 0 {
			all = append(all, setting{dir, "cpu.shares", fmt.Sprint(clamp(l.Share*1024, 2, 262_144)), false})
		}
		if l.CPU > 0 {
			all = append(
				all,
				setting{dir, "cpu.cfs_period_us", fmt.Sprint(period.Microseconds()), false},
				setting{dir, "cpu.cfs_quota_us", fmt.Sprint(quota(l.CPU)), false},
			)
		}
	}
	if dir := g.dir(memory); dir != "" && l.MemoryBytes > 0 {
		bytes := fmt.Sprint(l.MemoryBytes)
		if g.v2(dir) { // nothing of an instance that has lost a process is of use
			all = append(all, setting{dir, "memory.max", bytes, false}, setting{dir, "memory.swap.max", "0", true}, setting{dir, "memory.oom.group", "1", true})
		} else {
			all = append(all, setting{dir, "memory.limit_in_bytes", bytes, false}, setting{dir, "memory.memsw.limit_in_bytes", bytes, true})
		}
	}
	if dir := g.dir(pids); dir != "" && l.PIDs > 0 {
		all = append(all, setting{dir, "pids.max", fmt.Sprint(l.PIDs), false})
	}
	return all
}

// quota is the time of a period that so many cores have; the kernel takes 1 ms or
// more.
func quota(cores float64) int64 {
	return max(1000, int64(math.Round(cores*float64(period.Microseconds()))))
}

func clamp(f, least, most float64) int64 { return int64(math.Round(min(max(f, least), most))) }

// EnterThread moves the calling thread into the group's hierarchies of version 1:
// what it forks from then on is born there. The thread must be locked, and end: it
// does not come back.
func (g *Group) EnterThread() error {
	for _, dir := range g.dirs() {
		if dir == g.unified() {
			continue // a process is cloned into it
		}
		// By its number the thread would wait for a grace period of the whole machine
		// (cgroup_attach_lock), some 20 ms; "0", itself, does not.
		if err := write(dir, "tasks", "0"); err != nil {
			return fmt.Errorf("enter a cgroup: %w", err)
		}
	}
	return nil
}

// Open opens the directory of version 2, into which a process can be cloned; nil:
// there is none.
func (g *Group) Open() (*os.File, error) {
	if g.unified() == "" {
		return nil, nil
	}
	return os.Open(g.unified())
}

// There reports whether the group is there.
func (g *Group) There() bool {
	for _, dir := range g.dirs() {
		if _, err := os.Stat(dir); err == nil {
			return true
		}
	}
	return false
}

// Processes are those of the group. This process is left out, of which a thread may
// be in it on its way to start one. Zombies are no members of version 2, but of
// version 1 until they are reaped.
func (g *Group) Processes() ([]int, error) {
	dirs := g.dirs()
	if g.unified() != "" {
		dirs = dirs[:1]
	}
	var all []int
	for _, dir := range dirs {
		found, err := numbers(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("processes of a cgroup: %w", err)
		}
		for _, pid := range found {
			if pid != os.Getpid() && pid > 0 {
				all = append(all, pid)
			}
		}
		break
	}
	return all, nil
}

// Kill kills whatever is in the group. In version 2 the kernel does that in one
// step; in version 1 the group is frozen meanwhile, so that nothing is forked.
func (g *Group) Kill() error {
	if dir := g.unified(); dir != "" {
		err := write(dir, "cgroup.kill", "1")
		if err == nil || errors.Is(err, fs.ErrNotExist) && !exists(dir) {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) { // a kernel before 5.14 has no such file
			return fmt.Errorf("kill a cgroup: %w", err)
		}
	}
	frozen := g.dir(freezer)
	if frozen != "" && write(frozen, "freezer.state", "FROZEN") == nil {
		defer func() { _ = write(frozen, "freezer.state", "THAWED") }() // the killed die then
	}
	found, err := g.Processes()
	for _, pid := range found {
		if e := unix.Kill(pid, unix.SIGKILL); e != nil && !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("kill %d: %w", pid, e))
		}
	}
	return err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// End kills whatever is in the group until nothing is, and removes it. It gives up
// when ctx ends. What it has killed is counted.
func (g *Group) End(ctx context.Context) (killed int, err error) {
	const poll = 2 * time.Millisecond
	told := map[int]bool{}
	for wait := poll; ; wait = min(2*wait, 50*poll) {
		found, err := g.Processes()
		if err != nil {
			return len(told), err
		}
		for _, pid := range found {
			told[pid] = true
		}
		if len(found) > 0 {
			err = g.Kill()
		}
		if err == nil {
			err = g.remove()
		}
		if err == nil {
			return len(told), nil
		}
		select {
		case <-ctx.Done():
			return len(told), fmt.Errorf("cgroup %s is not empty: %w", g.name, err)
		case <-time.After(wait):
		}
	}
}

// remove removes the group where nothing is in it.
func (g *Group) remove() error {
	var errs []error
	for _, dir := range g.dirs() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Usage is what the group has used.
func (g *Group) Usage() Usage {
	var u Usage
	if dir := g.unified(); dir != "" {
		if b, err := slurp(filepath.Join(dir, "cpu.stat")); err == nil {
			u.CPU = time.Duration(field(string(b), "usage_usec")) * time.Microsecond
		}
	}
	if dir := g.dir(cpuacct); dir != "" && u.CPU == 0 {
		u.CPU = time.Duration(number(dir, "cpuacct.usage"))
	}
	if dir := g.dir(memory); dir != "" {
		file := "memory.usage_in_bytes"
		if g.v2(dir) {
			file = "memory.current"
		}
		u.MemoryBytes = int64(number(dir, file))
	}
	if dir := g.dir(pids); dir != "" {
		u.PIDs = int64(number(dir, "pids.current"))
	}
	return u
}

// OutOfMemory is how many processes of the group the kernel has killed because it
// had used its memory up.
func (g *Group) OutOfMemory() uint64 {
	dir := g.dir(memory)
	if dir == "" {
		return 0
	}
	for _, file := range []string{"memory.events", "memory.oom_control"} {
		if b, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
			return field(string(b), "oom_kill")
		}
	}
	return 0
}
