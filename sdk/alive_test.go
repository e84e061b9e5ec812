package sdk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/pulse"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestAnAppShowsThatItLives without a bus, too, and no more once it has ended.
func TestAnAppShowsThatItLives(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(connect.EnvInstance, filepath.Join(dir, "instance.json"))
	alive := filepath.Join(dir, pulse.File)
	s := natstest.Start(t)
	a := newApp(s.URL, "echo-echo-1")
	r := start(t, a)
	beats := func(when string) {
		t.Helper()
		first := time.Time{}
		wait.Until(t, patience, func() error {
			info, err := os.Stat(alive)
			if err != nil {
				return err
			}
			if first.IsZero() {
				first = info.ModTime()
			}
			if info.ModTime().Equal(first) {
				return errors.New("no sign of life " + when)
			}
			return nil
		})
	}
	beats("with a bus")
	s.Shutdown()
	beats("without a bus")
	r.stop()
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Lstat(alive); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end of Run: %v, want that nothing is left to wait for", err)
	}
}

// TestAnAppThatCannotShowThatItLivesRuns all the same.
func TestAnAppThatCannotShowThatItLivesRuns(t *testing.T) {
	t.Setenv(connect.EnvInstance, filepath.Join(t.TempDir(), "nowhere", "instance.json"))
	r := start(t, newApp(natstest.Start(t).URL, "echo-echo-1"))
	r.stop()
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v", err)
	}
}
