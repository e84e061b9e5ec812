package agent

import (
	"context"
	"log/slog"
	"time"
)

// settleAfter is how long what was written may be lost with the machine's power.
const settleAfter = 500 * time.Millisecond

// settler has what was written without a sync outlast a power-off soon after: by one
// sync of the file system for all that came together. Each by itself, hundreds of starts
// would wait for the disk, and with them the store of a core.
type settler struct {
	path  string // on the file system
	log   *slog.Logger
	dirty chan struct{} // capacity 1
}

func newSettler(cfg Config) *settler {
	return &settler{path: cfg.Dir.Path, log: cfg.Log, dirty: make(chan struct{}, 1)}
}

// stir notes that something was written.
func (s *settler) stir() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// run settles until ctx ends.
func (s *settler) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.dirty:
		}
		pause(ctx, settleAfter)
		if err := syncFileSystem(s.path); err != nil {
			s.log.Warn("what was written may be lost with the power", "err", err)
		}
	}
}
