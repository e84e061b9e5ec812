package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/kbroker/kbroker"
)

// errGone: the process is not there (any more).
var errGone = errors.New("no such process")

// Environment variables that every process of this agent inherits and hands
// down: by them it is found when the record of its start is lost.
const (
	envInstance    = "KBROKER_INSTANCE"
	envIncarnation = "KBROKER_INCARNATION"
	envHostDir     = "KBROKER_HOST_DIR"
	envEpoch       = "KBROKER_EPOCH"        // of the placement
	envArtifactDir = "KBROKER_ARTIFACT_DIR" // only of an archive: what is unpacked of it
	envCheck       = "KBROKER_CHECK"        // only of a check that runs inside an instance
)

// procID is a process for as long as the machine is up: a pid alone is reused.
type procID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start_time"` // clock ticks since boot, as in /proc/PID/stat
}

// procStat is a process as /proc/PID/stat shows it.
type procStat struct {
	procID
	State   byte
	Parent  int
	Group   int
	Session int
}

// ended is true for a process that has exited and only waits to be reaped.
func (s procStat) ended() bool { return s.State == 'Z' || s.State == 'X' }

// readStat reads one process; errGone if there is none of that pid.
func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, errGone
	}
	return parseStat(pid, b)
}

// parseStat parses /proc/PID/stat. The name of the program, in parentheses, may
// hold blanks and parentheses itself: fields are counted from the last one.
func parseStat(pid int, b []byte) (procStat, error) {
	const parent, group, session, start = 1, 2, 3, 19 // after the name; proc(5)
	f, err := statFields(pid, b, start)
	if err != nil {
		return procStat{}, err
	}
	s := procStat{procID: procID{PID: pid}, State: f[0][0]}
	var errs [4]error
	s.Parent, errs[0] = strconv.Atoi(f[parent])
	s.Group, errs[1] = strconv.Atoi(f[group])
	s.Session, errs[2] = strconv.Atoi(f[session])
	s.Start, errs[3] = strconv.ParseUint(f[start], 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return procStat{}, fmt.Errorf("stat of process %d: %w", pid, err)
	}
	return s, nil
}

// statFields are the fields of /proc/PID/stat after the name, up to last at
// least.
func statFields(pid int, b []byte, last int) ([]string, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return nil, fmt.Errorf("stat of process %d: no program name", pid)
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) <= last {
		return nil, fmt.Errorf("stat of process %d: %d fields", pid, len(f))
	}
	return f, nil
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// self identifies this process.
func self() (procStat, error) { return readStat(os.Getpid()) }

// marked is a process and what its environment says of where it comes from;
// the strings are empty for a process that no agent started.
type marked struct {
	procStat
	User         uint32 // whose process it is
	HostDir      string
	Incarnation  kbroker.Incarnation
	InstanceFile string
	Check        bool   // it only looks at its instance
	Epoch        uint64 // 0: it does not say
}

// leads is true for the process that an agent itself started as an instance.
func (m marked) leads() bool { return m.PID == m.Group && !m.Check }

// scan lists all processes of the machine. Those that end meanwhile are left
// out; an environment that may not be read counts as empty.
func scan() ([]marked, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	all := make([]marked, 0, len(dirs))
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		s, err := readStat(pid)
		if err != nil {
			continue
		}
		m := marked{procStat: s}
		if env, err := os.ReadFile(filepath.Join("/proc", d.Name(), "environ")); err == nil && bytes.Contains(env, []byte(envHostDir+"=")) {
			m.HostDir = envValue(env, envHostDir)
			m.Incarnation = kbroker.Incarnation(envValue(env, envIncarnation))
			m.InstanceFile = envValue(env, envInstance)
			m.User = ownerOf(filepath.Join("/proc", d.Name()))
			m.Check = envValue(env, envCheck) != ""
			m.Epoch, _ = strconv.ParseUint(envValue(env, envEpoch), 10, 64) // 0 without
		}
		all = append(all, m)
	}
	return all, nil
}

// ownerOf is the user that a file belongs to; 0: root, or nobody knows.
func ownerOf(path string) uint32 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Uid
	}
	return 0
}

// envValue finds a variable in a NUL-separated environment.
func envValue(env []byte, name string) string {
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if value, ok := bytes.CutPrefix(v, []byte(name+"=")); ok {
			return string(value)
		}
	}
	return ""
}

// kin picks the live processes for which match holds, and with them whoever is
// in a process group that is theirs: a group whose leader matches, or is dead.
// The caller's own process and group are never picked.
func kin(all []marked, match func(marked) bool) []procID {
	me, own := os.Getpid(), 0
	alive := make(map[int]bool, len(all))
	matches := make(map[int]bool)
	for _, m := range all {
		if m.PID == me {
			own = m.Group
		}
		if m.ended() {
			continue
		}
		alive[m.PID] = true
		if m.PID != me && match(m) {
			matches[m.PID] = true
		}
	}
	groups := make(map[int]bool)
	for _, m := range all {
		if matches[m.PID] && m.Group != own && (matches[m.Group] || !alive[m.Group]) {
			groups[m.Group] = true
		}
	}
	var picked []procID
	for _, m := range all {
		if alive[m.PID] && m.PID != me && (matches[m.PID] || groups[m.Group]) {
			picked = append(picked, m.procID)
		}
	}
	return picked
}

// scanner shares scans: whoever asks gets one that began after the question,
// however many ask at once.
type scanner struct {
	turn sync.Mutex // held while scanning

	mu   sync.Mutex
	next *sharedScan // not begun yet
}

type sharedScan struct {
	done chan struct{}
	all  []marked
	err  error
}

func (s *scanner) scan() ([]marked, error) {
	s.mu.Lock()
	run, first := s.next, s.next == nil
	if first {
		run = &sharedScan{done: make(chan struct{})}
		s.next = run
	}
	s.mu.Unlock()
	if first {
		s.turn.Lock()
		s.mu.Lock()
		s.next = nil
		s.mu.Unlock()
		run.all, run.err = scan()
		close(run.done)
		s.turn.Unlock()
	}
	<-run.done
	return run.all, run.err
}
