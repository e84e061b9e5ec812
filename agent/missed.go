package agent

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
)

// An agent that is restarted in place keeps its children, also those that end
// between the two: they wait as zombies for whoever takes their status.

// missedExit takes the exit of a recorded process that ended while no agent
// watched and is still a child of this process; nil: nobody knows it.
func (a *Agent) missedExit(r record, all []marked) *kbroker.Exit {
	if r.PID == 0 || r.BootID != a.boot {
		return nil
	}
	for _, m := range all {
		if m.procID != r.procID || !m.ended() || m.Parent != os.Getpid() {
			continue
		}
		var status unix.WaitStatus
		if pid, err := unix.Wait4(r.PID, &status, unix.WNOHANG, nil); err == nil && pid == r.PID {
			e := exitOf(status)
			return &e
		}
	}
	return nil
}

// lapse concludes an incarnation that ended while no agent watched.
func (i *instance) lapse() {
	i.lapsed = false
	if i.exit == nil {
		i.exit = &kbroker.Exit{Unknown: true, At: time.Now().UTC()}
	}
}
