package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// signs has the core sign what it is asked for, for an hour.
func (c *core) signs() {
	c.t.Helper()
	c.signsIf(func() error { return nil })
}

// signsIf has it sign what it does not refuse.
func (c *core) signsIf(refuse func() error) {
	c.t.Helper()
	c.subscribe(subjects.AllSigns, func(m *nats.Msg) {
		var r kbroker.SignRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			panic(err)
		}
		if err := refuse(); err != nil {
			_ = respond(m, nil, err)
			return
		}
		_ = respond(m, kbroker.SignReply{Credential: c.sign(r.Key, string(r.Incarnation), time.Hour)}, nil)
	})
}

// sign is what an account has signed for a key, of a cluster of its own.
func (c *core) sign(key, name string, life time.Duration) string {
	account, err := nkeys.CreateAccount()
	if err != nil {
		panic(err)
	}
	claims := jwt.NewUserClaims(key)
	claims.Name, claims.Expires = name, time.Now().Add(life).Unix()
	signed, err := claims.Encode(account)
	if err != nil {
		panic(err)
	}
	return signed
}

func (c *core) setDeaf(deaf bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deaf = deaf
}

func (c *core) heardEnded() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ended)
}

// awaitSigned waits until a start that is not was has a credential and a process.
func (r *running) awaitSigned(i kbroker.InstanceID, was string) (signed string, pid int) {
	r.t.Helper()
	wait.Until(r.t, 10*time.Second, func() error {
		var rec record
		if err := loadSealed(filepath.Join(r.home(i), recordFile), &rec); err != nil {
			return err
		}
		own, err := credential.Load(credsPath(r.home(i), rec.Incarnation))
		if err != nil {
			return err
		}
		signed, pid = own.JWT(), rec.PID
		if signed == "" || signed == was || pid == 0 {
			return fmt.Errorf("process %d, signed %t", pid, signed != "")
		}
		return nil
	})
	return signed, pid
}

func (c *core) awaitEnded(want ...string) {
	c.t.Helper()
	wait.Until(c.t, 10*time.Second, func() error {
		heard := c.heardEnded()
		for _, signed := range want {
			if !slices.Contains(heard, signed) {
				return fmt.Errorf("%d ends were heard, and one is missing", len(heard))
			}
		}
		return nil
	})
}

// TestTheEndOfAStartIsSaidUntilItIsHeard, by whatever agent: that one was killed between
// the end of a process and its report loses nothing.
func TestTheEndOfAStartIsSaidUntilItIsHeard(t *testing.T) {
	t.Parallel()
	const id = kbroker.InstanceID("shop-web-1")
	for name, end := range map[string]func(c *core, a *running, signed string, pid int){
		"it has not been started again": func(c *core, a *running, _ string, pid int) {
			c.quietly() // and the next agent hears only of a tombstone
			c.want(tombstone(placement(id, "run")))
			awaitDead(a.t, 10*time.Second, pid)
			wait.Until(a.t, 5*time.Second, func() error {
				var rec record
				if err := loadSealed(filepath.Join(a.home(id), recordFile), &rec); err != nil {
					return err
				}
				if !rec.Stopped {
					return errors.New("its end is not on record")
				}
				return nil
			})
			a.stop()
		},
		"it was started again": func(_ *core, a *running, signed string, pid int) {
			kill(a.t, pid, unix.SIGKILL)
			a.awaitSigned(id, signed)
			a.stop()
		},
		"nothing is left of it": func(c *core, a *running, _ string, pid int) {
			c.want()
			awaitDead(a.t, 10*time.Second, pid)
			wait.Until(a.t, 5*time.Second, func() error {
				if left := credsIn(a.home(id)); len(left) > 0 {
					return fmt.Errorf("its credential is still there: %v", left)
				}
				return nil
			})
			a.stop()
		},
		"it ended while there was no agent": func(c *core, a *running, _ string, pid int) {
			a.stop()
			kill(a.t, pid, unix.SIGKILL)
			awaitDead(a.t, 5*time.Second, pid)
			c.quietly(tombstone(placement(id, "run")))
		},
		"it ended while there was no agent, and is wanted": func(_ *core, a *running, _ string, pid int) {
			a.stop()
			kill(a.t, pid, unix.SIGKILL)
			awaitDead(a.t, 5*time.Second, pid)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, dir := newCore(t), t.TempDir()
			c.signs()
			c.want(placement(id, "run"))
			a := c.startAgent(dir)
			signed, pid := a.awaitSigned(id, "")
			c.setDeaf(true)
			end(c, a, signed, pid)
			if heard := c.heardEnded(); len(heard) != 0 {
				t.Fatalf("heard while nobody listened: %d", len(heard))
			}
			c.setDeaf(false)
			b := c.startAgent(dir)
			c.awaitEnded(signed)
			wait.Until(t, 5*time.Second, func() error {
				if left, err := os.ReadDir(filepath.Join(dir, overDir)); len(left) > 0 {
					return fmt.Errorf("%d credentials are kept that were taken back: %v", len(left), err)
				}
				for _, path := range credsIn(b.home(id)) {
					own, err := credential.Load(path)
					if err != nil {
						return err
					}
					if own.JWT() == signed {
						return fmt.Errorf("%s was taken back, and is there", path)
					}
					if own.IsSigned() && slices.Contains(c.heardEnded(), own.JWT()) {
						t.Error("the end of the start that runs was said, too")
					}
				}
				return nil
			})
		})
	}
}

