package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/stamp"
	"github.com/kbroker/kbroker/internal/wait"
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
			p, err := cache.get(t.Context(), kbroker.DefaultTenant, want)
			if err != nil {
				t.Errorf("get: %v", err)
				return
			}
			info, err := os.Stat(p.path)
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
		if p, err := c.cache(dir).get(t.Context(), kbroker.DefaultTenant, w); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("get %+v: %+v %v", w, p, err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, artifactsDir))
	if err != nil || len(left) != 0 {
		t.Errorf("left on disk: %v %v", left, err)
	}
}

// Before each start, of this agent and of a later one.
func TestAChangedProgramIsFetchedAgain(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	want := c.put([]byte(script))
	first := c.cache(dir)
	p, err := first.get(t.Context(), kbroker.DefaultTenant, want)
	if err != nil {
		t.Fatal(err)
	}
	settle(t, p.path)
	for name, change := range map[string]func(path string) error{
		"nothing":          func(string) error { return nil },
		"only looked like": func(path string) error { return os.WriteFile(path, []byte(script), 0o755) },
		"as long":          func(path string) error { return os.WriteFile(path, []byte(strings.ToUpper(script)), 0o755) },
		"longer":           func(path string) error { return os.WriteFile(path, []byte(script+"evil\n"), 0o755) },
		"backdated": func(path string) error {
			info, err := os.Stat(path)
			return errors.Join(err, os.WriteFile(path, []byte(strings.ToUpper(script)), 0o755), os.Chtimes(path, info.ModTime(), info.ModTime()))
		},
		"its mode": func(path string) error { return os.Chmod(path, 0o4755) },
		"a link": func(path string) error {
			other := filepath.Join(t.TempDir(), "evil")
			return errors.Join(os.WriteFile(other, []byte(script), 0o755), os.Remove(path), os.Symlink(other, path))
		},
		"a directory": func(path string) error {
			return errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "sub"), 0o755))
		},
		"removed": os.Remove,
	} {
		for agent, cache := range map[string]*cache{"this agent": first, "a later one": c.cache(dir)} {
			if _, err := cache.get(t.Context(), kbroker.DefaultTenant, want); err != nil { // which knows it now
				t.Fatal(err)
			}
			if err := change(p.path); err != nil {
				t.Fatal(err)
			}
			got, err := cache.get(t.Context(), kbroker.DefaultTenant, want)
			if err != nil {
				t.Fatalf("%s, %s: %v", name, agent, err)
			}
			info, err := os.Lstat(got.path)
			if b, readErr := os.ReadFile(got.path); err != nil || readErr != nil || string(b) != script || info.Mode() != artifactMode {
				t.Errorf("%s, %s: %q of mode %v is run, %v, %v", name, agent, b, info.Mode(), err, readErr)
			}
		}
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
		p, err := cache.get(t.Context(), kbroker.DefaultTenant, c.put(fmt.Appendf(nil, "program %d", i)))
		if err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(time.Duration(i-100) * time.Hour)
		for _, file := range []string{p.path, p.path + usedSuffix} {
			if err := os.Chtimes(file, used, used); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			named = filepath.Base(p.path)
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

// settle waits until what is done to a file changes its stamp.
func settle(t *testing.T, path string) {
	t.Helper()
	wait.Until(t, 5*time.Second, func() error {
		info, err := os.Lstat(path)
		if err == nil && !stamp.Of(info).Settled(time.Now()) {
			err = errors.New("just written")
		}
		return err
	})
}

// An unchanged program is not read again: that is what a stamp is for.
func TestAnUnchangedProgramIsReadOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, artifactMode); err != nil {
		t.Fatal(err)
	}
	var k checks
	if err := k.file(t.Context(), path, digest([]byte(script))); err != nil || k.whole != (stamp.Stamp{}) {
		t.Errorf("just written: %v, stamp %+v; want none", err, k.whole)
	}
	settle(t, path)
	if err := k.file(t.Context(), path, digest([]byte(script))); err != nil || k.whole == (stamp.Stamp{}) {
		t.Errorf("settled: %v, stamp %+v; want one", err, k.whole)
	}
	if err := k.file(t.Context(), path, "another digest"); err != nil {
		t.Errorf("it was read again: %v", err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.file(t.Context(), path, digest([]byte(script))); !errors.Is(err, errDamaged) || k.whole != (stamp.Stamp{}) {
		t.Errorf("changed: %v, stamp %+v", err, k.whole)
	}
}

// What a start costs before the fork, for a program of 20 MB.
func BenchmarkCheckOfAProgram(b *testing.B) {
	path := filepath.Join(b.TempDir(), "program")
	content := bytes.Repeat([]byte("0123456789abcdef"), 20<<20/16)
	sum := digest(content)
	if err := errors.Join(os.WriteFile(path, content, 0o600), os.Chmod(path, artifactMode)); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"full", "stamp"} {
		b.Run(name, func(b *testing.B) {
			var k checks
			for b.Loop() {
				if name == "full" {
					k = checks{}
				}
				if err := k.file(b.Context(), path, sum); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
