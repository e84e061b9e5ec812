//go:build linux

package stamp_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/stamp"
	"github.com/kbroker/kbroker/internal/wait"
)

func TestWhateverIsDoneToASettledFileChangesItsStamp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	of := func() stamp.Stamp {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return stamp.Of(info)
	}
	if of().Settled(time.Now().Add(-time.Hour)) {
		t.Error("a file of the future is settled")
	}
	for name, change := range map[string]func() error{
		"the same content, written again": func() error { return os.WriteFile(path, []byte("text"), 0o600) },
		"content of the same length":      func() error { return os.WriteFile(path, []byte("evil"), 0o600) },
		"its mode, and back":              func() error { return errors.Join(os.Chmod(path, 0o700), os.Chmod(path, 0o600)) },
		"content that is backdated": func() error {
			info, err := os.Stat(path)
			return errors.Join(err, os.WriteFile(path, []byte("more"), 0o600), os.Chtimes(path, info.ModTime(), info.ModTime()))
		},
		"another file with its name": func() error {
			return errors.Join(os.WriteFile(path+".new", []byte("text"), 0o600), os.Rename(path+".new", path))
		},
	} {
		wait.Until(t, 5*time.Second, func() error {
			if !of().Settled(time.Now()) {
				return errors.New("just written")
			}
			return nil
		})
		before := of()
		if before != of() {
			t.Errorf("two looks: %+v and %+v", before, of())
		}
		if err := change(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if after := of(); after == before {
			t.Errorf("%s: the stamp is still %+v", name, after)
		}
	}
}
