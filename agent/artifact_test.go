package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
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

func (c *core) cache(dir string) *cache {
	return newCache(Config{Dir: &Dir{Path: dir}, Conn: c.conn, Log: discard})
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
		r, err := readOutput(filepath.Join(a.home(p.Instance), outputFile), 0, 100)
		return err == nil && string(r.Data) == "script one two\n"
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

func TestAnArtifactOfManyPiecesIsFetchedOnceAndGoneOnWith(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 3*kbroker.ArtifactChunkBytes/16)
	content = append(content, "end"...)
	want := c.put(content)
	// An earlier transfer came this far.
	part := filepath.Join(dir, artifactsDir, want.SHA256+partSuffix)
	if err := os.MkdirAll(filepath.Dir(part), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(part, content[:kbroker.ArtifactChunkBytes+5], 0o600); err != nil {
		t.Fatal(err)
	}
	cache := c.cache(dir)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			path, err := cache.get(t.Context(), kbroker.DefaultTenant, want)
			if err != nil {
				t.Errorf("get: %v", err)
				return
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o755 || info.Size() != int64(len(content)) {
				t.Errorf("stat: %v %v", info, err)
			}
		})
	}
	all.Wait()
	if c.pieces != 2 {
		t.Errorf("%d pieces were asked for, want the 2 that were missing, once", c.pieces)
	}
	if b, err := os.ReadFile(filepath.Join(dir, artifactsDir, want.SHA256)); err != nil || !bytes.Equal(b, content) {
		t.Errorf("content differs, %v", err)
	}
}

func TestAWrongDigestIsRefusedAndNotLeftOnDisk(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	want := c.put([]byte("good"))
	c.files[want.SHA256] = []byte("evil")
	longer := kbroker.Artifact{SHA256: digest([]byte("x")), SizeBytes: 1}
	c.files[longer.SHA256] = []byte("more than was said")
	for _, w := range []kbroker.Artifact{want, longer, {SHA256: "../../etc/passwd"}, {SHA256: ""}} {
		if path, err := c.cache(dir).get(t.Context(), kbroker.DefaultTenant, w); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("get %+v: %q %v", w, path, err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, artifactsDir))
	if err != nil || len(left) != 0 {
		t.Errorf("left on disk: %v %v", left, err)
	}
}

func TestACachedArtifactIsVerifiedBeforeItsFirstUse(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	want := c.put([]byte(script))
	path, err := c.cache(dir).get(t.Context(), kbroker.DefaultTenant, want)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\nevil\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if path, err = c.cache(dir).get(t.Context(), kbroker.DefaultTenant, want); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != script {
		t.Errorf("a changed file was used: %q %v", b, err)
	}
}

func TestAFetchWaitsForACoreAsLongAsItMay(t *testing.T) {
	c := newCore(t)
	want := kbroker.Artifact{SHA256: digest([]byte(script))}
	cache := newCache(Config{Dir: &Dir{Path: t.TempDir()}, Conn: c.srv.Connect(t), Log: discard})
	c.srv.Shutdown()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := cache.get(ctx, kbroker.DefaultTenant, want); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("get without a core: %v", err)
	}
}

func TestTheCacheIsBound(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	cache := c.cache(dir)
	var named string
	for i := range maxIdleArtifacts + 3 {
		path, err := cache.get(t.Context(), kbroker.DefaultTenant, c.put(fmt.Appendf(nil, "program %d", i)))
		if err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(time.Duration(i-100) * time.Hour)
		if err := os.Chtimes(path, used, used); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			named = filepath.Base(path)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, artifactsDir, digest(nil)+partSuffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cache.prune(map[string]bool{named: true}); err != nil {
		t.Fatal(err)
	}
	for i := range maxIdleArtifacts + 3 {
		_, err := os.Stat(filepath.Join(dir, artifactsDir, digest(fmt.Appendf(nil, "program %d", i))))
		if kept, want := err == nil, i == 0 || i >= 3; kept != want {
			t.Errorf("program %d is kept: %t, want %t", i, kept, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, artifactsDir, "*"+partSuffix)); err != nil || len(left) != 0 {
		t.Errorf("left of transfers: %v %v", left, err)
	}
}
