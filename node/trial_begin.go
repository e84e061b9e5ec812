package node

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/internal/durable"
)

// UpgradeOrder is what an upgrade is asked for with.
type UpgradeOrder struct {
	// Binary is the new program; empty: what is on disk in the place of the agent's.
	Binary   string
	From, To string        // versions
	Gate     time.Duration // 0: DefaultGate
}

// AskUpgrade has the agent of dir execute another program, on trial: a guard that
// outlives who asks returns to the program that runs now when the new one does not
// pass. It returns when the agent was asked; LastUpgrade tells what becomes of it.
// Errors: NotFound - no agent runs; Refused - another upgrade is under way.
func AskUpgrade(dir string, o UpgradeOrder) (Upgrade, error) {
	h, alive, err := agent.HolderOf(dir)
	if err != nil {
		return Upgrade{}, err
	}
	if !alive {
		return Upgrade{}, kbroker.Errorf(kbroker.NotFound, "no agent runs on %s", dir)
	}
	if last, err := LastUpgrade(dir); err == nil && !last.Over() && last.Guard.Alive() {
		return last, kbroker.Errorf(kbroker.Refused, "the upgrade of this host to version %s is under way", last.To).
			WithHint("it is decided within %v", last.Gate*4/3)
	}
	u := Upgrade{
		ID: rand.Text(), Phase: UpgradeAsked, Process: h.Process, Program: h.Executable,
		From: o.From, To: o.To, Gate: o.Gate, At: time.Now().UTC(),
	}
	if u.Gate == 0 {
		u.Gate = DefaultGate
	}
	// The file that runs, whatever has its name by now.
	running := fmt.Sprintf("/proc/%d/exe", h.PID)
	if err := u.stage(o.Binary, running); err != nil {
		return u, err
	}
	if err := u.save(dir); err != nil {
		return u, errors.Join(err, u.returned(dir, "it could not be asked for"))
	}
	// Until the trial is over, who starts the program starts what runs now.
	_, err = putProgram(running, u.Program, false)
	if err == nil {
		err = AskRestart(dir)
	}
	if err != nil {
		return u, errors.Join(err, u.returned(dir, err.Error()))
	}
	return u, nil
}

// stage puts the new program beside the old one. Where it is the very program that
// runs, the restart is of that one.
func (u *Upgrade) stage(binary, running string) error {
	if binary == "" {
		binary = u.Program
	}
	next, err := digest(binary)
	if err != nil {
		return err
	}
	old, err := digest(running)
	if err != nil {
		return err
	}
	u.SHA256 = hex.EncodeToString(next)
	if bytes.Equal(next, old) {
		return nil
	}
	u.Next = u.Program + agent.NextSuffix
	_, err = putProgram(binary, u.Next, false)
	return err
}

// putProgram puts a copy of the file from in the place of the program at to, in one
// step. keep: the old one gets the name with PreviousSuffix. False: they are the
// same, nothing was done. What runs is not affected until it is started again.
func putProgram(from, to string, keep bool) (replaced bool, err error) {
	next, old, err := digests(from, to)
	if err != nil || bytes.Equal(next, old) {
		return false, err
	}
	fresh, err := copyBeside(from, to)
	if err != nil {
		return false, err
	}
	if old != nil && keep {
		if err := keepPrevious(to); err != nil {
			return false, errors.Join(err, os.Remove(fresh))
		}
	}
	if err := durable.Rename(fresh, to); err != nil {
		if rest := os.Remove(fresh); !errors.Is(rest, fs.ErrNotExist) {
			return false, errors.Join(fmt.Errorf("replace %s: %w", to, err), rest)
		}
		return true, fmt.Errorf("replace %s: %w", to, err) // it was renamed, and may not last
	}
	return true, nil
}

// takeName gives the program from the name to, and what had that name the one with
// PreviousSuffix. False: they were the same, and one is left.
func takeName(from, to string) (replaced bool, err error) {
	next, old, err := digests(from, to)
	if err != nil {
		return false, err
	}
	if bytes.Equal(next, old) {
		return false, os.Remove(from)
	}
	if old != nil {
		if err := keepPrevious(to); err != nil {
			return false, err
		}
	}
	if err := durable.Rename(from, to); err != nil {
		return false, fmt.Errorf("replace %s: %w", to, err)
	}
	return true, nil
}

// digests are those of two programs; nil: the second one is not there.
func digests(from, to string) (next, old []byte, err error) {
	if next, err = digest(from); err != nil {
		return nil, nil, err
	}
	if old, err = digest(to); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return next, old, err
}
