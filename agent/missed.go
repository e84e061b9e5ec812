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
		if m.Parent != os.Getpid() {
			if status, known := zombieStatus(r.procID); known {
				e := exitOf(status)
				return &e
			}
			continue
		}
		for until := time.Now().Add(lastThread); ; <-time.After(lockPoll) {
			var status unix.WaitStatus
			pid, err := unix.Wait4(r.PID, &status, unix.WNOHANG, nil)
			if err == nil && pid == r.PID {
				e := exitOf(status)
				return &e
			}
			if err != nil || time.Now().After(until) {
				break
			}
		}
	}
	return nil
}

// lastThread is how long the threads of a process may take to end after its first
// one: until then nobody can take its status.
const lastThread = 250 * time.Millisecond

// lapse concludes an incarnation that ended while no agent watched.
func (i *instance) lapse() {
	i.lapsed = false
	if i.exit == nil {
		i.exit = &kbroker.Exit{Unknown: true, At: time.Now().UTC()}
	}
}
