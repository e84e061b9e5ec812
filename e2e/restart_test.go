package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

const (
	// A process that was killed runs again, and answers again, within these: medians.
	runsAgain    = 15 * time.Millisecond
	answersAgain = 200 * time.Millisecond
	restartCount = 7
)

// TestAKilledInstanceAnswersAgain: from the kill -9 of an instance, the only one of
// its app, to its next process, and to the first answer of that.
func TestAKilledInstanceAnswersAgain(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	groups := c.groupsOf("h1")
	if groups == "" {
		t.Skip("SKIPPED: no control groups of version 2 here, by which a new process is seen at once")
	}
	client, err := sdk.Dial(t.Context(), sdk.At(c.dir))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var run, answer []time.Duration
	for n := range restartCount { // the first restart of each is immediate
		app := fmt.Sprintf("hello%d", n)
		c.must("deploy", c.example("hello", func(spec string) string {
			return strings.Replace(strings.Replace(spec, "name: hello", "name: "+app, 1), "count: 3", "count: 1", 1)
		}))
		row := c.waitReady(10*time.Second, app, "hello", 1, nil)[0]
		began := time.Now()
		if err := syscall.Kill(*row.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		started := make(chan time.Duration, 1)
		go func() { started <- nextProcess(groups, string(*row.Instance), *row.PID, began) }()
		if err := greeted(t.Context(), client, app); err != nil {
			t.Fatal(err)
		}
		answer = append(answer, time.Since(began))
		run = append(run, <-started)
	}
	slices.Sort(run)
	slices.Sort(answer)
	t.Logf("kill -9 to the next process: %v (%v to %v); to its first answer: %v (%v to %v)", run[restartCount/2], run[0], run[restartCount-1], answer[restartCount/2], answer[0], answer[restartCount-1])
	if run[restartCount/2] > runsAgain {
		t.Errorf("the next process after %v, want %v", run[restartCount/2], runsAgain)
	}
	if answer[restartCount/2] > answersAgain {
		t.Errorf("an answer after %v, want %v", answer[restartCount/2], answersAgain)
	}
}

// greeted returns with the first answer. A request that the killed process took with it
// is repeated after 1.5 s by a call; here each is given up after a moment.
func greeted(ctx context.Context, client *sdk.Client, app string) error {
	const moment = 20 * time.Millisecond
	deadline := time.Now().Add(10 * time.Second)
	for {
		try, cancel := context.WithTimeout(ctx, moment)
		out, err := sdk.Call[struct{ Text string }](try, client.Service(app+"/hello"), "greet", map[string]string{"name": "you"})
		cancel()
		switch {
		case err == nil && out.Text != "Hello, you!":
			return fmt.Errorf("it greets %q", out.Text)
		case err == nil || time.Now().After(deadline):
			return err
		}
	}
}

// groupsOf is the directory with the control groups of a host's instances; empty: there
// are none of version 2.
func (c *cluster) groupsOf(host string) string {
	c.t.Helper()
	var place struct{ Unified string }
	b, err := os.ReadFile(filepath.Join(c.host(host), "cgroups.json"))
	if err == nil {
		err = json.Unmarshal(b, &place)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return place.Unified
}

// nextProcess waits for another process of an instance, and tells when it was there.
func nextProcess(groups, instance string, old int, began time.Time) time.Duration {
	for time.Since(began) < 10*time.Second {
		dirs, _ := filepath.Glob(filepath.Join(groups, instance+".*", "cgroup.procs"))
		for _, file := range dirs {
			if b, err := os.ReadFile(file); err == nil && len(b) > 0 && !strings.HasPrefix(string(b), fmt.Sprintln(old)) {
				return time.Since(began)
			} else if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
				return 0
			}
		}
		<-time.After(200 * time.Microsecond)
	}
	return 10 * time.Second
}
