package allocator

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/pulse"
	"github.com/kbroker/kbroker/state"
)

// farewell bounds the last sign of life of a process that ends.
const farewell = 500 * time.Millisecond

// Run is all of a program that decides for its app by a policy of its own, which the spec
// names:
//
//	allocator: {run: bin/policy, build: "go build -o bin/policy ./policy"}
//
// It runs until it is told to leave (SIGTERM, SIGINT, or its placement has gone) and ends the
// process: with 0, or with 1 and the reason on slog.Default when it could not run. A second
// signal ends it at once. An agent starts the program, as one of the app's two allocators.
func Run(policy Policy) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	log := slog.Default()
	err := error(kbroker.Errorf(kbroker.Invalid, "the policy is nil"))
	if policy != nil {
		err = Serve(ctx, policy, log)
	}
	if err != nil {
		e := kbroker.AsError(err)
		log.Error("allocator failed", "err", err, "code", e.Code, "hint", e.Hint)
		os.Exit(1)
	}
	os.Exit(0)
}

// Serve runs the allocator of the app that the environment names, until ctx ends or its
// placement has gone; then it returns nil. policy is the app's own; nil: the one that its spec
// names. Errors: Invalid - no agent has started this process; and those of Allocator.Run.
func Serve(ctx context.Context, policy Policy, log *slog.Logger) error {
	target, err := connect.Find("")
	if err != nil {
		return err
	}
	if target.Instance == nil {
		return kbroker.Errorf(kbroker.Invalid, "an allocator runs as an instance").WithHint("agents start it; %s names no instance file", connect.EnvInstance)
	}
	defer showAlive()()
	conn, err := target.Connect(ctx, string(target.Instance.Instance))
	if err != nil {
		return err
	}
	defer conn.Close()
	times := state.Tuned
	if target.Instance.StockRaft {
		times = state.Stock
	}
	a, err := New(Config{Instance: *target.Instance, Conn: conn, Times: times, Policy: policy, Log: log})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// showAlive shows the agent that this process lives, until the caller calls what it returns.
func showAlive() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pulse.Beat(ctx, filepath.Join(filepath.Dir(os.Getenv(connect.EnvInstance)), pulse.File), time.Now(), func() {})
	}()
	return func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(farewell): // a disk that hangs keeps no process from its end
		}
	}
}
