package agent

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
)

const (
	lockFile  = "agent.lock"
	agentFile = "agent.json"

	// lockPatience covers the moment in which somebody only asks whether the
	// lock is held, or a child of a killed agent has not yet executed.
	lockPatience = 250 * time.Millisecond
	lockPoll     = 10 * time.Millisecond
	// exitPatience covers the end of an agent on a busy machine: its first
	// thread is a zombie, and another one still holds the files.
	exitPatience = 5 * time.Second
)

// Dir is a host's data directory, held by one agent at a time.
type Dir struct {
	// Path is absolute and has no symbolic links.
	Path string
	// Process is random, new at each start of the agent; Earlier is that of
	// the start before, empty if there was none.
	Process string
	Earlier string
	// Starts are the last starts of agents of the directory, this one's last.
	Starts []time.Time

	lock *os.File
}

// agentRecord tells others which process holds the directory.
type agentRecord struct {
	procID
	BootID     string      `json:"boot_id"`
	Process    string      `json:"process"`
	Executable string      `json:"executable,omitempty"`
	Starts     []time.Time `json:"starts,omitempty"` // see Holder
}

// Lock creates dir (mode 0700) where needed and takes it for this process,
// until Close or its end. Refused when another agent holds it.
func Lock(dir string) (*Dir, error) {
	if err := supported(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "data directory: %v", err).WithHint("name a directory that can be made and written")
	}
	path, err := cleanPath(dir)
	if err != nil {
		return nil, err
	}
	if _, err := asideUnless(filepath.Join(path, lockFile), 0); err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := flock(f); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, heldBy(path)
		}
		return nil, fmt.Errorf("lock the data directory %s: %w", path, err)
	}
	d := &Dir{Path: path, Process: randomHex(), lock: f}
	if err := d.introduce(); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

// Close gives the directory up. What the agent wrote stays.
func (d *Dir) Close() error { return d.lock.Close() }

// introduce notes who holds the directory, and learns who did before.
func (d *Dir) introduce() error {
	if before, err := readAgentRecord(d.Path); err == nil {
		d.Earlier, d.Starts = before.Process, before.Starts
	} else if _, err := durable.SetAside(filepath.Join(d.Path, agentFile)); err != nil {
		return err
	}
	d.Starts = addStart(d.Starts, time.Now().UTC())
	me, err := self()
	if err != nil {
		return fmt.Errorf("identify this process: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	executable, err := Executable()
	if err != nil {
		return err
	}
	b, err := json.Marshal(agentRecord{
		procID: me.procID, BootID: boot, Process: d.Process,
		Executable: executable, Starts: d.Starts,
	})
	if err != nil {
		return fmt.Errorf("agent record: %w", err)
	}
	// Who was here before may have left a lease: it waits for nobody else's word.
	return durable.ReplaceTwice(filepath.Join(d.Path, agentFile), b, 0o600)
}

func flock(f *os.File) error {
	for deadline := time.Now().Add(lockPatience); ; <-time.After(lockPoll) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

func heldBy(path string) error {
	e := kbroker.Errorf(kbroker.Refused, "another agent holds the data directory %s", path)
	if r, err := readAgentRecord(path); err == nil && r.alive() {
		return e.WithHint("it is process %d; stop it, or use another directory", r.PID)
	}
	return e.WithHint("it has just started; stop it, or use another directory")
}

func readAgentRecord(path string) (agentRecord, error) {
	var r agentRecord
	_, err := durable.ReadEither(filepath.Join(path, agentFile), func(b []byte) error {
		r = agentRecord{}
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		if r.PID <= 0 || r.Process == "" {
			return errDamaged
		}
		return nil
	})
	return r, err
}

func (r agentRecord) alive() bool {
	s, there := r.stat()
	return there && !s.ended()
}

// exiting: the process has begun to exit and is not reaped.
func (r agentRecord) exiting() bool {
	s, there := r.stat()
	return there && s.ended()
}

func (r agentRecord) stat() (procStat, bool) {
	boot, err := bootID()
	if err != nil || boot != r.BootID {
		return procStat{}, false
	}
	s, err := readStat(r.PID)
	return s, err == nil && s.Start == r.Start
}

func isHeld(path string) (bool, error) {
	f, err := os.Open(filepath.Join(path, lockFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the lock: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the lock: %w", err)
	}
	return false, nil
}

// cleanPath is the one spelling of a directory's path, so that it can be
// compared with what processes carry in their environment.
func cleanPath(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	path, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return path, nil
}

func randomHex() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
