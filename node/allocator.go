package node

import (
	"context"
	"log/slog"

	"github.com/kbroker/kbroker/allocator"
)

// RunAllocator runs the built-in allocator program of the app that the
// environment names, until ctx ends. It is what the hidden command `builtin
// allocator` does.
func RunAllocator(ctx context.Context, log *slog.Logger) error {
	return allocator.Serve(ctx, nil, log)
}
