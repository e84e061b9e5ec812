package node

import (
	"context"
	"log/slog"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/allocator"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/state"
)

// RunAllocator runs the built-in allocator program of the app that the
// environment names, until ctx ends. It is what the hidden command `builtin
// allocator` does.
func RunAllocator(ctx context.Context, log *slog.Logger) error {
	target, err := connect.Find("")
	if err != nil {
		return err
	}
	if target.Instance == nil {
		return kbroker.Errorf(kbroker.Invalid, "an allocator runs as an instance").WithHint("agents start it; %s names no instance file", connect.EnvInstance)
	}
	conn, err := target.Connect(ctx, string(target.Instance.Instance))
	if err != nil {
		return err
	}
	defer conn.Close()
	times := state.Tuned
	if target.Instance.StockRaft {
		times = state.Stock
	}
	a, err := allocator.New(allocator.Config{Instance: *target.Instance, Conn: conn, Times: times, Log: log})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}
