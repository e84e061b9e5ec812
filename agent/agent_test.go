package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func TestAnInstanceStartsGetsReadyAndIsReported(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	c.number = 41 // an earlier process of this host has reported
	p := placement("shop-web-1", "answer")
	p.Spec.Health = kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthSDK, Interval: 50 * time.Millisecond}}
	p.Spec.Objects, p.ObjectStreams = []kbroker.KindName{"account", "rate"}, 4
	p.Spec.Schemas = map[kbroker.KindName]kbroker.Schema{"account": {Number: 3, Lowest: 1}}
	p.WriteSchemas = map[kbroker.KindName]int{"account": 2}
	p.Spec.Resources.MemoryLimitBytes = 512 << 20
	c.want(p)
	a := c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateReady)
	if s.PID <= 0 || s.Epoch != 1 || s.Version != 1 || s.Restarts != 0 || s.StartedAt.IsZero() ||
		!strings.HasPrefix(string(s.Incarnation), string(p.Instance)+".") || s.Host != testHost || s.App != "shop" || s.Service != "web" {
		t.Errorf("status %+v", s)
	}
	c.mu.Lock()
	history, refused, beats := slices.Clone(c.history[p.Instance]), c.refused, slices.Clone(c.beats)
	c.mu.Unlock()
	for _, state := range history[:slices.Index(history, kbroker.StateReady)] {
		if state != kbroker.StateStarting && state != kbroker.StateRunning {
			t.Errorf("states %v, want only starting and running before ready", history)
		}
	}
	if refused != 1 {
		t.Errorf("%d reports refused, want 1: the first has number 1, the next exceeds what the core said", refused)
	}
	if len(beats) == 0 || beats[0].Host != testHost || beats[0].PID != os.Getpid() || beats[0].Process != a.cfg.Dir.Process {
		t.Errorf("heartbeats %+v", beats)
	}
	var f kbroker.InstanceFile
	b, err := os.ReadFile(instancePath(a.home(p.Instance)))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil || f.Incarnation != s.Incarnation || f.Host != testHost || len(f.Servers) == 0 || f.Servers[0] != c.srv.URL ||
		!slices.Equal(f.Objects, p.Spec.Objects) || f.ObjectStreams != 4 {
		t.Errorf("instance file %s: %v", b, err)
	}
	limit := map[bool]int64{true: 512 << 20}[a.contain.can.Memory] // that the host enforces
	if !maps.Equal(f.Schemas, p.Spec.Schemas) || !maps.Equal(f.WriteSchemas, p.WriteSchemas) || f.MemoryLimitBytes != limit {
		t.Errorf("instance file %s, want a limit of %d", b, limit)
	}

	// It says that it is not ready, and nobody kills it.
	sick := filepath.Join(a.home(p.Instance), workDir, "sick")
	if err := os.WriteFile(sick, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.awaitState(p.Instance, kbroker.StateRunning)
	if err := os.Remove(sick); err != nil {
		t.Fatal(err)
	}
	if again := c.awaitState(p.Instance, kbroker.StateReady); again.PID != s.PID {
		t.Errorf("pid %d, was %d", again.PID, s.PID)
	}
}

