package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/kbroker/kbroker"
)

// sweepWait bounds what SIGKILL may take.
const sweepWait = 10 * time.Second

// Sweep ends every process that the agents of dir have started: those that its
// records name, those that carry dir in their environment, and their process
// groups; SIGTERM first, SIGKILL after grace, until none is left. Zombies count
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
	return killAll(ctx, scan, func(m marked) bool { return m.HostDir == path || recorded.names(m, path) }, grace, sweepWait)
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
