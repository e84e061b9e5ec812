package node

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/internal/durable"
)

// TestWhatBecomesOfAProgramOnTrial plays what a guard hears and sees, one step each
// second from the begin on.
func TestWhatBecomesOfAProgramOnTrial(t *testing.T) {
	const gate = 9 * time.Second
	for name, c := range map[string]struct {
		steps string // g good, i ill, - silent, x dead, s told to end
		at    int    // the step that decides
		want  Phase
		why   string
	}{
		"in order for a third of the gate": {steps: "iigggg", at: 5, want: UpgradePassed},
		"in order from the first moment":   {steps: "gggg", at: 3, want: UpgradePassed},
		"dead at once":                     {steps: "x", at: 0, want: UpgradeReturned, why: "ended"},
		"dead when it was in order":        {steps: "iggx", at: 3, want: UpgradeReturned, why: "ended"},
		"told to end":                      {steps: "igs", at: 2, want: UpgradeReturned, why: "told to end"},
		"never heard of":                   {steps: "----------", at: 9, want: UpgradeReturned, why: "said nothing within 9s"},
		"ill all the time":                 {steps: "iiiiiiiiii", at: 9, want: UpgradeReturned, why: "no view"},
		"silent after it was in order":     {steps: "gg------------", at: 9, want: UpgradeReturned, why: "has said nothing for 8s"},
		"ill again":                        {steps: "ggigiggggg", at: 8, want: UpgradePassed},
		"in order just in time":            {steps: "iiiiiiiigggg", at: 11, want: UpgradePassed},
		"in order just in time, not for long": {
			steps: "iiiiiiiiggi", at: 10, want: UpgradeReturned, why: "not in order within 9s: no view",
		},
	} {
		t.Run(name, func(t *testing.T) {
			const begin = time.Hour
			s := seen{began: begin, alive: true, said: health{Missing: "from before", At: begin - time.Second}}
			for i, step := range c.steps {
				now := begin + time.Duration(i)*time.Second + time.Millisecond
				switch step {
				case 'g':
					s.said = health{At: now}
				case 'i':
					s.said = health{At: now, Missing: "no view"}
				case 'x':
					s.alive = false
				case 's':
					s.alive, s.said = false, health{At: now, Stopped: true}
				}
				s = s.look(now)
				phase, why := s.judge(now, gate)
				if phase == "" && i < c.at {
					continue
				}
				if i != c.at || phase != c.want || !strings.Contains(why, c.why) || (why == "") != (phase == UpgradePassed) {
					t.Errorf("step %d: %q, %q; want %q, %q at step %d", i, phase, why, c.want, c.why, c.at)
				}
				return
			}
			t.Errorf("not decided, want %s", c.want)
		})
	}
}

// TestATrialEnds whatever the program does, and none passes that is not in order.
func TestATrialEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gate := rapid.Custom(func(t *rapid.T) time.Duration { return time.Duration(rapid.IntRange(2, 60).Draw(t, "s")) * time.Second }).Draw(t, "gate")
		s := seen{began: time.Hour, alive: true}
		for now := s.began; ; now += 500 * time.Millisecond {
			if rapid.IntRange(0, 2).Draw(t, "says") > 0 {
				s.said = health{At: now, Missing: rapid.SampledFrom([]string{"", "", "x"}).Draw(t, "missing")}
			}
			s = s.look(now)
			phase, _ := s.judge(now, gate)
			if phase == UpgradePassed && (s.said.Missing != "" || now-s.began < gate/3) {
				t.Fatalf("passed after %v, lacking %q", now-s.began, s.said.Missing)
			}
			if phase != "" {
				return
			}
			if now-s.began > gate+gate/3+healthHolds+time.Second { // it may have fallen silent at the last moment
				t.Fatalf("not decided after %v with a gate of %v", now-s.began, gate)
			}
		}
	})
}

// staged is an upgrade as it is while PROGRAM is the old one.
func staged(t *testing.T, change func(*Upgrade)) (Upgrade, string) {
	t.Helper()
	dir := t.TempDir()
	u := Upgrade{
		ID: "u", Phase: UpgradeWatched, Program: filepath.Join(dir, "kbroker"), Next: filepath.Join(dir, "kbroker.next"),
		From: "v1", To: "v2", Gate: time.Minute, Agent: gone(t), Guard: gone(t),
	}
	write(t, u.Program, "old")
	write(t, u.Next, "new")
	change(&u)
	if err := u.save(dir); err != nil {
		t.Fatal(err)
	}
	return u, dir
}

