package node

import (
	"errors"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

// application is a process as an agent of dir would have started it.
func application(t *testing.T, dir string) (ended <-chan struct{}) {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "300")
	cmd.Env = []string{"KBROKER_HOST_DIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { defer close(gone); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-gone })
	return gone
}

func awaitEnd(t *testing.T, application <-chan struct{}) {
	t.Helper()
	select {
	case <-application:
	case <-time.After(10 * time.Second):
		t.Error("the application runs on")
	}
}

// TestTheNextStartEndsWhatARemovedHostRuns: the agent before was killed while it
// did.
func TestTheNextStartEndsWhatARemovedHostRuns(t *testing.T) {
	for name, role := range map[string]kbroker.Role{"core": kbroker.RoleCore, "worker": kbroker.RoleWorker} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := &membership{path: filepath.Join(dir, membershipFile), ClusterID: "kb-test", Host: "h2", Role: role, Removed: true}
			if err := m.save(); err != nil {
				t.Fatal(err)
			}
			app := application(t, dir)
			if err := Run(t.Context(), Config{Dir: dir}); !errors.Is(err, kbroker.Refused) {
				t.Errorf("the host ended with %v, want refused", err)
			}
			awaitEnd(t, app)
		})
	}
}
