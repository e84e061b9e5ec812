package allocator

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/pulse"
	"github.com/kbroker/kbroker/internal/wait"
)

// envProgram has this test be the program of a policy: one that there is, or none.
const envProgram = "ALLOCATOR_TEST_PROGRAM"

// TestAProgramSaysWhyItCannotRun, and ends with 1.
func TestAProgramSaysWhyItCannotRun(t *testing.T) {
	switch os.Getenv(envProgram) {
	case "policy":
		Run(Spread)
	case "none":
		Run(nil)
	}
	for program, text := range map[string]string{"policy": "an allocator runs as an instance", "none": "the policy is nil"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestAProgramSaysWhyItCannotRun$")
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), envProgram+"="+program, connect.EnvURL+"=nats://127.0.0.1:1", "HOME="+cmd.Dir, "XDG_CONFIG_HOME="+cmd.Dir)
		out, err := cmd.CombinedOutput()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != 1 || !strings.Contains(string(out), text) {
			t.Errorf("with %s it ended with %v and said %s, want 1 and %q", program, err, out, text)
		}
	}
}

// TestAProgramIsAnAllocator: by the file of its agent, whom it shows that it lives; and leaves
// when it is told to.
func TestAProgramIsAnAllocator(t *testing.T) {
	w := newWorld(t)
	w.super()
	own := instance("shop-allocator-1")
	own.Servers = []string{w.server.URL}
	file := filepath.Join(t.TempDir(), "instance.json")
	b, err := json.Marshal(own)
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(connect.EnvInstance, file)
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, func(View) Decision {
			return Decision{Wanted: counts{"web": 3}, Why: map[kbroker.ServiceName]string{"web": "so"}}
		}, slog.New(slog.DiscardHandler))
	}()
	if d := w.demand("by its own policy", func(d kbroker.Demand) bool { return d.Reason == "web: so" }); d.Refused != "" {
		t.Errorf("demand %+v", d)
	}
	alive := filepath.Join(filepath.Dir(file), pulse.File)
	wait.Until(t, within, func() error { _, err := os.Stat(alive); return err })
	leave()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(within):
		t.Fatal("it has not left")
	}
	if _, err := os.Stat(alive); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left, and shows that it lives: %v", err)
	}
}
