package durable

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// holds checks that dir has these files with this content, and nothing else.
func holds(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if content, ok := want[e.Name()]; !ok || err != nil || string(raw) != content {
			t.Errorf("%s is there with %q, %v; want %q", e.Name(), raw, err, want)
		}
	}
	if len(entries) != len(want) {
		t.Errorf("there are %v, want %q", entries, want)
	}
}

func TestReplaceGivesContentAndMode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, step := range []struct {
		content string
		mode    os.FileMode
	}{{"first", 0o600}, {"second", 0o644}, {"", 0o666}, {"third", 0o400}, {"over a file that cannot be written", 0o600}} {
		if err := Replace(path, []byte(step.content), step.mode); err != nil {
			t.Fatal(err)
		}
		holds(t, dir, map[string]string{"f": step.content})
		if info, err := os.Stat(path); err != nil || info.Mode() != step.mode {
			t.Errorf("%q: mode is %v, %v; want %v", step.content, info.Mode(), err, step.mode)
		}
	}
}

func TestAReaderOfTheOldFileKeepsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := Replace(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Replace(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if raw, err := io.ReadAll(f); err != nil || string(raw) != "old" {
		t.Errorf("who had it open reads %q, %v; want old", raw, err)
	}
}

func TestAFailureLeavesTheOldContentAndNothingBeside(t *testing.T) {
	full := errors.New("no space left")
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, before := range []map[string]string{{}, {"f": "old"}} {
		for name, content := range before {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := replace(path, 0o600, true, func(w io.Writer) error {
			if _, err := w.Write([]byte("hal")); err != nil {
				return err
			}
			return full
		})
		if !errors.Is(err, full) {
			t.Errorf("%v, want what the write failed with", err)
		}
		holds(t, dir, before)
	}
}

func TestAnotherKindOfThingIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "in"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("new"), 0o600); err == nil {
		t.Error("a directory was replaced by a file")
	}
	holds(t, path, map[string]string{"in": "kept"})
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("beside it is %v, %v", left, err)
	}
	if err := Replace(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v, want that it does not exist", err)
	}
}

func TestRenameMovesBetweenDirectories(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	from, to := filepath.Join(a, "f"), filepath.Join(b, "g")
	if err := Replace(from, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Rename(from, to); err != nil {
		t.Fatal(err)
	}
	holds(t, a, map[string]string{})
	holds(t, b, map[string]string{"g": "x"})
	if err := Rename(from, to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is not there: %v, want that it does not exist", err)
	}
	holds(t, b, map[string]string{"g": "x"})
}

func TestMakeDirMakesWhatIsMissingAbove(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "a", "b", "c")
	for range 2 { // and is fine with what is there
		if err := MakeDir(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{path, filepath.Dir(path)} {
		if info, err := os.Stat(dir); err != nil || info.Mode() != os.ModeDir|0o700 {
			t.Errorf("%s is %v, %v; want mode 0700", dir, info, err)
		}
	}
	if err := Replace(filepath.Join(root, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"f", filepath.Join("f", "in")} {
		if err := MakeDir(filepath.Join(root, at)); err == nil {
			t.Errorf("%s was made, f is a file", at)
		}
	}
}

// TestClearRemovesWhatACrashHasLeft, and nothing that somebody has put there.
func TestClearRemovesWhatACrashHasLeft(t *testing.T) {
	dir := t.TempDir()
	kept := map[string]string{"f": "f", ".f": "f", ".f.bak": "f", "f.123": "f", ".hidden": "f"}
	for name := range kept {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("f"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cutOff := func(name string) {
		t.Helper()
		f, err := os.CreateTemp(dir, "."+name+".*") // as replace
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	cutOff("f")
	cutOff("g")
	if err := errors.Join(Clear(dir, "g"), Clear(dir, "g")); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".[fg].[0-9]*")); err != nil || len(left) != 1 {
		t.Errorf("cleared of g there are %v, %v; want that of f", left, err)
	}
	if err := errors.Join(Clear(dir), Clear(filepath.Join(dir, "none"))); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, kept)
}

func TestSetAsideKeepsTheNewestBadCopies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a-file")
	if kept, err := SetAside(path); kept != "" || err != nil {
		t.Errorf("of nothing: %q, %v", kept, err)
	}
	for i := range maxAside + 3 {
		if err := os.WriteFile(path, []byte{byte(i)}, 0o600); err != nil {
			t.Fatal(err)
		}
		kept, err := SetAside(path)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(kept); err != nil || len(b) != 1 || b[0] != byte(i) {
			t.Errorf("%s is %v, %v; want %d", kept, b, err, i)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("it is still there: %v", err)
		}
	}
	all := Aside(path)
	if len(all) != maxAside || all[0] != path+".damaged-4" || all[maxAside-1] != path+".damaged-11" {
		t.Errorf("kept are %v, want the newest %d", all, maxAside)
	}
	// A directory in the place of a file, too.
	if err := os.MkdirAll(filepath.Join(path, "in"), 0o700); err != nil {
		t.Fatal(err)
	}
	if kept, err := SetAside(path); err != nil || kept != path+".damaged-12" {
		t.Errorf("a directory: %q, %v", kept, err)
	}
}

// TestReadEither: a damaged file is made good from its copy and kept, one that was
// taken away is not.
func TestReadEither(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	check := func(b []byte) error {
		if !bytes.Contains(b, []byte("good")) {
			return errors.New("it is bad")
		}
		return CheckSum(b)
	}
	whole := WithSum([]byte("good\n"))
	if err := ReplaceTwice(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-1] ^= 4
	for i, bad := range [][]byte{nil, []byte("x"), whole[:len(whole)/2], flipped} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := ReadEither(path, check); err != nil || !bytes.Equal(b, whole) {
			t.Errorf("of %q: %q, %v", bad, b, err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, whole) {
			t.Errorf("after %q the file is %q, %v", bad, b, err)
		}
		if kept := Aside(path); len(kept) != i+1 {
			t.Errorf("kept are %v, want %d", kept, i+1)
		}
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadEither(path, check); err != nil || !bytes.Equal(b, whole) {
		t.Errorf("of a directory: %q, %v", b, err)
	}
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.WriteFile(path+copySuffix, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadEither(path, check); err == nil || err.Error() != "it is bad" {
		t.Errorf("both are damaged: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadEither(path, check); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was taken away: %v", err)
	}
}
