package agent

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestAnInstanceKeepsItsUser(t *testing.T) {
	u := &users{in: userRange{100, 2}, taken: map[uint32]kbroker.StatusKey{}}
	keys := []kbroker.StatusKey{{Tenant: "t", Instance: "a"}, {Tenant: "t", Instance: "b"}}
	first, second := u.of(keys[0]), u.of(keys[1]) // of two, one may have come second to its own
	if first == second || !u.has(first) || !u.has(second) || u.has(99) || u.has(102) {
		t.Fatalf("users %d and %d of 100 and 101", first, second)
	}
	u.free(keys[0])
	if now := u.of(keys[1]); now != second {
		t.Errorf("when another one has gone, its user is %d, and was %d", now, second)
	}
	if now := u.of(keys[0]); now != first {
		t.Errorf("the one that is left is %d, want %d", now, first)
	}
}

func TestUsersAreThoseOfTheNamespace(t *testing.T) {
	all, few := "         0          0 4294967295\n", "         0     100000      65536\n"
	for name, c := range map[string]struct {
		uids, gids string
		want       uint32 // the first; 0: none
	}{
		"a host":                  {all, all, 1_900_000_000},
		"a container":             {few, few, 20_000},
		"a container with groups": {few, all, 20_000},
		"one user":                {"0 1000 1\n", "0 1000 1\n", 0},
		"garbage":                 {"x", "", 0},
	} {
		if r, ok := pickRange(c.uids, c.gids); r.first != c.want || ok != (c.want > 0) {
			t.Errorf("%s: users from %d on (%t), want %d", name, r.first, ok, c.want)
		}
	}
}

// What is given to another user is what is in the directory, not what links in it lead to.
func TestADirectoryIsGivenWithoutFollowingLinks(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	top := t.TempDir()
	dir, outside := filepath.Join(top, "work"), filepath.Join(top, "outside")
	for _, d := range []string{filepath.Join(dir, "below"), outside} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "passwd"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "below", "link")); err != nil {
		t.Fatal(err)
	}
	const user = 1_900_000_127
	if err := belongs(dir, user); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]uint32{dir: user, filepath.Join(dir, "below"): user, filepath.Join(dir, "below", "link"): user, outside: 0, filepath.Join(outside, "passwd"): 0} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := info.Sys().(*syscall.Stat_t); !ok || s.Uid != want || s.Gid != want {
			t.Errorf("%s is of user %d, want %d", path, s.Uid, want)
		}
	}
}
