package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// changeRecord rewrites the record of an instance as a fault would.
func (r *running) changeRecord(i kbroker.InstanceID, change func(*record)) {
	r.t.Helper()
	path := filepath.Join(r.home(i), recordFile)
	var rec record
	if err := loadSealed(path, &rec); err != nil {
		r.t.Fatal(err)
	}
	change(&rec)
	if err := saveSealed(path, rec); err != nil {
		r.t.Fatal(err)
	}
}

// forgetStatuses makes the core wait for the next agent's word.
func (c *core) forgetStatuses() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.statuses)
	clear(c.history)
}

func TestANewAgentAdoptsWhatRuns(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(a *running, i kbroker.InstanceID){
		"with its record": func(*running, kbroker.InstanceID) {},
		"by its incarnation when the agent died before the second record": func(a *running, i kbroker.InstanceID) {
			a.changeRecord(i, func(r *record) { r.procID = procID{} })
		},
		"by its incarnation when the recorded pid is another process": func(a *running, i kbroker.InstanceID) {
			a.changeRecord(i, func(r *record) { r.procID = foreign(a.t).procID; r.Start++ })
		},
		"from its environment when the record is damaged": func(a *running, i kbroker.InstanceID) {
			path := filepath.Join(a.home(i), recordFile)
			b, err := os.ReadFile(path)
			if err != nil {
				a.t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			if err := os.WriteFile(path, b, 0o600); err != nil {
				a.t.Fatal(err)
			}
		},
		"from its environment when the record and the view are cut off": func(a *running, i kbroker.InstanceID) {
			for _, path := range []string{filepath.Join(a.home(i), recordFile), filepath.Join(a.cfg.Dir.Path, viewFile)} {
				if err := os.Truncate(path, 10); err != nil {
					a.t.Fatal(err)
				}
			}
		},
		"from its environment when the agent died while it forked": func(a *running, i kbroker.InstanceID) {
			a.changeRecord(i, func(r *record) { // that of the start before, which has ended
				r.Incarnation, r.procID, r.Group = "shop-web-1.0000000000000000", procID{PID: 1 << 22, Start: 1}, ""
			})
		},
		"from its environment when the record is gone": func(a *running, i kbroker.InstanceID) {
			if err := os.Remove(filepath.Join(a.home(i), recordFile)); err != nil {
				a.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, dir := newCore(t), t.TempDir()
			p := placement("shop-web-1", "answer")
			p.Spec.Health.Ready = kbroker.HealthSDK
			c.want(p)
			a := c.startAgent(dir)
			s := c.awaitState(p.Instance, kbroker.StateReady)
			a.stop()
			if !alive(s.PID) {
				t.Fatal("the instance ended with its agent")
			}
			damage(a, p.Instance)
			c.forgetStatuses()
			b := c.startAgent(dir)
			now := c.awaitState(p.Instance, kbroker.StateReady)
			if now.PID != s.PID || now.Restarts != 0 || now.Incarnation != s.Incarnation || now.Epoch != s.Epoch {
				t.Fatalf("adopted as %+v, was %+v", now, s)
			}
			if b.cfg.Dir.Earlier != a.cfg.Dir.Process || b.cfg.Dir.Process == a.cfg.Dir.Process {
				t.Errorf("processes %q, then %q after %q", a.cfg.Dir.Process, b.cfg.Dir.Process, b.cfg.Dir.Earlier)
			}
			// It is watched, and its group is stopped, as if it were a child.
			kill(t, s.PID, unix.SIGKILL)
			again := c.await(p.Instance, 2*time.Second, "a restart", func(s kbroker.Status) bool { return s.State == kbroker.StateReady && s.PID != now.PID })
			c.want(tombstone(p))
			c.awaitState(p.Instance, kbroker.StateExited)
			if alive(again.PID) {
				t.Error("the tombstone was confirmed, and the process lives")
			}
		})
	}
}

func TestADamagedRecordIsKeptAsACopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), recordFile)
	if err := os.WriteFile(path, []byte("\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := loadSealed(path, &record{}); !errors.Is(err, errDamaged) {
		t.Errorf("load: %v", err)
	}
	if b, err := os.ReadFile(path + ".damaged-1"); err != nil || string(b) != "\x00\x00" {
		t.Errorf("copy: %q %v", b, err)
	}
}

