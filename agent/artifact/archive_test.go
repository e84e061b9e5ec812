package artifact

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/archivetest"
	"github.com/kbroker/kbroker/internal/unpack"
)

// program is one; nothing here runs it.
const program = "#!/bin/sh\nexec sleep 60\n"

func (c *core) putArchive(files map[string]string) kbroker.Artifact {
	a := c.put(archivetest.Tar(c.t, files))
	a.Command = "bin/web"
	return a
}

// left is what is in the cache, by name.
func left(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestARefusedArchiveIsNotFetchedAgainByTheSameAgent(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	want := c.put([]byte("no archive"))
	want.Command = "bin/web"
	cache := c.cache(dir)
	for range 3 {
		if p, err := cache.Get(t.Context(), kbroker.DefaultTenant, want); !errors.Is(err, kbroker.Invalid) || err.Error() != "this is no archive" {
			t.Errorf("get: %+v, %v", p, err)
		}
	}
	if names := left(t, dir); c.pieces != 1 || len(names) > 0 {
		t.Errorf("%d pieces were asked for, want 1; %q is left", c.pieces, names)
	}
	want.Command = "" // as a program it is what it is
	if _, err := cache.Get(t.Context(), kbroker.DefaultTenant, want); err != nil {
		t.Error(err)
	}
}

// What is in the tree at the moment of a start is what the archive says, whoever
// unpacked it, and whatever was done to it since.
func TestAChangedTreeIsUnpackedAgain(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	files := map[string]string{"bin/web": program, "share/text": "text", "share/deep/er/text": "more"}
	want := c.putArchive(files)
	first := c.cache(dir)
	p, err := first.Get(t.Context(), kbroker.DefaultTenant, want)
	if err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(p.Tree, "share", "text")
	settle(t, text)
	for name, change := range map[string]func() error{
		"nothing": func() error { return nil },
		"a file": func() error {
			return errors.Join(os.Chmod(text, 0o644), os.WriteFile(text, []byte("evil"), 0o644), os.Chmod(text, 0o444))
		},
		"its mode":           func() error { return os.Chmod(text, 0o4555) },
		"a directory's mode": func() error { return os.Chmod(filepath.Dir(text), 0o777) },
		"a file more":        func() error { return os.WriteFile(filepath.Join(p.Tree, "share", "evil"), nil, 0o644) },
		"a directory more":   func() error { return os.Mkdir(filepath.Join(p.Tree, "evil"), 0o755) },
		"a file less":        func() error { return os.Remove(text) },
		"a link for a file":  func() error { return errors.Join(os.Remove(text), os.Symlink("/etc/passwd", text)) },
		"a link for a directory": func() error {
			share := filepath.Join(p.Tree, "share")
			return errors.Join(os.Rename(share, filepath.Join(t.TempDir(), "share")), os.Symlink("/etc", share))
		},
		"the tree itself": func() error { return os.RemoveAll(p.Tree) },
		"a file for it":   func() error { return errors.Join(os.RemoveAll(p.Tree), os.WriteFile(p.Tree, nil, 0o755)) },
		"the archive and the tree": func() error {
			return errors.Join(os.WriteFile(filepath.Join(dir, want.SHA256), []byte("evil"), 0o755), os.Remove(text))
		},
		"what a crash left": func() error { return os.MkdirAll(filepath.Join(p.Tree+partSuffix, "bin"), 0o755) },
	} {
		for agent, cache := range map[string]*Cache{"this agent": first, "a later one": c.cache(dir)} {
			if _, err := cache.Get(t.Context(), kbroker.DefaultTenant, want); err != nil {
				t.Fatal(err)
			}
			if err := change(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := cache.Get(t.Context(), kbroker.DefaultTenant, want)
			if err != nil || got != p {
				t.Fatalf("%s, %s: %+v, %v; want %+v", name, agent, got, err, p)
			}
			found := map[string]string{}
			err = filepath.WalkDir(p.Tree, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				b, err := os.ReadFile(path)
				found[strings.TrimPrefix(path, p.Tree+"/")] = string(b)
				return err
			})
			for path, content := range files {
				if found[path] != content {
					t.Errorf("%s, %s: %q has %q", name, agent, path, found[path])
				}
			}
			if err != nil || len(found) != len(files) {
				t.Errorf("%s, %s: the tree has %q, %v", name, agent, found, err)
			}
		}
	}
}

// Instances that run from a tree keep their files by name while it is replaced.
func TestAChangedTreeIsReplacedAtOnce(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	want := c.putArchive(map[string]string{"bin/web": program, "share/text": "text"})
	cache := c.cache(dir)
	p, err := cache.Get(t.Context(), kbroker.DefaultTenant, want)
	if err != nil {
		t.Fatal(err)
	}
	done, missing := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(missing)
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := os.Stat(filepath.Join(p.Tree, "share", "text")); err != nil {
				missing <- err
				return
			}
		}
	}()
	for range 50 {
		if err := os.WriteFile(filepath.Join(p.Tree, "evil"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := cache.Get(t.Context(), kbroker.DefaultTenant, want); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	if err := <-missing; err != nil {
		t.Errorf("for a moment there was no file: %v", err)
	}
}

func TestTreesArePruned(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	cache := c.cache(dir)
	idle, err := cache.Get(t.Context(), kbroker.DefaultTenant, c.putArchive(map[string]string{"bin/web": program, "a": "idle"}))
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour)
	for _, file := range []string{"", usedSuffix} {
		if err := os.Chtimes(strings.TrimSuffix(idle.Tree, treeSuffix)+file, past, past); err != nil {
			t.Fatal(err)
		}
	}
	named, err := cache.Get(t.Context(), kbroker.DefaultTenant, c.putArchive(map[string]string{"bin/web": program, "a": "named"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(named.Tree+partSuffix, 0o755); err != nil { // a crash in the midst of it
		t.Fatal(err)
	}
	for i := range maxIdleArtifacts {
		if _, err := cache.Get(t.Context(), kbroker.DefaultTenant, c.put([]byte{byte(i)})); err != nil {
			t.Fatal(err)
		}
	}
	digest := strings.TrimSuffix(filepath.Base(named.Tree), treeSuffix)
	if err := cache.Prune(map[string]bool{digest: true}); err != nil {
		t.Fatal(err)
	}
	names := left(t, dir)
	for _, name := range names {
		if strings.HasPrefix(name, strings.TrimSuffix(filepath.Base(idle.Tree), treeSuffix)) || strings.HasSuffix(name, partSuffix) {
			t.Errorf("%s is left", name)
		}
	}
	for _, kind := range []string{"", treeSuffix, usedSuffix} {
		if !slices.Contains(names, digest+kind) {
			t.Errorf("%s%s of a named artifact is gone", digest, kind)
		}
	}
	if _, err := cache.Get(t.Context(), kbroker.DefaultTenant, c.putArchive(map[string]string{"bin/web": program, "a": "idle"})); err != nil {
		t.Errorf("what was pruned comes back: %v", err)
	}
}

// What a start costs before the fork, for an archive of 10,000 files of 2 kB.
func BenchmarkCheckOfATree(b *testing.B) {
	files := map[string]string{}
	for i := range 10_000 {
		files[fmt.Sprintf("node_modules/m%d/f%d", i/20, i)] = strings.Repeat("x", 2000)
	}
	archive, dir := archivetest.Tar(b, files), filepath.Join(b.TempDir(), "tree")
	tree, err := unpack.Unpack(b.Context(), bytes.NewReader(archive), int64(len(archive)), dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"full", "stamps"} {
		b.Run(name, func(b *testing.B) {
			k := checks{unpacked: tree}
			for b.Loop() {
				if name == "full" {
					k.stamps = nil
				}
				if err := k.tree(b.Context(), dir); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