func TestAnInstanceSeesOnlyWhatItIsGiven(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "look")
	p.Spec.Args = []string{"--extra"}
	p.Spec.Env = map[string]string{"LOG": "info", "TMPDIR": "/var/empty", envIncarnation: "forged"}
	c.want(p)
	// A file that the agent itself was handed without close-on-exec.
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	a := c.startAgent(t.TempDir())
	var out string
	wait.Until(t, 10*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(a.home(p.Instance), outputFile))
		if out = string(b); err != nil || !strings.Contains(out, "looked\n") {
			return fmt.Errorf("output %q: %v", out, err)
		}
		return nil
	})
	home := a.home(p.Instance)
	inc := c.awaitState(p.Instance, kbroker.StateReady).Incarnation
	for _, want := range []string{
		"fd 0 /dev/null", "fd 1 " + filepath.Join(home, outputFile), "fd 2 " + filepath.Join(home, outputFile),
		"wd " + filepath.Join(home, workDir) + " <nil>", "group true", "LOG=info", "TMPDIR=/var/empty",
		"HOME=" + filepath.Join(home, workDir), envIncarnation + "=" + string(inc), envHostDir + "=" + a.cfg.Dir.Path,
		envInstance + "=" + instancePath(home), envEpoch + "=1",
	} {
		if !strings.Contains(out, want+"\n") && !strings.Contains(out, want+" ") {
			t.Errorf("output has no %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "pipe:") {
		t.Errorf("a file of the agent reached the instance:\n%s", out)
	}
	allowed := []string{"PATH", "HOME", "TMPDIR", "LOG", envInstance, envIncarnation, envHostDir, envEpoch, envApp, envService, envInstanceName, envHost, envHostAddress}
	for line := range strings.Lines(out[strings.Index(out, "group true\n")+len("group true\n"):]) {
		if name, _, ok := strings.Cut(line, "="); ok && !slices.Contains(allowed, name) {
			t.Errorf("the environment has %s", line)
		}
	}
	if info, err := os.Stat(instancePath(home)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("instance file: %v %v", info, err)
	}
}

func TestACrashIsFollowedByARestartAtOnceThenByBackoff(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "run")
	c.want(p)
	c.startAgent(t.TempDir())
	first := c.awaitState(p.Instance, kbroker.StateReady)
	kill(t, first.PID, unix.SIGKILL)
	second := c.await(p.Instance, time.Second, "a restart", func(s kbroker.Status) bool {
		return s.State == kbroker.StateReady && s.PID != first.PID
	})
	if second.Restarts != 1 || second.Crashes != 1 || second.Exit == nil || second.Exit.Signal != "SIGKILL" || second.Incarnation == first.Incarnation {
		t.Errorf("status after a crash %+v, exit %+v", second, second.Exit)
	}
	kill(t, second.PID, unix.SIGKILL)
	c.awaitState(p.Instance, kbroker.StateBackoff)
	third := c.await(p.Instance, 3*time.Second, "a second restart", func(s kbroker.Status) bool {
		return s.State == kbroker.StateReady && s.PID != second.PID
	})
	if third.Restarts != 2 || third.Crashes != 2 || !strings.HasPrefix(third.Message, "ended by SIGKILL") {
		t.Errorf("status after a second crash %+v", third)
	}
}

func TestACrashLoopIsReportedWithItsOutput(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "fail")
	p.Backoff = 6 // it crashed elsewhere before
	c.want(p)
	c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateBackoff)
	if s.Crashes != 7 || s.Exit == nil || s.Exit.Code == nil || *s.Exit.Code != 3 || s.PID != 0 || !strings.HasPrefix(s.Message, "exit code 3: ") || !strings.HasSuffix(s.Message, "boom") {
		t.Errorf("status %+v, exit %+v", s, s.Exit)
	}
}

