package sdk

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/pulse"
)

// showAlive shows the agent that this process lives, until the caller calls what
// it returns. An app that no agent started has nobody to show it to.
func (a *App) showAlive() (stop func()) {
	file := os.Getenv(connect.EnvInstance)
	if a.identity.Host == "" || file == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pulse.Beat(ctx, filepath.Join(filepath.Dir(file), pulse.File), a.started, func() {})
	}()
	return func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(farewell): // a disk that hangs keeps no app from its end
		}
	}
}
