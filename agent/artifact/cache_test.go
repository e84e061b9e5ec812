package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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

// core is what cores have, by digest.
type core struct {
	t *testing.T

	mu     sync.Mutex
	files  map[string][]byte
	pieces int // that were asked for
}

func newCore(t *testing.T) *core { return &core{t: t, files: map[string][]byte{}} }

func (c *core) put(content []byte) kbroker.Artifact {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := digest(content)
	c.files[sum] = content
	return kbroker.Artifact{SHA256: sum, SizeBytes: int64(len(content))}
}

func (c *core) fetch(_ context.Context, get kbroker.ArtifactGet) ([]byte, int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pieces++
	file, ok := c.files[get.SHA256]
	if !ok {
		return nil, 0, kbroker.Errorf(kbroker.NotFound, "no artifact %s", get.SHA256)
	}
	size := int64(len(file))
	return file[min(get.Offset, size):min(get.Offset+int64(get.MaxBytes), size)], size, nil
}

func (c *core) cache(dir string) *Cache { return New(Config{Dir: dir, Fetch: c.fetch}) }

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func TestAnArtifactOfManyPiecesIsFetchedOnceAndGoneOnWith(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 3*kbroker.ArtifactChunkBytes/16)
	content = append(content, "end"...)
	want := c.put(content)
	// An earlier transfer came this far.
	part := filepath.Join(dir, want.SHA256+partSuffix)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(part, content[:kbroker.ArtifactChunkBytes+5], 0o600); err != nil {
		t.Fatal(err)
	}
	cache := c.cache(dir)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			p, err := cache.Get(t.Context(), kbroker.DefaultTenant, want)
			if err != nil {
				t.Errorf("get: %v", err)
				return
			}
			info, err := os.Stat(p.Path)
			if err != nil || info.Mode().Perm() != 0o755 || info.Size() != int64(len(content)) {
				t.Errorf("stat: %v %v", info, err)
			}
		})
	}
	all.Wait()
	if c.pieces != 2 {
		t.Errorf("%d pieces were asked for, want the 2 that were missing, once", c.pieces)
	}
	if b, err := os.ReadFile(filepath.Join(dir, want.SHA256)); err != nil || !bytes.Equal(b, content) {
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
		if p, err := c.cache(dir).Get(t.Context(), kbroker.DefaultTenant, w); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("get %+v: %+v %v", w, p, err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left on disk: %v %v", left, err)
	}
}

// Before each start, of this agent and of a later one.
func TestAChangedProgramIsFetchedAgain(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	want := c.put([]byte(script))
	first := c.cache(dir)
	p, err := first.Get(t.Context(), kbroker.DefaultTenant, want)
	if err != nil {
		t.Fatal(err)
	}
	settle(t, p.Path)
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
		for agent, cache := range map[string]*Cache{"this agent": first, "a later one": c.cache(dir)} {
			if _, err := cache.Get(t.Context(), kbroker.DefaultTenant, want); err != nil { // which knows it now
				t.Fatal(err)
			}
			if err := change(p.Path); err != nil {
				t.Fatal(err)
			}
			got, err := cache.Get(t.Context(), kbroker.DefaultTenant, want)
			if err != nil {
				t.Fatalf("%s, %s: %v", name, agent, err)
			}
			info, err := os.Lstat(got.Path)
			if b, readErr := os.ReadFile(got.Path); err != nil || readErr != nil || string(b) != script || info.Mode() != fileMode {
				t.Errorf("%s, %s: %q of mode %v is run, %v, %v", name, agent, b, info.Mode(), err, readErr)
			}
		}
	}
}

func TestTheCacheIsBound(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	cache := c.cache(dir)
	var named string
	for i := range maxIdleArtifacts + 3 {
		p, err := cache.Get(t.Context(), kbroker.DefaultTenant, c.put(fmt.Appendf(nil, "program %d", i)))
		if err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(time.Duration(i-100) * time.Hour)
		for _, file := range []string{p.Path, p.Path + usedSuffix} {
			if err := os.Chtimes(file, used, used); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			named = filepath.Base(p.Path)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, digest(nil)+partSuffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cache.Prune(map[string]bool{named: true}); err != nil {
		t.Fatal(err)
	}
	for i := range maxIdleArtifacts + 3 {
		_, err := os.Stat(filepath.Join(dir, digest(fmt.Appendf(nil, "program %d", i))))
		if kept, want := err == nil, i == 0 || i >= 3; kept != want {
			t.Errorf("program %d is kept: %t, want %t", i, kept, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*"+partSuffix)); err != nil || len(left) != 0 {
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
	if err := os.Chmod(path, fileMode); err != nil {
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
	if err := errors.Join(os.WriteFile(path, content, 0o600), os.Chmod(path, fileMode)); err != nil {
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
