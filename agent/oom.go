package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ordinaryOOMScore is the score of a process that nobody favours.
const ordinaryOOMScore = "0"

// expose takes from a process that the agent has started what the kernel's OOM
// killer grants the agent (the unit of `kbroker agent install` says so) and
// children inherit. What the process has forked before keeps it; that is a
// moment after its start. A process that has ended needs nothing.
func expose(pid int) error {
	return exposeAt(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
}

func exposeAt(path string) error {
	score, err := os.ReadFile(path)
	if err == nil && strings.HasPrefix(string(score), "-") {
		err = os.WriteFile(path, []byte(ordinaryOOMScore), 0)
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
