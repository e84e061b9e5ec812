package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/wait"
)

// developing is a `kbroker run` of a program that has started another one.
type developing struct {
	cmd   *exec.Cmd
	pids  []int  // the program, and what it has started
	temp  string // where the command has its temporary files
	notes *bytes.Buffer
}

// develop runs a shell: setup, then it starts a process and waits for it.
func develop(t *testing.T, url, setup string) developing {
	t.Helper()
	script := setup + `; sleep 300 & echo $$ $!; while :; do wait; done`
	d := developing{cmd: exec.Command("kbroker", "run", "hello", "--", "sh", "-c", script), temp: t.TempDir(), notes: new(bytes.Buffer)}
	d.cmd.Env = append(os.Environ(), "NATS_URL="+url, "KBROKER_CONTEXT=", "KBROKER_DIR=", "KBROKER_INSTANCE=", "TMPDIR="+d.temp)
	d.cmd.Dir = t.TempDir()
	d.cmd.Stderr = d.notes
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill() }) // it may have ended
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = d.cmd.Wait()
		t.Fatalf("the program has said nothing: %v\n%s", err, d.notes)
	}
	for word := range strings.FieldsSeq(line) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		d.pids = append(d.pids, pid)
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	}
	return d
}

func (d developing) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// gone waits until nothing of the program is left, no temporary file either.
func (d developing) gone(t *testing.T) {
	t.Helper()
	wait.Until(t, 10*time.Second, func() error {
		for _, pid := range d.pids {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if _, after, _ := strings.Cut(string(stat), ") "); err == nil && !strings.HasPrefix(after, "Z") {
				return fmt.Errorf("process %d is still there: %s", pid, stat)
			}
		}
		if left, err := os.ReadDir(d.temp); err != nil || len(left) > 0 {
			return fmt.Errorf("temporary files are left: %v, %w", left, err)
		}
		return nil
	})
}

// ended is the exit code of `kbroker run`; -1: a signal.
func (d developing) ended(t *testing.T) int {
	t.Helper()
	err := d.cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return d.cmd.ProcessState.ExitCode()
}

func TestAProgramEndsWithTheRunThatStartedIt(t *testing.T) {
	if err := needLinux(); err != nil {
		t.Skip(err)
	}
	url := newFakeCore(t).url
	t.Run("killed", func(t *testing.T) {
		d := develop(t, url, "trap '' INT TERM HUP")
		d.signal(t, syscall.SIGKILL)
		d.gone(t)
		if code := d.ended(t); code != -1 {
			t.Errorf("the killed command ended with %d", code)
		}
	})
	t.Run("killed, and the program has a file beside its own", func(t *testing.T) {
		d := develop(t, url, `echo >"$(dirname "$KBROKER_INSTANCE")/note"`)
		d.signal(t, syscall.SIGKILL)
		_ = d.ended(t)
		wait.Until(t, 10*time.Second, func() error {
			left, err := filepath.Glob(filepath.Join(d.temp, "*", "*"))
			if err != nil || len(left) != 1 || filepath.Base(left[0]) != "note" {
				return fmt.Errorf("left are %v, %w; want the program's own file alone", left, err)
			}
			return nil
		})
	})
	t.Run("its terminal closed", func(t *testing.T) {
		d := develop(t, url, ":")
		d.signal(t, syscall.SIGHUP)
		if code := d.ended(t); code != 128+int(syscall.SIGTERM) {
			t.Errorf("it ended with %d, want 143\n%s", code, d.notes)
		}
		d.gone(t)
	})
	t.Run("its terminal closed, and the program does not care", func(t *testing.T) {
		d := develop(t, url, "trap '' INT TERM HUP")
		start := time.Now()
		d.signal(t, syscall.SIGHUP)
		d.signal(t, syscall.SIGHUP) // the shell says it, too
		if code := d.ended(t); code != 128+int(syscall.SIGKILL) {
			t.Errorf("it ended with %d, want 137\n%s", code, d.notes)
		}
		if took := time.Since(start); took < hangupGrace {
			t.Errorf("it was killed after %v, want the grace of %v", took, hangupGrace)
		}
		d.gone(t)
	})
	t.Run("interrupted twice", func(t *testing.T) {
		d := develop(t, url, "trap '' INT TERM HUP")
		d.signal(t, syscall.SIGINT)
		d.signal(t, syscall.SIGTERM)
		if code := d.ended(t); code != 128+int(syscall.SIGKILL) {
			t.Errorf("it ended with %d, want 137\n%s", code, d.notes)
		}
		d.gone(t)
	})
}

// TestAProgramHasACredentialAsLongAsItRuns, of one key, though it does not know how to have
// it renewed.
func TestAProgramHasACredentialAsLongAsItRuns(t *testing.T) {
	if err := needLinux(); err != nil {
		t.Skip(err)
	}
	core := newFakeCore(t)
	core.life = 2 * time.Second
	temp := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kbroker", "run", "hello", "--", "sh", "-c", `
		key() { sed '1,/END NATS USER JWT/d' "$NATS_CREDS"; }
		of=$(key)
		for time in 1 2 3; do
			was=$(cat "$NATS_CREDS")
			while [ "$(cat "$NATS_CREDS")" = "$was" ]; do sleep 0.05; done
			[ "$(key)" = "$of" ] || exit 3
		done
		echo renewed`)
	cmd.Env = append(os.Environ(), "NATS_URL="+core.url, "KBROKER_CONTEXT=", "KBROKER_DIR=", "KBROKER_INSTANCE=", "TMPDIR="+temp)
	cmd.Dir = t.TempDir()
	var notes bytes.Buffer
	cmd.Stderr = &notes
	out, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(out)) != "renewed" {
		t.Fatalf("the program has said %q, %v; want that its credential was renewed three times\n%s", out, err, notes.String())
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}