func TestAProcessThatEndedWithoutAnAgentIsStartedAgain(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	p := placement("shop-web-1", "run")
	c.want(p)
	a := c.startAgent(dir)
	s := c.awaitState(p.Instance, kbroker.StateReady)
	a.stop()
	kill(t, s.PID, unix.SIGKILL)
	awaitDead(t, 5*time.Second, s.PID)
	c.startAgent(dir)
	now := c.await(p.Instance, 5*time.Second, "a restart", func(n kbroker.Status) bool { return n.State == kbroker.StateReady && n.PID != s.PID })
	// The agents of a test are one process, as before and after a restart in
	// place: its dead children wait for the next agent.
	if now.Restarts != 1 || now.Crashes != 0 || now.Exit == nil || now.Exit.Signal != "SIGKILL" {
		t.Errorf("status %+v, exit %+v", now, now.Exit)
	}
}

func TestANewAgentComparesEpochsBeforeItStartsAnything(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	p := placement("shop-web-1", "run")
	c.want(p)
	a := c.startAgent(dir)
	s := c.awaitState(p.Instance, kbroker.StateReady)
	a.stop()
	kill(t, s.PID, unix.SIGKILL)
	awaitDead(t, 5*time.Second, s.PID)
	c.forgetStatuses()
	c.quietly(tombstone(p))
	c.startAgent(dir)
	if done := c.awaitState(p.Instance, kbroker.StateExited); done.Restarts != 0 || done.Exit == nil || done.Exit.Signal != "SIGKILL" || done.Epoch != 2 {
		t.Errorf("status %+v, exit %+v", done, done.Exit)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, state := range c.history[p.Instance] {
		if state != kbroker.StatePending && state != kbroker.StateExited {
			t.Errorf("states %v: the superseded instance was started", c.history[p.Instance])
		}
	}
}

func TestANewAgentWithoutAViewStartsWhatRanOfItsLastOne(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	p := placement("shop-web-1", "run")
	c.want(p)
	a := c.startAgent(dir)
	s := c.awaitState(p.Instance, kbroker.StateReady)
	a.stop()
	kill(t, s.PID, unix.SIGKILL)
	awaitDead(t, 5*time.Second, s.PID)
	c.mu.Lock()
	c.hash = "incomplete"
	c.mu.Unlock()
	c.quietly(p, placement("shop-web-2", "run"))
	c.forgetStatuses()
	c.startAgent(dir)
	c.awaitState(p.Instance, kbroker.StateReady)
	if s := c.status("shop-web-2"); s.State != "" {
		t.Errorf("an instance of an incomplete view: %+v", s)
	}
}

func TestAReusedPidIsNeverSignalled(t *testing.T) {
	t.Parallel()
	for name, forge := range map[string]func(*record, procStat){
		"the start time is another":          func(r *record, f procStat) { r.procID = f.procID; r.Start++ },
		"the machine has booted since":       func(r *record, f procStat) { r.procID = f.procID; r.BootID = "another boot" },
		"the recorded process ended already": func(r *record, f procStat) { r.procID = f.procID; r.Exit = &kbroker.Exit{Unknown: true} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, dir := newCore(t), t.TempDir()
			p := placement("shop-web-1", "run")
			c.want(p)
			a := c.startAgent(dir)
			s := c.awaitState(p.Instance, kbroker.StateReady)
			a.stop()
			kill(t, s.PID, unix.SIGKILL)
			awaitDead(t, 5*time.Second, s.PID)
			victim := foreign(t)
			a.changeRecord(p.Instance, func(r *record) { forge(r, victim) })
			c.forgetStatuses()
			c.startAgent(dir)
			now := c.awaitState(p.Instance, kbroker.StateReady)
			if now.PID == victim.PID {
				t.Error("a foreign process was adopted")
			}
			c.want(tombstone(p))
			c.awaitState(p.Instance, kbroker.StateExited)
			if !alive(victim.PID) {
				t.Error("a foreign process was killed")
			}
		})
	}
}