func TestATombstoneIsConfirmedAndThenForgotten(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p, other := placement("shop-web-1", "run"), placement("shop-web-2", "run")
	never := tombstone(placement("shop-web-3", "run"))
	c.want(p, other, never)
	a := c.startAgent(t.TempDir())
	s, o := c.awaitState(p.Instance, kbroker.StateReady), c.awaitState(other.Instance, kbroker.StateReady)
	if s := c.awaitState(never.Instance, kbroker.StateExited); s.Epoch != never.Epoch {
		t.Errorf("a tombstone for what never ran is confirmed with epoch %d, want %d", s.Epoch, never.Epoch)
	}
	c.want(tombstone(p), other)
	done := c.awaitState(p.Instance, kbroker.StateExited)
	if done.Epoch != 2 || done.PID != 0 || done.Exit == nil || done.Exit.Signal != "SIGTERM" || alive(s.PID) {
		t.Errorf("after a tombstone %+v, exit %+v, alive %t", done, done.Exit, alive(s.PID))
	}
	c.awaitGone(never.Instance)
	c.want(other)
	c.awaitGone(p.Instance)
	wait.Until(t, 5*time.Second, func() error {
		_, err := os.Stat(filepath.Join(a.home(p.Instance), workDir))
		if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("work directory: %v", err)
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(a.home(p.Instance), outputFile)); err != nil {
		t.Errorf("the output of an ended instance: %v", err)
	}
	if now := c.status(other.Instance); now.PID != o.PID || now.State != kbroker.StateReady {
		t.Errorf("another instance was touched: %+v", now)
	}
}

func TestWhoIgnoresSIGTERMIsKilledAfterTheGraceWithItsDescendants(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p, family := placement("shop-web-1", "stubborn"), placement("shop-web-2", "family")
	p.Spec.Stop.Grace = 300 * time.Millisecond
	c.want(p, family)
	a := c.startAgent(t.TempDir())
	s, f := c.awaitState(p.Instance, kbroker.StateReady), c.awaitState(family.Instance, kbroker.StateReady)
	a.noted(p.Instance) // SIGTERM is ignored from here on
	var child, daemon int
	if _, err := fmt.Sscan(a.noted(family.Instance), &child, &daemon); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.want(tombstone(p), tombstone(family))
	c.awaitState(p.Instance, kbroker.StateDraining)
	done := c.awaitState(p.Instance, kbroker.StateExited)
	if took := time.Since(began); took < p.Spec.Stop.Grace || done.Exit == nil || done.Exit.Signal != "SIGKILL" {
		t.Errorf("ended after %v by %+v, want SIGKILL after %v", took, done.Exit, p.Spec.Stop.Grace)
	}
	c.awaitState(family.Instance, kbroker.StateExited)
	for _, pid := range []int{s.PID, f.PID, child, daemon} {
		if alive(pid) {
			t.Errorf("process %d of a stopped instance lives", pid)
		}
	}
}

func TestDescendantsOfACrashedProcessAreKilled(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "family")
	c.want(p)
	a := c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateReady)
	var child, daemon int
	if _, err := fmt.Sscan(a.noted(p.Instance), &child, &daemon); err != nil {
		t.Fatal(err)
	}
	kill(t, s.PID, unix.SIGKILL)
	awaitDead(t, 5*time.Second, child, daemon)
}

func TestAnIncompleteViewChangesNothing(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "run")
	c.want(p)
	c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateReady)
	c.mu.Lock()
	c.hash = kbroker.PlacementsHash([]kbroker.Placement{p}) // the head has what the reply lacks
	c.mu.Unlock()
	c.want()
	c.rounds(3)
	if now := c.status(p.Instance); now.PID != s.PID || now.State != kbroker.StateReady || !alive(s.PID) {
		t.Fatalf("an incomplete view was acted on: %+v", now)
	}
	c.mu.Lock()
	c.hash = ""
	c.mu.Unlock()
	c.awaitGone(p.Instance) // the same placements, with their own head, are the truth
	if alive(s.PID) {
		t.Error("an instance that a complete view does not have runs on")
	}
}

func TestAVersionAloneRestartsNothingAndANewEpochDoes(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "run")
	c.want(p)
	c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateReady)
	p.Version = 2
	c.want(p)
	updated := c.await(p.Instance, 5*time.Second, "version 2", func(s kbroker.Status) bool { return s.Version == 2 })
	if updated.PID != s.PID || updated.State != kbroker.StateReady {
		t.Errorf("an update in place %+v, pid was %d", updated, s.PID)
	}
	p.Epoch = 5
	c.want(p)
	replaced := c.await(p.Instance, 5*time.Second, "epoch 5", func(s kbroker.Status) bool { return s.Epoch == 5 && s.State == kbroker.StateReady })
	if replaced.PID == s.PID || replaced.Restarts != 0 || alive(s.PID) {
		t.Errorf("a newer epoch %+v, pid was %d", replaced, s.PID)
	}
}

