package agent

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
)

// damages are the ways in which a file comes to be another one.
var damages = map[string]func(path string, b []byte, random *rand.Rand) error{
	"empty": func(path string, _ []byte, _ *rand.Rand) error { return os.Truncate(path, 0) },
	"half":  func(path string, b []byte, _ *rand.Rand) error { return os.Truncate(path, int64(len(b)/2)) },
	"other bytes": func(path string, b []byte, random *rand.Rand) error {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return os.WriteFile(path, b, 0o600)
	},
	"one bit": func(path string, b []byte, random *rand.Rand) error {
		if len(b) > 0 {
			b[random.IntN(len(b))] ^= 1 << random.IntN(8)
		}
		return os.WriteFile(path, b, 0o600)
	},
	"gone": func(path string, _ []byte, _ *rand.Rand) error { return os.Remove(path) },
	"a directory": func(path string, _ []byte, _ *rand.Rand) error {
		return errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "in"), 0o700))
	},
	"nobody's": func(path string, _ []byte, _ *rand.Rand) error {
		if os.Getuid() != 0 {
			return os.Chmod(path, 0)
		}
		return errors.Join(os.Chown(path, 65534, 65534), os.Chmod(path, 0))
	},
}

// damage does so to all files of a directory but what instances have in their own
// directories, and returns which.
func damage(t *testing.T, dir, how string, random *rand.Rand) (damaged []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == workDir || d.Name() == tempDir):
			return fs.SkipDir
		case d.Type().IsRegular():
			damaged = append(damaged, strings.TrimPrefix(path, dir+"/"))
		}
		return nil
	})
	for _, name := range damaged {
		path := filepath.Join(dir, name)
		b, readErr := os.ReadFile(path)
		err = errors.Join(err, readErr, damages[how](path, b, random))
	}
	if err != nil {
		t.Fatal(err)
	}
	return damaged
}

// TestDamageRestartsNothing: whatever becomes of all files of an agent that is dead,
// the next one works, with the processes that run, and the state is what runs.
func TestDamageRestartsNothing(t *testing.T) {
	t.Parallel()
	for how := range damages {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			c, dir := newCore(t), t.TempDir()
			p, q := placement("shop-web-1", "answer"), placement("shop-web-2", "run")
			p.Spec.Health.Ready, p.Epoch, q.Epoch = kbroker.HealthSDK, 3, 4
			c.want(p, q)
			a := c.startAgent(dir)
			was := map[kbroker.InstanceID]kbroker.Status{
				p.Instance: c.awaitState(p.Instance, kbroker.StateReady), q.Instance: c.awaitState(q.Instance, kbroker.StateReady),
			}
			for round := range 2 { // also what was made anew
				a.stop()
				damaged := damage(t, dir, how, random)
				for _, must := range []string{agentFile, lockFile, viewFile, recordFile, instanceFile, outputFile} {
					if round == 0 && !strings.Contains(strings.Join(damaged, " "), must) {
						t.Errorf("damaged are %v, without %s", damaged, must)
					}
				}
				c.forgetStatuses()
				began := time.Now()
				a = c.startAgent(dir)
				for i, before := range was {
					now := c.awaitState(i, kbroker.StateReady)
					if now.PID != before.PID || now.Incarnation != before.Incarnation || now.Restarts != 0 || now.Epoch != before.Epoch {
						t.Errorf("round %d: %s is %+v, was %+v", round, i, now, before)
					}
				}
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("round %d: the state was right after %v, want 10s", round, took)
				}
			}
			// It goes on as if nothing had been.
			kill(t, was[q.Instance].PID, unix.SIGKILL)
			c.await(q.Instance, 5*time.Second, "a restart", func(s kbroker.Status) bool {
				return s.State == kbroker.StateReady && s.PID != was[q.Instance].PID
			})
			c.want(tombstone(p), tombstone(q))
			c.awaitState(p.Instance, kbroker.StateExited)
			if alive(was[p.Instance].PID) {
				t.Error("a tombstone was confirmed, and the process lives")
			}
		})
	}
}

// TestFilesInThePlaceOfDirectories of an agent are put aside.
func TestFilesInThePlaceOfDirectories(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	for _, name := range []string{instancesDir, artifactsDir, overDir} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := placement("shop-web-1", "run")
	c.want(p)
	a := c.startAgent(dir)
	s := c.awaitState(p.Instance, kbroker.StateReady)
	a.stop()
	kill(t, s.PID, unix.SIGKILL)
	awaitDead(t, 5*time.Second, s.PID)
	for _, name := range []string{workDir, tempDir} {
		path := filepath.Join(a.home(p.Instance), name)
		if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	c.forgetStatuses()
	b := c.startAgent(dir)
	c.awaitState(p.Instance, kbroker.StateReady)
	b.stop()
	home := b.home(p.Instance)
	if err := errors.Join(os.Rename(home, home+".away"), os.WriteFile(home, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	c.forgetStatuses()
	c.startAgent(dir)
	c.awaitState(p.Instance, kbroker.StateReady)
}

// TestAForgedRecordNamesNobody: its digest is right, and its process is not of this
// host, or of another instance: it is neither adopted nor signalled.
func TestAForgedRecordNamesNobody(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]func(a *running, r record) []string{
		"a process that says nothing": func(*running, record) []string { return nil },
		"one of another directory": func(a *running, r record) []string {
			return []string{envHostDir + "=" + a.cfg.Dir.Path + "-other", envIncarnation + "=" + string(r.Incarnation)}
		},
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
			var victim procStat
			a.changeRecord(p.Instance, func(r *record) {
				victim = foreign(t, env(a, *r)...)
				r.procID = victim.procID
			})
			c.forgetStatuses()
			b := c.startAgent(dir)
			if now := c.awaitState(p.Instance, kbroker.StateReady); now.PID == victim.PID {
				t.Error("a foreign process was adopted")
			}
			c.want(tombstone(p))
			c.awaitState(p.Instance, kbroker.StateExited)
			b.stop()
			b.changeRecord(p.Instance, func(r *record) { r.procID, r.Exit = victim.procID, nil })
			if _, err := Sweep(t.Context(), dir, 0); err != nil {
				t.Fatal(err)
			}
			if !alive(victim.PID) {
				t.Error("a foreign process was killed")
			}
		})
	}
}