func TestASecondProcessOfAnInstanceIsEnded(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	p := placement("shop-web-1", "run")
	c.want(p)
	a := c.startAgent(dir)
	s := c.awaitState(p.Instance, kbroker.StateReady)
	stray := foreign(t, envHostDir+"="+a.cfg.Dir.Path, envIncarnation+"=shop-web-1.0", envInstance+"="+instancePath(a.home(p.Instance)))
	other := foreign(t, envHostDir+"="+a.cfg.Dir.Path+"-other", envIncarnation+"=shop-web-1.0")
	awaitDead(t, 3*janitorEvery, stray.PID)
	if !alive(s.PID) || !alive(other.PID) {
		t.Errorf("alive: the instance %t, that of another directory %t", alive(s.PID), alive(other.PID))
	}
}

func TestStraysAreNotKinOfKnownInstances(t *testing.T) {
	mark := func(pid, group, session int, inc kbroker.Incarnation) marked {
		return marked{procStat: procStat{procID: procID{PID: pid, Start: 1}, State: 'S', Group: group, Session: session}, HostDir: "/d", Incarnation: inc}
	}
	all := []marked{
		mark(1000010, 1000010, 7, "a.1"),       // a known instance, in its agent's session
		mark(1000011, 1000010, 7, "old.1"),     // in its group
		mark(1000012, 1000012, 1000012, "a.1"), // its daemon
		mark(1000013, 1000013, 1000012, "b.1"), // in that daemon's session
		mark(1000014, 1000014, 7, "b.1"),       // only shares the agent's session
		mark(1000015, 1000015, 7, ""),          // says nothing
	}
	var got []int
	for _, m := range strays(all, "/d", map[kbroker.Incarnation]bool{"a.1": true}) {
		got = append(got, m.PID)
	}
	if fmt.Sprint(got) != "[1000014]" {
		t.Errorf("strays %v, want 1000014", got)
	}
	if n := len(strays(all, "/other", nil)); n != 0 {
		t.Errorf("%d strays of another directory", n)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "family")
	c.want(p)
	a := c.startAgent(t.TempDir())
	c.awaitState(p.Instance, kbroker.StateReady)
	var child, daemon int
	if _, err := fmt.Sscan(a.noted(p.Instance), &child, &daemon); err != nil {
		t.Fatal(err)
	}
	c.want(tombstone(p))
	c.awaitState(p.Instance, kbroker.StateExited)
	wait.Until(t, 5*janitorEvery, func() error {
		for _, pid := range []int{child, daemon} {
			if s, err := readStat(pid); err == nil && s.Parent == os.Getpid() {
				return fmt.Errorf("process %d is in the process table in state %c", pid, s.State)
			}
		}
		return nil
	})
}

// TestAProcessOfAnotherUserIsNobodysInstance, whatever its environment says: it could be
// anybody's who wants to be taken for an instance whose record is lost.
func TestAProcessOfAnotherUserIsNobodysInstance(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	c.want(placement("shop-web-2", "run"))
	a := c.startAgent(dir)
	c.awaitState("shop-web-2", kbroker.StateReady)
	a.stop()
	home := a.home("shop-web-1")
	if err := os.MkdirAll(filepath.Join(home, runDir), 0o700); err != nil {
		t.Fatal(err)
	}
	b, other := c.startAgent(dir), foreign(t, envHostDir+"="+a.cfg.Dir.Path, envIncarnation+"=shop-web-1.ff", envInstance+"="+instancePath(home), envEpoch+"=9")
	m := marked{procStat: other, HostDir: a.cfg.Dir.Path, Incarnation: "shop-web-1.ff", InstanceFile: instancePath(home), Epoch: 9}
	own := m
	own.User = b.contain.users.of(keyOfHome(home))
	if _, id, ok := b.rebuild(home, []marked{m}, kbroker.Placement{}); ok {
		t.Errorf("process %d of root is taken for the instance", id.PID)
	}
	if _, id, ok := b.rebuild(home, []marked{m, own}, kbroker.Placement{}); !ok || id != own.procID {
		t.Errorf("process %d of its own user is taken for the instance: %t", id.PID, ok)
	}
}
