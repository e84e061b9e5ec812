package durable

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A tree that is deeper than there are files to open, or than a path can be long, goes;
// what a link in it leads to stays.
func TestADeepTreeIsRemoved(t *testing.T) {
	top := t.TempDir()
	dir, outside := filepath.Join(top, "work"), filepath.Join(top, "outside")
	for _, d := range []string{dir, outside} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const levels = 5000
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for n := range levels {
		if err := unix.Mkdirat(at, "deep", 0o700); err != nil {
			t.Fatal(err)
		}
		if n%1000 == 0 {
			if err := unix.Symlinkat(outside, at, "link"); err != nil {
				t.Fatal(err)
			}
		}
		below, err := unix.Openat(at, "deep", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if n%7 == 0 { // closed, also to its owner
			if err := unix.Fchmodat(at, "deep", 0, 0); err != nil {
				t.Fatal(err)
			}
		}
		unix.Close(at)
		at = below
	}
	unix.Close(at)
	if err := os.Mkdir(filepath.Join(dir, ".removed-1"), 0o700); err != nil { // a name that is taken
		t.Fatal(err)
	}
	for i := range 2 * removeBatch {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveTree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
		t.Error(err)
	}
	for _, path := range []string{dir, filepath.Join(outside, "kept")} { // nothing, and a file
		if err := RemoveTree(t.Context(), path); err != nil {
			t.Error(err)
		}
	}
}
