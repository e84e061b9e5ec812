package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/internal/durable"
)

// A new program of an agent is on trial until it has passed the gate; see ADR 21.
//
//	asked ---> watched ---> passed     PROGRAM is the new one, the old one is .previous
//	  |           |
//	  +-----------+-------> returned   PROGRAM is the old one, the new one is .refused
//
// Until it has passed it has another name, .next: whatever starts PROGRAM
// meanwhile, a service manager or a boot, starts the old one, and so has returned.
// upgrade.json has one writer in each phase: who asks, then the guard, and without
// a guard the agent that starts.

// Files of a trial in a host's directory.
const (
	upgradeFile = "upgrade.json"
	healthFile  = "upgrade.health" // what the program on trial says of itself
)

// RefusedSuffix is added to the name of a program that did not pass.
const RefusedSuffix = ".refused"

const (
	// DefaultGate is how long a new program may be ill.
	DefaultGate = 30 * time.Second
	// MinGate and MaxGate bound what may be asked for.
	MinGate, MaxGate = 2 * time.Second, 2 * time.Minute
	// GoesBackWithin is how long after the gate the old program is heard again: to end
	// the new one takes 3 s, to see that nobody else starts the old one 1.5 s, and a
	// machine that restarts things is busy.
	GoesBackWithin = 15 * time.Second
	// healthHolds is how long what the program on trial says of itself counts;
	// longer than it takes to find out.
	healthHolds = 5 * time.Second
)

// Phase of an upgrade.
type Phase string

// Phases; the last two are final.
const (
	UpgradeAsked    Phase = "asked"
	UpgradeWatched  Phase = "watched"
	UpgradePassed   Phase = "passed"
	UpgradeReturned Phase = "returned"
)

// Upgrade is the last one of a host, or the one under way.
type Upgrade struct {
	ID      string `json:"id"`
	Phase   Phase  `json:"phase"`
	Process string `json:"process"` // of the agent that was asked
	Program string `json:"program"`
	// Next is the program on trial; empty: it is a restart, of Program.
	Next   string        `json:"next,omitempty"`
	SHA256 string        `json:"sha256"` // of what is executed
	From   string        `json:"from"`   // versions
	To     string        `json:"to"`
	Gate   time.Duration `json:"gate"`
	At     time.Time     `json:"at"` // wall clock
	// Agent is on trial, Guard watches it.
	Agent  agent.Identity `json:"agent,omitzero"`
	Guard  agent.Identity `json:"guard,omitzero"`
	Reason string         `json:"reason,omitempty"` // why it has returned
}

// Over reports whether it has ended.
func (u Upgrade) Over() bool { return u.Phase == UpgradePassed || u.Phase == UpgradeReturned }

// onTrial reports whether this process is what the upgrade watches. Its earlier
// program is so, too, until it has executed the next one.
func (u Upgrade) onTrial() bool {
	me, err := agent.Identify(os.Getpid())
	return err == nil && u.Phase == UpgradeWatched && u.Agent == me
}

// errDamaged: a file is there and is not what was written. It is put aside.
var errDamaged = errors.New("damaged")

// LastUpgrade is the last upgrade of the host of a data directory. fs.ErrNotExist:
// there was none; errDamaged.
func LastUpgrade(dir string) (Upgrade, error) {
	var u Upgrade
	path := filepath.Join(dir, upgradeFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return u, err
	}
	if err == nil {
		err = json.Unmarshal(raw, &u)
	}
	if err != nil {
		kept, keepErr := durable.SetAside(path)
		return Upgrade{}, errors.Join(fmt.Errorf("%s is %w, and now %s: %w", path, errDamaged, filepath.Base(kept), err), keepErr)
	}
	return u, nil
}

func (u Upgrade) save(dir string) error {
	raw, err := json.MarshalIndent(u, "", "  ")
	if err != nil {
		return fmt.Errorf("marshal the upgrade: %w", err)
	}
	return durable.Replace(filepath.Join(dir, upgradeFile), append(raw, '\n'), 0o600)
}

