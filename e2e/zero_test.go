package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// wokenWithin is how long after the first request of a service that sleeps it is answered.
	wokenWithin = 3 * time.Second
	// sleeperDown is after how long without a request a sleeper has no instance any more.
	sleeperDown = 2 * time.Second
)

// TestScaledToZero: nobody who asks a service without an instance is told that there is none.
func TestScaledToZero(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	runs := shared(t)
	dir := t.TempDir()
	buildInto(t, dir, "sleeper", "./testdata/sleeper")
	path := filepath.Join(dir, "app.yaml")
	writeFile(t, path, fmt.Sprintf("name: sleeper\nservices:\n  sleeper:\n    run: sleeper\n    count: {min: 0, max: 4}\n    scale: {down: %v}\n    env: {RUNS: %s}\n", sleeperDown, runs), 0o600)
	c.must("deploy", path)
	c.must("allocator", "sleeper") // one is active
	c.sleeps()

	const n = 50
	var first noted
	c.startChild(noteJob, []string{"first", strconv.Itoa(n)}).report(&first)
	t.Logf("RESULT %d first requests of a service without an instance: answered after %v to %v, %d failed: %q", n, first.least(), first.most(), first.Failed, first.Errs)
	if first.Failed > 0 || first.least() > wokenWithin || len(first.Took) != n {
		t.Errorf("%d failed, and the first one was answered after %v, want %v", first.Failed, first.least(), wokenWithin)
	}
	answered := time.Now()
	c.sleeps()
	awake := time.Since(answered)
	t.Logf("it has no instance again %v later", awake.Round(100*time.Millisecond))

	// What a client sends that knows nothing of ours waits likewise.
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	c.must("context", "add", "mine", "--from", filepath.Join(c.dir, "h1"), "--use")
	c.must("context", "export", "mine")
	conn := c.natsCLI(config, "mine")
	defer conn.Close()
	began := time.Now()
	reply, err := conn.Request(subjects.Method("sleeper", "sleeper", "note"), []byte("plain"), 5*time.Second)
	if err != nil || string(reply.Data) != "plain" {
		t.Errorf("a client of NATS is answered %v, %v", reply, err)
	}
	t.Logf("a plain client of NATS is answered after %v", time.Since(began).Round(time.Millisecond))
	c.sleeps()
	if out, code := c.try("call", "sleeper", "nothing"); code != 5 || !strings.Contains(out, "has no method nothing") {
		t.Errorf("a method that there is not: exit code %d, %s", code, out)
	}

	c.sleeps() // that question has woken it, too

	// Its allocators are killed: callers try on until another one is active.
	for pid, cmd := range c.processes("") {
		if strings.Contains(cmd, allocators) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
		}
	}
	const orphans = 20
	var orphaned noted
	c.startChild(noteJob, []string{"orphaned", strconv.Itoa(orphans), "20s"}).report(&orphaned)
	t.Logf("RESULT %d requests when the allocators were killed: answered after %v to %v, %d failed: %q", orphans, orphaned.least(), orphaned.most(), orphaned.Failed, orphaned.Errs)
	if orphaned.Failed > 0 {
		t.Errorf("%d failed", orphaned.Failed)
	}
	c.sleeps()

	// Requests at about the time when it goes to sleep.
	const more = 30
	var around noted
	c.startChild(noteJob, []string{"around", strconv.Itoa(more), (awake - time.Second).String(), (awake + 500*time.Millisecond).String()}).report(&around)
	t.Logf("RESULT %d requests at about the time when it goes to sleep: answered after %v at most, %d failed: %q", len(around.Took)+around.Failed, around.most(), around.Failed, around.Errs)
	slept := 0
	events, err := c.kinds("sleeper", kbroker.EventDemand)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if strings.Contains(e.Message, "sleeper 0") {
			slept++
		}
	}
	t.Logf("it was told to sleep %d times, of %d demands; the last: %q", slept, len(events), events[len(events)-1].Message)
	if around.Failed > 0 || slept < 5 {
		t.Errorf("%d failed, and it slept %d times", around.Failed, slept)
	}

	// All have run, and none twice.
	files, err := filepath.Glob(filepath.Join(runs, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, strings.Fields(string(raw))...)
	}
	slices.Sort(lines)
	if twice := len(lines) - len(slices.Compact(slices.Clone(lines))); twice > 0 || len(lines) != n+1+orphans+more {
		t.Errorf("%d have run, want %d; %d of them twice", len(lines), n+1+orphans+more, twice)
	}

	c.must("stop", "sleeper")
	if out, code := c.try("call", "sleeper", "note", "--timeout", "2s"); code == 0 {
		t.Errorf("a stopped app answers %s", out)
	}
	c.sleeps()
}

// sleeps waits until the sleeper has no instance.
func (c *cluster) sleeps() {
	c.t.Helper()
	wait.Until(c.t, 20*time.Second, func() error {
		rows, err := list[kbroker.InstanceRow](c, "ps", "sleeper")
		if err != nil {
			return err
		}
		for _, r := range rows {
			if r.Service == "sleeper" {
				out, _ := c.try("allocator", "sleeper")
				return fmt.Errorf("there is %s\n%s", show(r), out)
			}
		}
		return nil
	})
}

// noted is what callers of a sleeper have seen.
type noted struct {
	Took   []time.Duration `json:"took"` // of those that were answered, sorted
	Failed int             `json:"failed"`
	Errs   []string        `json:"errs"` // some of those that failed
}

// least and most are how long an answer took; 0: there was none.
func (n noted) least() time.Duration { return n.at(0) }
func (n noted) most() time.Duration  { return n.at(len(n.Took) - 1) }

func (n noted) at(i int) time.Duration {
	if len(n.Took) == 0 {
		return 0
	}
	return n.Took[i].Round(time.Millisecond)
}

// note calls the sleeper with lines that begin with args[0]: args[1] at once, with a deadline
// of args[2] if that is there, or one after the other with a pause between args[2] and args[3].
func note(args []string) (noted, error) {
	api, err := sdk.Dial(context.Background(), sdk.At(""))
	if err != nil {
		return noted{}, err
	}
	defer api.Close()
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return noted{}, err
	}
	var opts []sdk.CallOption
	if len(args) == 3 {
		timeout, err := time.ParseDuration(args[2])
		if err != nil {
			return noted{}, err
		}
		opts = append(opts, sdk.Timeout(timeout))
	}
	var out noted
	var mu sync.Mutex
	call := func(n int) {
		line := fmt.Appendf(nil, "%s-%d", args[0], n)
		began := time.Now()
		reply, err := sdk.Call[[]byte](context.Background(), api.Service("sleeper"), "note", line, opts...)
		if err == nil && string(reply) != string(line) {
			err = errors.New("answered " + string(reply))
		}
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			out.Took = append(out.Took, time.Since(began))
		} else if out.Failed++; len(out.Errs) < 5 {
			out.Errs = append(out.Errs, fmt.Sprintf("%s: %v (executed %s)", line, err, kbroker.AsError(err).Executed))
		}
	}
	if len(args) < 4 {
		var all sync.WaitGroup
		for n := range count {
			all.Go(func() { call(n) })
		}
		all.Wait()
	} else {
		least, err := time.ParseDuration(args[2])
		if err != nil {
			return out, err
		}
		most, err := time.ParseDuration(args[3])
		if err != nil {
			return out, err
		}
		for n := range count {
			call(n)
			<-time.After(least + rand.N(most-least))
		}
	}
	slices.Sort(out.Took)
	return out, nil
}
