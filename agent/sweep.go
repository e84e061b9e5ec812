package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/cgroup"
)

// sweepWait bounds what SIGKILL may take.
const sweepWait = 10 * time.Second

// Sweep ends every process that the agents of dir have started: those that its
// records name, those that carry dir in their environment, their process
// groups, and all that is in control groups of dir, which are removed; SIGTERM first, SIGKILL after grace, until none is left. Zombies count
// as gone. The agent of dir must be dead or on its way out: one that lives
// would start its instances again. killed is how many were signalled; nothing
// at all, a directory that is not there included, is 0 and no error.
func Sweep(ctx context.Context, dir string, grace time.Duration) (killed int, err error) {
	path, err := cleanPath(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	recorded, err := recordedProcesses(&Dir{Path: path})
	if err != nil {
		return 0, err
	}
	boot, err := bootID()
	if err != nil {
		return 0, err
	}
	groups := cgroup.Find(path, boot)
	grouped := make(map[int]bool)
	look := func() ([]marked, error) {
		clear(grouped)
		for _, name := range groups.Names() {
			pids, err := groups.Group(name).Processes()
			if err != nil {
				return nil, err
			}
			for _, pid := range pids {
				grouped[pid] = true
			}
		}
		return scan() // after that: a pid of a group is there, or its process has ended
	}
	kill := func() {
		for _, name := range groups.Names() {
			_ = groups.Group(name).Kill() // its processes are signalled one by one as well
		}
	}
	killed, err = killAll(ctx, look, func(m marked) bool { return m.HostDir == path || recorded.names(m, path) || grouped[m.PID] }, kill, grace, sweepWait)
	return killed, errors.Join(err, removeGroups(ctx, groups))
}

// removeGroups removes the control groups, with whatever came to be in them since.
func removeGroups(ctx context.Context, groups *cgroup.Root) error {
	ctx, cancel := context.WithTimeout(ctx, sweepWait)
	defer cancel()
	var errs []error
	for _, name := range groups.Names() {
		_, err := groups.Group(name).End(ctx)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, groups.Remove())...)
}

// recorded are the processes that records name, with the home and the start of the
// instance.
type recorded map[procID]struct {
	home  string
	start kbroker.Incarnation
}

func (r recorded) names(m marked, hostDir string) bool {
	is, ok := r[m.procID]
	return ok && !isForeign(m, hostDir, is.home, is.start)
}

// recordedProcesses are those of this boot.
func recordedProcesses(d *Dir) (recorded, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	keys, err := d.homes()
	if err != nil {
		return nil, err
	}
	ids := make(recorded)
	for _, k := range keys {
		var r record
		home := d.home(k)
		// A damaged record names nobody: the environment finds them.
		if loadSealed(filepath.Join(home, recordFile), &r) == nil && r.BootID == boot && r.PID > 0 {
			is := ids[r.procID]
			is.home, is.start = home, r.Incarnation
			ids[r.procID] = is
		}
	}
	return ids, nil
}