// me is this process, gone one that was given its pid before.
func me(t *testing.T) agent.Identity {
	t.Helper()
	id, err := agent.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func gone(t *testing.T) agent.Identity {
	id := me(t)
	id.Start++
	return id
}

// TestAnAgentThatStartsEndsWhatWasCutOff: it is the old program, and so the upgrade
// has returned.
func TestAnAgentThatStartsEndsWhatWasCutOff(t *testing.T) {
	earlier := func(id *agent.Identity) { id.BootID = "earlier" }
	for name, c := range map[string]struct {
		change func(*Upgrade)
		want   Phase
		why    string
	}{
		"the machine has booted":          {func(u *Upgrade) { earlier(&u.Agent); earlier(&u.Guard) }, UpgradeReturned, "machine"},
		"guard and agent are gone":        {func(*Upgrade) {}, UpgradeReturned, "started anew"},
		"it was asked for, and never got": {func(u *Upgrade) { u.Phase, u.Agent, u.Guard = UpgradeAsked, agent.Identity{}, agent.Identity{} }, UpgradeReturned, "started anew"},
		"the guard decides":               {func(u *Upgrade) { u.Guard = me(t) }, UpgradeWatched, ""},
		"this is the program on trial":    {func(u *Upgrade) { u.Agent = me(t) }, UpgradeWatched, ""},
		"it has passed before":            {func(u *Upgrade) { u.Phase = UpgradePassed }, UpgradePassed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			u, dir := staged(t, c.change)
			settleUpgrade(dir, slog.New(slog.DiscardHandler))
			last, err := LastUpgrade(dir)
			if err != nil || last.Phase != c.want || !strings.Contains(last.Reason, c.why) {
				t.Errorf("%+v, %v; want %s, %q", last, err, c.want, c.why)
			}
			refused, _ := os.ReadFile(u.Program + RefusedSuffix)
			_, nextErr := os.Stat(u.Next)
			if back := c.want == UpgradeReturned; (string(refused) == "new") != back || errors.Is(nextErr, fs.ErrNotExist) != back {
				t.Errorf("refused is %q, next %v; returned is %t", refused, nextErr, back)
			}
		})
	}
}

func TestAnUpgradePasses(t *testing.T) {
	u, dir := staged(t, func(*Upgrade) {})
	if err := u.passed(dir); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{u.Program: "new", u.Program + PreviousSuffix: "old", u.Next: ""} {
		if got, _ := os.ReadFile(path); string(got) != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	// A second host of this machine passes with the same program.
	write(t, u.Next, "new")
	if err := u.passed(dir); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(u.Program + PreviousSuffix); string(got) != "old" {
		t.Errorf("the old program is %q", got)
	}
	if last, err := LastUpgrade(dir); err != nil || last.Phase != UpgradePassed {
		t.Errorf("%+v, %v", last, err)
	}
}

func TestADamagedUpgradeIsPutAside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, upgradeFile)
	for i, spoil := range []func() error{
		func() error { return os.WriteFile(path, nil, 0o600) },
		func() error { return os.WriteFile(path, []byte(`{"id":`), 0o600) },
		func() error { return os.Mkdir(path, 0o700) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if u, err := LastUpgrade(dir); !errors.Is(err, errDamaged) || u != (Upgrade{}) {
			t.Errorf("%+v, %v; want damaged", u, err)
		}
		if kept := durable.Aside(path); len(kept) != i+1 {
			t.Errorf("kept are %v, want %d", kept, i+1)
		}
		if _, err := LastUpgrade(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v, want that there is none", err)
		}
	}
}

func TestUnitOfAProcess(t *testing.T) {
	for groups, want := range map[string]string{
		"0::/system.slice/kbroker.service\n":                             "kbroker.service",
		"0::/system.slice/kbroker.service/agent\n":                       "kbroker.service",
		"12:pids:/system.slice/kb.service\n0::/system.slice/kb.service":  "kb.service",
		"0::/user.slice/user-0.slice/user@0.service/app.slice/x.service": "x.service",
		"0::/user.slice/user-0.slice/session-1.scope\n":                  "",
		"": "",
	} {
		if got := unitIn(groups); got != want {
			t.Errorf("%q is of %q, want %q", groups, got, want)
		}
	}
	if unit := managedBy(os.Getpid(), []string{"SYSTEMD_EXEC_PID=1", "INVOCATION_ID=x"}); unit != "" {
		t.Errorf("who inherited the environment is of %q", unit)
	}
}
