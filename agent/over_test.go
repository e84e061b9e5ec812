package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	account, err := nkeys.CreateAccount()
	if err != nil {
		c.t.Fatal(err)
	}
	c.subscribe(subjects.AllSigns, func(m *nats.Msg) {
		var r kbroker.SignRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			panic(err)
		}
		claims := jwt.NewUserClaims(r.Key)
		claims.Name, claims.Expires = string(r.Incarnation), time.Now().Add(time.Hour).Unix()
		signed, err := claims.Encode(account)
		if err != nil {
			panic(err)
		}
		_ = respond(m, kbroker.SignReply{Credential: signed}, nil)
	})
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
		own, err := credential.Load(filepath.Join(r.home(i), credsFile))
		if err != nil {
			return err
		}
		var rec record
		if err := loadSealed(filepath.Join(r.home(i), recordFile), &rec); err != nil {
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
				if _, err := os.Stat(filepath.Join(a.home(id), credsFile)); !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("its credential is still there: %v", err)
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
			own, err := credential.Load(filepath.Join(b.home(id), credsFile))
			if err == nil && own.JWT() != signed && slices.Contains(c.heardEnded(), own.JWT()) {
				t.Error("the end of the start that runs was said, too")
			}
			wait.Until(t, 5*time.Second, func() error {
				if left, err := os.ReadDir(filepath.Join(dir, overDir)); len(left) > 0 {
					return fmt.Errorf("%d credentials are kept that were taken back: %v", len(left), err)
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
		a.reporter.mu.Lock()
		defer a.reporter.mu.Unlock()
		if len(a.reporter.back) != 1 {
			return fmt.Errorf("%d credentials are known to be taken back, %d are not", len(a.reporter.back), len(a.reporter.over))
		}
		return nil
	})
	again := placement(id, "run")
	again.Epoch = 3
	c.want(again)
	second, _ := a.awaitSigned(id, signed)
	c.await(id, 10*time.Second, "a report of the second start", func(s kbroker.Status) bool { return s.Credential == second })
	if heard := c.heardEnded(); len(heard) != 1 {
		t.Errorf("%d ends were said, want one", len(heard))
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