// TestAnEndThatWasHeardIsNotSaidAgain by the next start, nor kept.
func TestAnEndThatWasHeardIsNotSaidAgain(t *testing.T) {
	t.Parallel()
	const id = kbroker.InstanceID("shop-web-1")
	c, dir := newCore(t), t.TempDir()
	c.signs()
	c.want(placement(id, "run"))
	a := c.startAgent(dir)
	c.awaitState(id, kbroker.StateReady)
	signed, _ := a.awaitSigned(id, "")
	c.want(tombstone(placement(id, "run")))
	c.awaitEnded(signed)
	wait.Until(t, 5*time.Second, func() error { // the agent knows, too
		if left := credsIn(a.home(id)); len(left) > 0 {
			return fmt.Errorf("what was taken back is left: %v", left)
		}
		return nil
	})
	heard := len(c.heardEnded()) // one whose answer came late is said twice
	again := placement(id, "run")
	again.Epoch = 3
	c.want(again)
	second, _ := a.awaitSigned(id, signed)
	c.await(id, 10*time.Second, "a report of the second start", func(s kbroker.Status) bool { return s.Credential == second })
	if now := len(c.heardEnded()); now != heard {
		t.Errorf("%d ends were said, %d when the first start was over", now, heard)
	}
	if left, err := os.ReadDir(filepath.Join(dir, overDir)); len(left) > 0 {
		t.Errorf("%d credentials are kept: %v", len(left), err)
	}
}

// TestAStatusHasTheCredentialOfItsStart, as it was signed first: by it the cores know
// what to take back when the host is gone.
func TestAStatusHasTheCredentialOfItsStart(t *testing.T) {
	t.Parallel()
	const id = kbroker.InstanceID("shop-web-1")
	c, dir := newCore(t), t.TempDir()
	c.want(placement(id, "run"))
	a := c.startAgent(dir)
	if s := c.awaitState(id, kbroker.StateReady); s.Credential != "" {
		t.Errorf("its status has a credential that nobody has signed: %q", s.Credential)
	}
	c.signs()
	signed, pid := a.awaitSigned(id, "")
	with := func(signed string) func(kbroker.Status) bool {
		return func(s kbroker.Status) bool { return s.Credential == signed && s.PID != 0 }
	}
	c.await(id, 10*time.Second, "its credential", with(signed))
	a.stop()
	c.forgetStatuses()
	b := c.startAgent(dir) // which adopts it
	c.await(id, 10*time.Second, "its credential, of the next agent", with(signed))
	kill(t, pid, unix.SIGKILL)
	second, _ := b.awaitSigned(id, signed)
	c.await(id, 10*time.Second, "that of the next start", with(second))
	c.want(tombstone(placement(id, "run")))
	if s := c.awaitState(id, kbroker.StateExited); s.Credential != "" {
		t.Errorf("the status of what has ended has a credential: %q", s.Credential)
	}
	if heard := c.heardEnded(); !slices.Contains(heard, signed) || !slices.Contains(heard, second) {
		t.Errorf("%d ends were said, want both", len(heard))
	}
}

