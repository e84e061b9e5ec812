package node

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/internal/grants"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestPutProgram(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "new"), filepath.Join(dir, "kbroker")
	write(t, to, "one")
	for _, step := range []struct {
		name, content, previous string
		replaced                bool
	}{
		{"another program", "two", "one", true},
		{"the same once more, as a second host of this machine does", "two", "one", false},
		{"a third", "three", "two", true},
	} {
		write(t, from, step.content)
		replaced, err := putProgram(from, to, true)
		now, nowErr := os.ReadFile(to)
		before, beforeErr := os.ReadFile(to + PreviousSuffix)
		if err := errors.Join(err, nowErr, beforeErr); err != nil || replaced != step.replaced || string(now) != step.content || string(before) != step.previous {
			t.Errorf("%s: replaced %t, now %q, before %q, %v", step.name, replaced, now, before, err)
		}
	}
	if info, err := os.Stat(to); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v; want a program", info.Mode(), err)
	}
	if _, err := putProgram(filepath.Join(dir, "none"), to, true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("from nothing: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 {
		t.Errorf("left are %v, %v; want new, kbroker and kbroker.previous", left, err)
	}
}

func TestCheckProgramRefusesAnotherArchitecture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kbroker")
	for arch, want := range map[string]error{runtime.GOARCH: nil, "s390x": kbroker.Refused} {
		write(t, path, "#!/bin/sh\necho '{\"version\":\"v1\",\"os\":\"linux\",\"arch\":\""+arch+"\"}'\n")
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if v, err := CheckProgram(t.Context(), path); !errors.Is(err, want) || v.Version != "v1" {
			t.Errorf("%s: %+v, %v; want %v", arch, v, err, want)
		}
	}
}

func TestMemberOf(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "h2")
	if _, err := MemberOf(dir); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("nothing there: %v, want not found", err)
	}
	held, err := agent.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if held != nil {
			held.Close()
		}
	}()
	file := filepath.Join(dir, membershipFile)
	const member = `{"cluster_id":"kb-1","host":"h2","role":"core","client":"10.0.0.2:1","cores":[{"host":"h1","client":"10.0.0.1:1"}]`
	write(t, file, member+"}")
	founder := newFounder(t, "kb-1")
	if err := (&membership{path: file, ClusterID: "kb-1"}).saveIdentity(nil, make([]byte, grants.SecretSize), founder.roots, nil); err != nil {
		t.Fatal(err)
	}
	m, err := MemberOf(dir)
	if want := []string{"nats://10.0.0.1:1", "nats://10.0.0.2:1"}; err != nil || m.Host != "h2" || m.Process != held.Process || m.Program == "" || m.CA == "" || !slices.Equal(m.Servers, want) {
		t.Errorf("%+v, %v; want the others' servers first", m, err)
	}
	write(t, file, member+`,"removed":true}`)
	if _, err := MemberOf(dir); !errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), "removed") {
		t.Errorf("a removed host: %v, want refused", err)
	}
	write(t, file, member+"}")
	held.Close()
	held = nil
	if _, err := MemberOf(dir); !errors.Is(err, kbroker.NotFound) || kbroker.AsError(err).Hint == "" {
		t.Errorf("without an agent: %v, want not found with a hint", err)
	}
}

// TestARemovedHostIsNotServedAgain: whatever asks for a restart, it ends.
func TestARemovedHostIsNotServedAgain(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, membershipFile), `{"cluster_id":"kb-1","host":"h2","role":"core","client":"127.0.0.1:1","removed":true}`)
	for range 2 {
		if err := Serve(t.Context(), Config{Dir: dir}); !errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), "removed") {
			t.Errorf("%v, want refused because it was removed", err)
		}
	}
}
