package agent

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"
	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/cgroup"
)

// maxFilesOf bounds the processes of an instance whose open files are counted, all
// together: of one that has more only its own process is looked at.
const maxFilesOf = 32

// watched is a process that is measured, with all that it has started.
type watched struct {
	incarnation kbroker.Incarnation
	id          procID
	group       *cgroup.Group // nil: none of its own
	readySince  time.Duration // boottime; 0: not ready
	limitBytes  int64         // of its memory, enforced; 0: none
}

// usage is what an instance has used, or uses. nil: not known.
type usage struct {
	cpu                     *time.Duration
	memoryBytes, pids       *int64
	openFiles, openFilesAll *int
}

// measurer measures at one moment: it looks at all processes of the machine once, if
// at all.
type measurer struct{ all map[int]spent }

// spent is a process, and what it has taken.
type spent struct {
	procStat
	footprint
}

// usage is that of an instance: of its control group, and where that does not count or
// is not there, of its processes.
func (m *measurer) usage(w watched) usage {
	var u usage
	members := m.members(w)
	if w.group != nil {
		g := w.group.Usage()
		u.cpu, u.memoryBytes, u.pids = known(g.CPU), known(g.MemoryBytes), known(g.PIDs)
	}
	if u.cpu == nil || u.memoryBytes == nil || u.pids == nil {
		if sum, ok := m.sum(members, w.group == nil); ok {
			u.cpu, u.memoryBytes, u.pids = orElse(u.cpu, sum.cpu), orElse(u.memoryBytes, int64(sum.residentBytes)), orElse(u.pids, sum.threads)
		}
	}
	u.openFiles, u.openFilesAll = filesOf(w.id.PID, members)
	return u
}

// members are the processes of an instance: of its group, or else those that descend
// from its own or are in its process group. A daemon that has left both counts in a
// control group only.
func (m *measurer) members(w watched) []int {
	if w.group != nil {
		if pids, err := w.group.Processes(); err == nil {
			return pids
		}
	}
	if m.all == nil {
		m.all = spentByAll()
	}
	return family(m.all, w.id)
}

// family are a process, its descendants and who is in its process group. Pure.
func family(all map[int]spent, of procID) (pids []int) {
	if all[of.PID].procID != of {
		return nil
	}
	in := map[int]bool{of.PID: true}
	// belongs remembers what it finds, so that each process is looked at once.
	var belongs func(pid, depth int) bool
	belongs = func(pid, depth int) bool {
		known, seen := in[pid]
		p, there := all[pid]
		if seen || !there || depth > len(all) {
			return known
		}
		in[pid] = p.Group == of.PID || belongs(p.Parent, depth+1)
		return in[pid]
	}
	for pid := range all {
		if belongs(pid, 0) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// sum adds up what processes have taken, with that of those whom they have waited for.
func (m *measurer) sum(pids []int, scanned bool) (all footprint, ok bool) {
	for _, pid := range pids {
		p, there := m.all[pid]
		if !scanned {
			p, there = spentBy(pid)
		}
		if there {
			all.cpu, all.residentBytes, all.threads, ok = all.cpu+p.cpu+p.waitedFor, all.residentBytes+p.residentBytes, all.threads+p.threads, true
		}
	}
	return all, ok
}

// spentByAll reads all processes of the machine.
func spentByAll() map[int]spent {
	all := map[int]spent{}
	dirs, _ := os.ReadDir("/proc") // without it nothing is known
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err == nil {
			if s, ok := spentBy(pid); ok {
				all[pid] = s
			}
		}
	}
	return all
}

// spentBy reads one process; false if it has ended.
func spentBy(pid int) (spent, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return spent{}, false
	}
	s, err := parseStat(pid, b)
	if err != nil || s.ended() {
		return spent{}, false
	}
	f, err := parseFootprint(pid, b)
	return spent{s, f}, err == nil
}

// filesOf counts the open files of a process, and those of all of an instance, if they
// are few.
func filesOf(pid int, members []int) (own, all *int) {
	n, ok := openFilesOf(pid)
	if !ok {
		return nil, nil
	}
	own = &n
	if len(members) > maxFilesOf {
		return own, nil
	}
	sum := n
	for _, other := range members {
		if other == pid {
			continue
		}
		if n, ok := openFilesOf(other); ok {
			sum += n
		}
	}
	return own, &sum
}

// openFilesOf is how many files a process has open. From Linux 6.2 on that is the size of
// the directory: no entry is read.
func openFilesOf(pid int) (int, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	var info unix.Stat_t
	if err := unix.Stat(dir, &info); err == nil && info.Size > 0 {
		return int(info.Size), true
	}
	f, err := os.Open(dir)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	return len(names), err == nil
}

// machine is what the whole host, and this agent, have used, or use.
type machine struct {
	cpu, own           *time.Duration
	used, free, ownMem *int64
	load               *float64
}

func measureMachine() (m machine) {
	if t, err := cpu.Times(false); err == nil && len(t) == 1 {
		busy := t[0].User + t[0].Nice + t[0].System + t[0].Irq + t[0].Softirq
		m.cpu = new(time.Duration(busy * float64(time.Second)))
	}
	if v, err := mem.VirtualMemory(); err == nil {
		m.used, m.free = new(int64(v.Total-v.Available)), new(int64(v.Available))
	}
	if l, err := load.Avg(); err == nil {
		m.load = &l.Load1
	}
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err == nil {
		m.own = new(time.Duration(r.Utime.Nano() + r.Stime.Nano()))
	}
	if me, ok := spentBy(os.Getpid()); ok {
		m.ownMem = new(int64(me.residentBytes))
	}
	return m
}

// known is nil for what is not counted.
func known[T ~int64](v T) *T {
	if v == 0 {
		return nil
	}
	return &v
}

func orElse[T any](v *T, other T) *T {
	if v == nil {
		return &other
	}
	return v
}

// perSecond is by how much what only grows has grown for each second; nil where that is
// not known, or it has begun anew.
func perSecond[T ~int64 | ~uint64](from, to *T, over time.Duration) *float64 {
	if from == nil || to == nil || *to < *from || over <= 0 {
		return nil
	}
	return rounded(float64(*to-*from) / over.Seconds())
}

// cores is perSecond of processor time.
func cores(from, to *time.Duration, over time.Duration) *float64 {
	r := perSecond(from, to, over)
	if r == nil {
		return nil
	}
	return rounded(*r / float64(time.Second))
}

// rounded spares messages the digits that mean nothing.
func rounded(v float64) *float64 {
	v = math.Round(v*10_000) / 10_000
	return &v
}
