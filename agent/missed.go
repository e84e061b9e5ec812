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
// watched and was not reaped by anybody; nil: nobody knows it.
func (a *Agent) missedExit(r record, all []marked) *kbroker.Exit {
	if r.PID == 0 || r.BootID != a.boot {
		return nil
	}
	for _, m := range all {
		if m.procID != r.procID || !m.ended() {
			continue
		}
		var status unix.WaitStatus
		known := false
		if m.Parent == os.Getpid() {
			pid, err := unix.Wait4(r.PID, &status, unix.WNOHANG, nil)
			known = err == nil && pid == r.PID
		} else {
			status, known = zombieStatus(r.procID)
		}
		if known {
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
