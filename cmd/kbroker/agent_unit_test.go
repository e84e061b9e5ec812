package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

func unit(t *testing.T, program, config, dir string) string {
	t.Helper()
	text, err := renderUnit(program, config, dir)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestTheUnitIsAsItWasReviewed(t *testing.T) {
	golden(t, filepath.Join("testdata", "golden", unitName), []byte(unit(t, "/usr/local/bin/kbroker", defaultAgentConfig, defaultAgentDir)))
}

func TestADataDirectoryElsewhereNeedsItsDisk(t *testing.T) {
	for dir, want := range map[string]string{
		"/var/lib/kbroker":   "\nStateDirectory=kbroker\nStateDirectoryMode=0700\n",
		"/var/lib/kb/one":    "\nStateDirectory=kb/one\n",
		"/srv/kb":            "\nRequiresMountsFor=/srv/kb\n",
		"/var/lib/../srv/kb": "\nRequiresMountsFor=/var/lib/../srv/kb\n",
		"/srv/50% of it":     "\nRequiresMountsFor=\"/srv/50%% of it\"\n",
	} {
		text := unit(t, "/k", "/c", dir)
		if !strings.Contains(text, want) || strings.Contains(text, "RequiresMountsFor") == strings.Contains(text, "StateDirectory=") {
			t.Errorf("data directory %s: the unit is\n%s\nwant %q in it", dir, text, want)
		}
	}
}

func TestAUnitTakesAnyPathButOneThatSystemdWouldExpand(t *testing.T) {
	got, err := unitWords("/bin/kb", "a b", `c"d\e`, "100%", "", "f'g")
	if want := `/bin/kb "a b" "c\"d\\e" 100%% "" "f'g"`; err != nil || got != want {
		t.Errorf("words are %s, %v, want %s", got, err, want)
	}
	for _, bad := range []string{"/a\nExecStart=/bin/sh", "/a$HOME"} {
		if _, err := renderUnit("/k", bad, "/d"); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("a configuration at %q: %v, want code invalid", bad, err)
		}
	}
}

// TestSystemdHasNothingToSayAboutTheUnit asks systemd-analyze, which prints what
// it does not know or like.
func TestSystemdHasNothingToSayAboutTheUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("NOT TESTED: there is no systemd-analyze here")
	}
	program := filepath.Join(t.TempDir(), "k broker%")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{defaultAgentDir, "/srv/kb data"} {
		path := filepath.Join(t.TempDir(), unitName)
		if err := os.WriteFile(path, seal([]byte(unit(t, program, "/etc/kb roker/agent.yaml", dir))), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("data directory %s: systemd-analyze verify: %v\n%s\nwant no word", dir, err, out)
		}
	}
	// The test can fail: a key that does not exist is seen.
	path := filepath.Join(t.TempDir(), unitName)
	bad := strings.Replace(unit(t, program, "/c", "/d"), "[Service]\n", "[Service]\nRestartNever=yes\n", 1)
	if err := os.WriteFile(path, []byte(bad), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput(); !strings.Contains(string(out), "RestartNever") {
		t.Errorf("systemd-analyze says %q about a key that does not exist", out)
	}
}