// TestEachStartHasAFileOfItsOwn: who is late for the start before cannot overwrite that of
// the next one, nor make one again that was taken back.
func TestEachStartHasAFileOfItsOwn(t *testing.T) {
	t.Parallel()
	const id = kbroker.InstanceID("shop-web-1")
	c, dir := newCore(t), t.TempDir()
	c.signs()
	c.want(placement(id, "run"))
	a := c.startAgent(dir)
	first, pid := a.awaitSigned(id, "")
	paths := credsIn(a.home(id))
	if len(paths) != 1 {
		t.Fatalf("the first start has %v", paths)
	}
	late, err := credential.Keep(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	kill(t, pid, unix.SIGKILL)
	second, _ := a.awaitSigned(id, first)
	c.awaitEnded(first)
	wait.Until(t, 5*time.Second, func() error {
		if _, err := os.Stat(paths[0]); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("what was taken back is left: %v", err)
		}
		return nil
	})
	if err := errors.Join(late.Take(c.sign(late.Look().Key(), "late", 2*time.Hour)), late.Save()); err != nil {
		t.Fatal(err)
	}
	now := credsIn(a.home(id))
	if len(now) != 1 || now[0] == paths[0] {
		t.Fatalf("after a late signature there are %v, before %v; want that of the second start", now, paths)
	}
	if own, err := credential.Load(now[0]); err != nil || own.JWT() != second {
		t.Errorf("the second start has another credential: %v", err)
	}
	var f kbroker.InstanceFile
	b, err := os.ReadFile(instancePath(a.home(id)))
	if err := errors.Join(err, json.Unmarshal(b, &f)); err != nil || f.Credential != now[0] {
		t.Errorf("the instance was told %q, %v; want %s", f.Credential, err, now[0])
	}
}

// TestACoreWithoutACopyIsAskedAgain: one that has just started knows no placement yet.
func TestACoreWithoutACopyIsAskedAgain(t *testing.T) {
	t.Parallel()
	const id, empty = kbroker.InstanceID("shop-web-1"), 5
	c, dir := newCore(t), t.TempDir()
	var asked atomic.Int32
	c.signsIf(func() error {
		if asked.Add(1) <= empty {
			return kbroker.Errorf(kbroker.NotFound, "instance %s is not placed, as far as this core knows", id)
		}
		return nil
	})
	c.want(placement(id, "run"))
	c.startAgent(dir).awaitSigned(id, "")
	if n := asked.Load(); n != empty+1 {
		t.Errorf("asked %d times, want %d", n, empty+1)
	}
}

// TestWhatIsNotWrittenIsWrittenLater, without being signed once more: a disk is full for a
// while.
func TestWhatIsNotWrittenIsWrittenLater(t *testing.T) {
	t.Parallel()
	const id = kbroker.InstanceID("shop-web-1")
	c, dir := newCore(t), t.TempDir()
	var asked atomic.Int32
	c.signsIf(func() error { asked.Add(1); return nil })
	a := &Agent{cfg: Config{Host: testHost, Conn: c.conn}, settler: &settler{dirty: make(chan struct{}, 1)}, reporter: &reporter{holds: map[kbroker.StatusKey]held{}}}
	path := filepath.Join(dir, "home", "start.creds")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	fresh, err := credential.New()
	if err := errors.Join(err, fresh.Save(path)); err != nil {
		t.Fatal(err)
	}
	own, err := credential.Keep(path)
	if err != nil {
		t.Fatal(err)
	}
	aside := filepath.Join(dir, "aside")
	if err := os.Rename(filepath.Dir(path), aside); err != nil { // stands for a disk that takes nothing
		t.Fatal(err)
	}
	r := record{Placement: placement(id, "run"), Incarnation: "shop-web-1.1"}
	for range 2 {
		if err := a.sign(t.Context(), r, own); err == nil {
			t.Fatal("nothing is said of what was not written")
		}
	}
	if err := os.Rename(aside, filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := a.sign(t.Context(), r, own); err != nil {
		t.Fatal(err)
	}
	if there, err := credential.Load(path); err != nil || !there.IsSigned() || asked.Load() != 1 {
		t.Errorf("signed %t, %v, asked %d times; want it written, and asked for once", there.IsSigned(), err, asked.Load())
	}
}

// TestAnInstanceCannotHideItsCredential by what it makes of its file, nor keep its
// directory from being removed.
func TestAnInstanceCannotHideItsCredential(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	c.signs()
	p := placement("shop-web-1", "run")
	c.want(p)
	a := c.startAgent(t.TempDir())
	signed, _ := a.awaitSigned(p.Instance, "")
	for _, path := range credsIn(a.home(p.Instance)) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		for _, socket := range []string{path, filepath.Join(filepath.Dir(path), "another"+credsSuffix)} {
			if err := unix.Mknod(socket, unix.S_IFSOCK|0o600, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.want(tombstone(p))
	c.awaitEnded(signed)
	c.want()
	wait.Until(t, 10*time.Second, func() error {
		_, err := os.Lstat(filepath.Join(a.home(p.Instance), workDir))
		if err == nil {
			return errors.New("its directory is left")
		}
		return nil
	})
}
