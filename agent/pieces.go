package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/artifact"
	"github.com/kbroker/kbroker/subjects"
)

// pieceTimeout is how long one core may take for a piece of an artifact: before the
// first one it unpacks the artifact.
const pieceTimeout = 5 * time.Second

func newCache(cfg Config) *artifact.Cache {
	return artifact.New(artifact.Config{
		Dir: filepath.Join(cfg.Dir.Path, artifactsDir),
		Fetch: func(ctx context.Context, get kbroker.ArtifactGet) ([]byte, int64, error) {
			reply, err := ask(ctx, cfg.Conn, subjects.Core(subjects.VerbArtifactGet, get.Tenant), get, pieceTimeout)
			if err != nil {
				return nil, 0, err
			}
			whole, err := strconv.ParseInt(reply.Header.Get(subjects.HeaderSize), 10, 64)
			if err != nil {
				return nil, 0, fmt.Errorf("piece of an artifact without its length: %w", err)
			}
			return reply.Data, whole, nil
		},
		Log: cfg.Log,
	})
}
