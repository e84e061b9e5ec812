package credential_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kbroker/kbroker/internal/credential"
)

// TestRootReadsForNobodyElse: in the directory of another user a link to a credential of
// somebody else is none, symbolic or hard; nor is a pipe, and none is waited for.
func TestRootReadsForNobodyElse(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	const stranger = 1_900_000_321
	own, err := credential.New()
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret.creds")
	if err := own.Write(secret); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		owner int
		link  func(from, to string) error
		read  bool
	}{
		"a symbolic link of root":       {0, os.Symlink, true},
		"a symbolic link of a stranger": {stranger, os.Symlink, false},
		"a hard link of a stranger":     {stranger, os.Link, false},
		"a copy of a stranger": {stranger, func(from, to string) error {
			b, err := os.ReadFile(from)
			if err == nil {
				err = os.WriteFile(to, b, 0o600)
			}
			if err == nil {
				err = os.Chown(to, stranger, stranger)
			}
			return err
		}, true},
	} {
		dir := t.TempDir()
		if err := os.Chown(dir, test.owner, test.owner); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "x.creds")
		if err := test.link(secret, path); err != nil {
			t.Fatal(err)
		}
		if _, err := credential.Load(path); (err == nil) != test.read {
			t.Errorf("%s: %v, want it read: %t", name, err, test.read)
		}
	}
}
