package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

func TestMissing(t *testing.T) {
	core := func(change func(*kbroker.CoreCheckup)) kbroker.Checkup {
		c := kbroker.CoreCheckup{Leader: true, Writable: true, Current: map[kbroker.HostID]bool{"h1": true}}
		change(&c)
		return kbroker.Checkup{Host: "h1", Proven: true, Core: &c}
	}
	fine := func(*kbroker.CoreCheckup) {}
	for name, c := range map[string]struct {
		got    kbroker.Checkup
		silent time.Duration
		want   string // a part; empty: nothing is missing
	}{
		"a worker on which nothing was ever placed": {got: kbroker.Checkup{Host: "w"}},
		"a core that is as it should be":            {got: core(fine)},
		"other cores are not its matter":            {got: core(func(c *kbroker.CoreCheckup) { c.Current["h2"], c.Unsettled = false, "h2" })},
		"silence of the cores":                      {got: core(fine), silent: silentFor, want: "heartbeats"},
		"a loop that hangs":                         {got: kbroker.Checkup{Host: "w", Stuck: true}, want: "loop"},
		"a view that was not received":              {got: kbroker.Checkup{Host: "w", Instances: 1}, want: "view"},
		"a process that is not adopted":             {got: kbroker.Checkup{Host: "w", Proven: true, Orphans: []kbroker.Orphan{{PID: 7}}}, want: "the first is 7"},
		"no leader":                                 {got: core(func(c *kbroker.CoreCheckup) { c.Leader = false }), want: "leader"},
		"a core that is behind":                     {got: core(func(c *kbroker.CoreCheckup) { c.Current["h1"] = false }), want: "caught up"},
		"a canary that is not acknowledged":         {got: core(func(c *kbroker.CoreCheckup) { c.Writable = false }), want: "writes"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := missing(c.got, c.silent); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("missing is %q, want %q", got, c.want)
			}
		})
	}
}

func TestAnAgentSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	c.want(placement("shop-web-1", "run"))
	a := c.startAgent(t.TempDir())
	c.awaitState("shop-web-1", kbroker.StateReady)
	wait.Until(t, 5*time.Second, func() error {
		if missing := a.Missing(context.Background()); missing != "" {
			return errors.New(missing)
		}
		return nil
	})
	stray := foreign(t, envHostDir+"="+a.cfg.Dir.Path, envIncarnation+"=shop-web-9.0")
	if missing := a.Missing(context.Background()); !strings.Contains(missing, "not adopted") {
		t.Errorf("with stray %d it lacks %q, want that it is not adopted", stray.PID, missing)
	}
}

// TestAnIdentityIsNobodyElse: another process, boot or start with the same pid
// is never signalled, and is not the process.
func TestAnIdentityIsNobodyElse(t *testing.T) {
	victim := foreign(t)
	id, err := Identify(victim.PID)
	if err != nil || !id.Alive() || !id.ThisBoot() {
		t.Fatalf("%+v of a live process, %v", id, err)
	}
	later, other := id, id
	later.Start++
	other.BootID = "another"
	for _, not := range []Identity{later, other, {}} {
		if not.Alive() {
			t.Errorf("%+v lives, and is not %+v", not, id)
		}
		if err := not.Signal(unix.SIGKILL); err != nil {
			t.Errorf("signal %+v: %v", not, err)
		}
	}
	if !alive(victim.PID) {
		t.Fatal("a foreign process was killed")
	}
	if err := id.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 5*time.Second, func() error {
		if id.Alive() {
			return errors.New("it lives")
		}
		return nil
	})
	if _, err := Identify(1 << 30); err == nil {
		t.Error("a pid that nobody has was identified")
	}
}

// TestAnIdentityOutlivesAnotherProgram: execve changes neither pid nor start.
func TestAnIdentityOutlivesAnotherProgram(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "read go; exec sleep 60")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	id, err := Identify(cmd.Process.Pid)
	if err == nil {
		_, err = in.Write([]byte("\n"))
	}
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 5*time.Second, func() error {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		if err == nil && !strings.HasPrefix(string(line), "sleep") {
			err = errors.New(string(line))
		}
		return err
	})
	if now, err := Identify(cmd.Process.Pid); err != nil || now != id || !id.Alive() {
		t.Errorf("%+v after execve, was %+v, %v", now, id, err)
	}
}
