package agent

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/spawn"
)

// userRange are numbers of users that nobody else gives to anybody.
type userRange struct{ first, count uint32 }

// userRanges are tried in turn. The first is unused by all that systemd knows of
// (https://systemd.io/UIDS-GIDS/); the second is for containers, whose users end at
// 65535.
var userRanges = []userRange{{1_900_000_000, 1 << 27}, {20_000, 40_000}}

// pickRange is the first range of which all users are there for this process, by
// the texts of /proc/self/uid_map and gid_map (user_namespaces(7)).
func pickRange(maps ...string) (userRange, bool) {
	for _, r := range userRanges {
		all := true
		for _, m := range maps {
			all = all && mapped(m, r)
		}
		if all {
			return r, true
		}
	}
	return userRange{}, false
}

func mapped(text string, r userRange) bool {
	for line := range strings.Lines(text) {
		var first, outside, count uint64
		if n, _ := fmt.Sscan(line, &first, &outside, &count); n == 3 && first <= uint64(r.first) && uint64(r.first)+uint64(r.count) <= first+count {
			return true
		}
	}
	return false
}

// users gives each instance of this host a user of its own: the same at each start,
// whatever is lost. Those of several agents on a machine differ by their directories.
// Not safe for concurrent use.
type users struct {
	in    userRange
	salt  string // the data directory
	taken map[uint32]kbroker.StatusKey
}

// newUsers is nil, with the reason, where instances cannot have users of their own.
func newUsers(dir string) (*users, string) {
	if err := spawn.Isolates(); err != nil {
		return nil, err.Error()
	}
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return nil, err.Error()
	}
	gids, err := os.ReadFile("/proc/self/gid_map")
	if err != nil {
		return nil, err.Error()
	}
	in, ok := pickRange(string(uids), string(gids))
	if !ok {
		return nil, "this container has too few users"
	}
	return &users{in: in, salt: dir, taken: map[uint32]kbroker.StatusKey{}}, ""
}

// of is the user of an instance.
func (u *users) of(k kbroker.StatusKey) uint32 {
	sum := sha256.Sum256([]byte(u.salt + "\x00" + string(k.Tenant) + "\x00" + string(k.Instance)))
	at := binary.BigEndian.Uint32(sum[:]) % u.in.count
	for id, of := range u.taken { // whoever had the one that comes first may be gone
		if of == k {
			return id
		}
	}
	for {
		id := u.in.first + at
		if other, taken := u.taken[id]; !taken || other == k {
			u.taken[id] = k
			return id
		}
		at = (at + 1) % u.in.count
	}
}

// has reports whether a user is one of those.
func (u *users) has(id uint32) bool { return id >= u.in.first && id-u.in.first < u.in.count }

// free gives the user of an instance back.
func (u *users) free(k kbroker.StatusKey) {
	for id, of := range u.taken {
		if of == k {
			delete(u.taken, id)
		}
	}
}

// belongs has a user own an instance's directory, and what earlier starts under
// another one have left in it; links are not followed.
func belongs(dir string, user uint32) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid == user && s.Gid == user {
		return nil
	}
	root, err := os.OpenRoot(dir) // nothing leads out of it, whatever is changed meanwhile
	if err != nil {
		return err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		return root.Lchown(path, int(user), int(user))
	})
	if err == nil {
		err = root.Lchown(".", int(user), int(user)) // the last: it says that all is done
	}
	return err
}
