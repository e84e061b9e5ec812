package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/kbroker/kbroker"
)

// isForeign reports that a process which a record names cannot be that start of an
// instance, whatever the record's digest says: it carries another one's marks, or none,
// and nothing of it leads into the instance's home. A program may write over its
// environment (as those do that set their title), or go elsewhere, hardly both. What
// may not be looked at speaks against nobody.
func isForeign(m marked, hostDir, home string, start kbroker.Incarnation) bool {
	if m.HostDir != "" {
		return m.HostDir != hostDir || m.Incarnation != start
	}
	proc := fmt.Sprintf("/proc/%d/", m.PID)
	if groups, err := os.ReadFile(proc + "cgroup"); err == nil && strings.Contains(string(groups), "/"+string(start)+"\n") {
		return false // a control group has the name of its start
	}
	if env, err := os.ReadFile(proc + "environ"); err != nil || strings.Contains(string(env), envHostDir+"=") {
		return false // it may be ours, or has changed since it was looked at
	}
	for _, name := range []string{"cwd", "fd/1", "fd/2"} {
		to, err := os.Readlink(proc + name)
		if strings.HasPrefix(to, home+"/") || err != nil && !errors.Is(err, os.ErrNotExist) {
			return false
		}
	}
	return true
}
