package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

const script = "#!/bin/sh\necho script \"$@\"\nexec sleep 60\n"

func (c *core) put(content []byte) kbroker.Artifact {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := digest(content)
	c.files[sum] = content
	return kbroker.Artifact{SHA256: sum, SizeBytes: int64(len(content))}
}

func TestAnUploadedProgramRuns(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "")
	p.Spec.Artifact, p.Spec.Args = c.put([]byte(script)), []string{"one", "two"}
	c.want(p)
	a := c.startAgent(t.TempDir())
	c.awaitState(p.Instance, kbroker.StateReady)
	c.await(p.Instance, 5*time.Second, "output", func(kbroker.Status) bool {
		b, err := os.ReadFile(filepath.Join(a.home(p.Instance), outputFile))
		return err == nil && string(b) == "script one two\n"
	})
}

func TestAProgramThatTheClusterDoesNotHaveIsReported(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "")
	p.Spec.Artifact.SHA256 = digest([]byte("nowhere"))
	p.Backoff = 5
	c.want(p)
	c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateBackoff)
	if s.Exit != nil || s.Message != "artifact: no artifact "+p.Spec.Artifact.SHA256 {
		t.Errorf("status %+v", s)
	}
}

func TestAnArtifactOfManyPiecesComesOverTheBus(t *testing.T) {
	c := newCore(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 2*kbroker.ArtifactChunkBytes/16)
	content = append(content, "end"...)
	cache := newCache(Config{Dir: &Dir{Path: t.TempDir()}, Conn: c.conn, Log: discard})
	p, err := cache.Get(t.Context(), kbroker.DefaultTenant, c.put(content))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(p.Path); err != nil || !bytes.Equal(b, content) || c.pieces != 3 {
		t.Errorf("%d bytes in %d pieces, %v; want %d in 3", len(b), c.pieces, err, len(content))
	}
}

func TestAFetchWaitsForACoreAsLongAsItMay(t *testing.T) {
	c := newCore(t)
	want := kbroker.Artifact{SHA256: digest([]byte(script))}
	cache := newCache(Config{Dir: &Dir{Path: t.TempDir()}, Conn: c.srv.Connect(t), Log: discard})
	c.srv.Shutdown()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := cache.Get(ctx, kbroker.DefaultTenant, want); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("get without a core: %v", err)
	}
}
