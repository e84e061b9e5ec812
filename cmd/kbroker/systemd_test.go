package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// systemctl is a service manager of one unit: it runs what the unit says, as
// systemd would, and notes what it was asked.
const systemctl = `#!/bin/sh
echo "$*" >>"$SYSTEMD/asked"
pid=$(cat "$SYSTEMD/pid" 2>/dev/null)
alive() { [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }
start() {
	eval "exec $(sed -n 's/^ExecStart=//p' "$SYSTEMD/kbroker.service")" >>"$SYSTEMD/journal" 2>&1 </dev/null &
	echo $! >"$SYSTEMD/pid"
	monotonic >"$SYSTEMD/started"
}
case "$1" in
is-active) alive ;;
is-failed) [ -n "$pid" ] && ! alive ;;
enable) alive || start ;;
restart) kill "$pid"; while alive; do sleep 0.02; done; start ;;
show)
	case "$2" in
	*Monotonic) cat "$SYSTEMD/started" ;;
	*) echo "${pid:-0}" ;;
	esac
	;;
esac
`

// fakeSystemd puts systemctl and journalctl in front of PATH.
func fakeSystemd(t *testing.T) (s systemd, asked func() []string) {
	t.Helper()
	dir, bin := t.TempDir(), t.TempDir()
	for name, script := range map[string]string{"systemctl": systemctl, "journalctl": "#!/bin/sh\ncat \"$SYSTEMD/journal\"\n"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SYSTEMD", dir)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Cleanup(func() {
		pid, err := os.ReadFile(filepath.Join(dir, "pid"))
		if err != nil {
			return // nothing was started
		}
		agent, err := strconv.Atoi(strings.TrimSpace(string(pid)))
		if err != nil {
			t.Errorf("pid of the agent: %v", err)
			return
		}
		_ = syscall.Kill(agent, syscall.SIGTERM) // it may have ended
		wait.Until(t, 20*time.Second, func() error {
			if err := syscall.Kill(agent, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("the agent %d is still there: %v", agent, err)
			}
			return nil
		})
	})
	return systemd{dir: dir, runs: dir}, func() []string {
		path := filepath.Join(dir, "asked")
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		_ = os.Remove(path) // what was asked since the last look
		var lines []string
		for line := range strings.Lines(string(raw)) {
			// How often it looks depends on how fast the agent is.
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "is-failed") && !strings.HasPrefix(line, "show") {
				lines = append(lines, line)
			}
		}
		return lines
	}
}

// install runs `agent install` in this process, on the fake.
func install(t *testing.T, s systemd, settings agentSettings) (string, error) {
	t.Helper()
	program, err := exec.LookPath("kbroker")
	if err != nil {
		t.Fatal(err)
	}
	in := &installation{
		config: filepath.Join(s.dir, "etc", "agent.yaml"), unit: filepath.Join(s.dir, unitName),
		settings: settings, systemd: s,
	}
	if err := in.render(program); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c := &cli{out: &out, err: &out}
	if err := c.install(t.Context(), in, true); err != nil {
		c.printError(err)
		return out.String(), err
	}
	return out.String(), nil
}

func TestInstallStartsTheAgentAndRestartsItWhenItsSettingsChange(t *testing.T) {
	if err := needLinux(); err != nil {
		t.Skip(err)
	}
	s, asked := fakeSystemd(t)
	settings := agentSettings{Dir: filepath.Join(t.TempDir(), "data"), Name: "a", Found: true, Advertise: loopback}
	enable := "enable --now " + filepath.Join(s.dir, unitName)
	steps := func(out string, err error, pidBefore string, written int, want ...string) (pid string) {
		t.Helper()
		_, pid, _ = strings.Cut(out, "is enabled and runs, pid ")
		if err != nil || pid == "" || pid == pidBefore || strings.Count(out, "wrote ") != written {
			t.Fatalf("install: %v\n%s\nwant %d files written and a pid that is not %q", err, out, written, pidBefore)
		}
		if got := asked(); !slices.Equal(got, append([]string{"is-active --quiet " + unitName, "daemon-reload", enable}, want...)) {
			t.Fatalf("systemctl was asked %q", got)
		}
		return pid
	}
	out, err := install(t, s, settings)
	first := steps(out, err, "", 2)

	out, err = install(t, s, settings)
	if again := steps(out, err, "", 0); again != first || !strings.Contains(out, "nothing to write") {
		t.Fatalf("installed again with the same settings the agent is %s, was %s\n%s", again, first, out)
	}
	settings.Label = map[string]string{"disk": "ssd"}
	out, err = install(t, s, settings)
	second := steps(out, err, first, 1, "restart "+unitName)

	// Written by somebody who did not come to restart it: the agent has not seen
	// it, although there is nothing to write.
	later := time.Now().Add(time.Minute)
	for _, name := range []string{filepath.Join("etc", "agent.yaml"), unitName} {
		path := filepath.Join(s.dir, name)
		if err := os.Chtimes(path, later, later); err != nil {
			t.Fatal(err)
		}
		out, err = install(t, s, settings)
		second = steps(out, err, second, 0, "restart "+unitName)
		before := later.Add(-time.Hour)
		if err := os.Chtimes(path, before, before); err != nil {
			t.Fatal(err)
		}
	}
	out, err = install(t, s, settings)
	if again := steps(out, err, "", 0); again != second {
		t.Fatalf("the agent, which has read its files, is %s now, was %s", again, second)
	}
}

func TestInstallSaysWhyTheAgentEndedAtOnce(t *testing.T) {
	if err := needLinux(); err != nil {
		t.Skip(err)
	}
	s, _ := fakeSystemd(t)
	out, err := install(t, s, agentSettings{Dir: filepath.Join(t.TempDir(), "data"), Name: "a"})
	if !errors.Is(err, kbroker.Failed) || !strings.Contains(out, "belongs to no cluster yet") || !strings.Contains(out, "ended at once") {
		t.Fatalf("install: %v\n%s\nwant code failed and the agent's own words", err, out)
	}
}

func TestAUnitElsewhereIsEnabledByItsPath(t *testing.T) {
	for dir, want := range map[string]string{defaultUnitDir: unitName, defaultUnitDir + "/": unitName, "/opt/units": "/opt/units/" + unitName} {
		if got := (systemd{dir: dir}).enableName(); got != want {
			t.Errorf("in %s it is enabled as %s, want %s", dir, got, want)
		}
	}
}

func TestAFileIsSealedAndAnEditIsSeen(t *testing.T) {
	text := []byte("a: 1\nb: 2\n")
	sealed := seal(text)
	if !intact(sealed) || !bytes.Equal(unsealed(sealed), text) || !bytes.Equal(unsealed(text), text) {
		t.Errorf("sealed is\n%s", sealed)
	}
	for name, edited := range map[string][]byte{
		"a line more":   append(slices.Clone(sealed), "c: 3\n"...),
		"another value": bytes.Replace(sealed, []byte("a: 1"), []byte("a: 3"), 1),
		"no seal":       text,
		"nothing":       nil,
		"only a seal":   sealed[:bytes.IndexByte(sealed, '\n')+1],
	} {
		if intact(edited) {
			t.Errorf("%s: the edit of\n%s\nis not seen", name, edited)
		}
	}
}