func TestALostChangeMessageIsNoticedByTheHeartbeat(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "run")
	c.want(p)
	c.startAgent(t.TempDir())
	c.awaitState(p.Instance, kbroker.StateReady)
	second := placement("shop-web-2", "run")
	c.quietly(p, second)
	c.awaitState(second.Instance, kbroker.StateReady)
}

// The SDK sees a tombstone too, and may leave before the agent has seen it.
func TestAnInstanceThatLeftByItselfIsNotRestartedBeforeItsTombstoneIsSeen(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "polite")
	c.want(p)
	a := c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateReady)
	a.noted(p.Instance)
	p.Stop, p.Epoch = true, 2
	c.quietly(p)
	kill(t, s.PID, unix.SIGTERM)
	c.awaitState(p.Instance, kbroker.StateExited)
	c.mu.Lock()
	defer c.mu.Unlock()
	after := c.history[p.Instance][slices.Index(c.history[p.Instance], kbroker.StateReady):]
	if slices.Contains(after, kbroker.StateStarting) || slices.Contains(after, kbroker.StateRunning) {
		t.Errorf("states %v after it left by itself, want no further start", after)
	}
}

func TestWithoutTheBusCrashedInstancesAreRestarted(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "stubborn")
	c.want(p)
	a := c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateReady)
	a.noted(p.Instance)
	c.srv.Shutdown()
	if err := os.Remove(filepath.Join(a.home(p.Instance), workDir, "note")); err != nil {
		t.Fatal(err)
	}
	kill(t, s.PID, unix.SIGKILL)
	a.noted(p.Instance)
}

func TestLogsAreServed(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "run")
	c.want(p)
	c.startAgent(t.TempDir())
	c.awaitState(p.Instance, kbroker.StateReady)
	wait.Until(t, 5*time.Second, func() error {
		var r kbroker.LogReply
		err := request(t.Context(), c.conn, subjects.Host(testHost, subjects.VerbLogs, p.Tenant), kbroker.LogRequest{Instance: p.Instance}, &r)
		if err != nil || string(r.Data) != "this is run\n" || r.Next != int64(len(r.Data)) {
			return fmt.Errorf("%+v %w", r, err)
		}
		return nil
	})
	for name, want := range map[kbroker.InstanceID]kbroker.Code{"shop-web-9": kbroker.NotFound, "../../../etc": kbroker.Invalid, "": kbroker.Invalid} {
		err := request(t.Context(), c.conn, subjects.Host(testHost, subjects.VerbLogs, p.Tenant), kbroker.LogRequest{Instance: name}, &kbroker.LogReply{})
		if !errors.Is(err, want) {
			t.Errorf("logs of %q: %v, want %s", name, err, want)
		}
	}
}

// TestAHostThatWasRemovedHearsIt in the answer to its heartbeat; what runs is
// left to Sweep.
func TestAHostThatWasRemovedHearsIt(t *testing.T) {
	c := newCore(t)
	a, release := c.newAgent(t.TempDir())
	defer release()
	beat := make(chan error, 1)
	go func() { beat <- a.Beat(t.Context()) }()
	wait.Until(t, 5*time.Second, func() error {
		if a.Cores() == nil {
			return errors.New("no answer was heard")
		}
		return nil
	})
	select {
	case err := <-beat:
		t.Fatalf("a member's heartbeat ended with %v", err)
	default:
	}
	c.mu.Lock()
	c.removed = true
	c.mu.Unlock()
	select {
	case err := <-beat:
		if !errors.Is(err, ErrRemoved) {
			t.Errorf("the heartbeat ended with %v, want %v", err, ErrRemoved)
		}
	case <-time.After(10 * time.Second):
		t.Error("the heartbeat goes on")
	}
}