// returned ends the upgrade: the program on trial loses its name, and why is on
// record.
func (u Upgrade) returned(dir, reason string) error {
	u.Phase, u.Reason = UpgradeReturned, reason
	var err error
	if u.Next != "" {
		if err = durable.Rename(u.Next, u.Program+RefusedSuffix); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return errors.Join(err, u.save(dir))
}

// EndUpgrade ends the guard of an upgrade that is under way, if there is one, before
// its host is ended: it would start the agent again. A program on trial that does not
// hold the directory is ended, too: nobody else would find it. The next start of the
// agent is of the old program.
func EndUpgrade(dir string) error {
	u, err := LastUpgrade(dir)
	if err != nil || u.Over() {
		return nil
	}
	if err := u.Guard.Signal(unix.SIGKILL); err != nil {
		return err
	}
	if h, alive, err := agent.HolderOf(dir); err != nil || alive && h.PID == u.Agent.PID {
		return err
	}
	return u.Agent.Signal(unix.SIGKILL)
}

// passed gives the program on trial the name of the program for good.
func (u Upgrade) passed(dir string) error {
	if u.Next != "" {
		if _, err := takeName(u.Next, u.Program); err != nil {
			return err
		}
	}
	u.Phase = UpgradePassed
	return u.save(dir)
}

// health is what a program on trial says of itself.
type health struct {
	Upgrade string        `json:"upgrade"` // its ID
	At      time.Duration `json:"at"`      // boottime
	Missing string        `json:"missing"` // empty: nothing
	Stopped bool          `json:"stopped"` // it was told to end
}

// say replaces what was said before. It is of no use after a boot, and so need
// not be on the disk.
func (h health) say(dir string) error {
	raw, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("marshal health: %w", err)
	}
	path := filepath.Join(dir, healthFile)
	if err := os.WriteFile(path+".part", raw, 0o600); err != nil {
		return fmt.Errorf("say how it is: %w", err)
	}
	return os.Rename(path+".part", path)
}

// heardFrom is what the program on trial said last, the zero health when it has
// said nothing that can be read.
func heardFrom(dir, upgrade string) health {
	var h health
	raw, err := os.ReadFile(filepath.Join(dir, healthFile))
	if err != nil || json.Unmarshal(raw, &h) != nil || h.Upgrade != upgrade {
		return health{}
	}
	return h
}

// Lacks is what the program on trial says that it lacks, for display.
func (u Upgrade) Lacks(dir string) string { return heardFrom(dir, u.ID).Missing }

// seen is what a guard sees of the program on trial; times are boottime.
type seen struct {
	alive   bool
	said    health
	began   time.Duration // since when it runs
	healthy time.Duration // since when it is without a break; 0: it is not
}

// look is the next look, when said and alive are new. Pure.
func (s seen) look(now time.Duration) seen {
	switch fresh := s.said.At > s.began && now-s.said.At < healthHolds; {
	case !fresh || s.said.Missing != "":
		s.healthy = 0
	case s.healthy == 0:
		s.healthy = s.said.At
	}
	return s
}

// judge says what becomes of the program on trial, "" while that is open. It has
// to be in order within the gate, and then for a third of it without a break, so
// that one which works at first and dies soon does not pass. Pure.
func (s seen) judge(now, gate time.Duration) (Phase, string) {
	switch {
	case !s.alive && s.said.Stopped:
		return UpgradeReturned, "it was told to end before it had passed"
	case !s.alive:
		return UpgradeReturned, fmt.Sprintf("it ended after %v", (now - s.began).Round(100*time.Millisecond))
	case s.healthy > 0 && s.said.At-s.healthy >= gate/3:
		return UpgradePassed, ""
	case s.healthy == 0 && now-s.began >= gate && s.said.At <= s.began:
		return UpgradeReturned, fmt.Sprintf("it said nothing within %v", gate)
	case s.healthy == 0 && now-s.began >= gate && s.said.Missing == "":
		return UpgradeReturned, fmt.Sprintf("it has said nothing for %v", (now - s.said.At).Round(100*time.Millisecond))
	case s.healthy == 0 && now-s.began >= gate:
		return UpgradeReturned, fmt.Sprintf("it was not in order within %v: %s", gate, s.said.Missing)
	}
	return "", ""
}
