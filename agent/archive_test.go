package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/unpack"
	"github.com/kbroker/kbroker/internal/wait"
)

// packed is a tar of files: those with a program's first bytes are executable.
func packed(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		content := files[name]
		h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}
		if strings.HasPrefix(content, "#!") || strings.HasPrefix(content, "\x7fELF") {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const reader = `#!/bin/sh
cat "$KBROKER_ARTIFACT_DIR/share/text"
pwd
echo "$PYTHONPYCACHEPREFIX"
exec sleep 60
`

func (c *core) putArchive(files map[string]string) kbroker.Artifact {
	a := c.put(packed(c.t, files))
	a.Command = "bin/web"
	return a
}

// left is what is in the cache, by name.
func left(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, artifactsDir))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestAProgramOfAnArchiveRuns(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "")
	p.Spec.Artifact = c.putArchive(map[string]string{"bin/web": reader, "share/text": "from the archive\n"})
	c.want(p)
	a := c.startAgent(t.TempDir())
	c.awaitState(p.Instance, kbroker.StateReady)
	want := "from the archive\n" + filepath.Join(a.home(p.Instance), workDir) + "\n" + filepath.Join(a.home(p.Instance), tempDir, "pycache") + "\n"
	c.await(p.Instance, 5*time.Second, "output", func(kbroker.Status) bool {
		b, err := os.ReadFile(filepath.Join(a.home(p.Instance), outputFile))
		return err == nil && string(b) == want
	})
}

func TestAnArchiveIsRefusedWithTheReasonAndNothingIsLeft(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	var evil bytes.Buffer
	w := tar.NewWriter(&evil)
	if err := errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/web", Mode: 0o755}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "../../evil", Mode: 0o755}), w.Close(),
	); err != nil {
		t.Fatal(err)
	}
	p := placement("shop-web-1", "")
	p.Spec.Artifact, p.Backoff = c.put(evil.Bytes()), 5
	p.Spec.Artifact.Command = "bin/web"
	absent := placement("shop-web-2", "")
	absent.Spec.Artifact, absent.Backoff = c.putArchive(map[string]string{"web": reader}), 5
	c.want(p, absent)
	a := c.startAgent(t.TempDir())
	if s := c.awaitState(p.Instance, kbroker.StateBackoff); s.Message != `artifact: the archive has a file that leads out of it, "../../evil": refused` {
		t.Errorf("message %q", s.Message)
	}
	if s := c.awaitState(absent.Instance, kbroker.StateBackoff); s.Message != `artifact: the archive has no file "bin/web" (it has "web")` {
		t.Errorf("message %q", s.Message)
	}
	for _, name := range left(t, a.cfg.Dir.Path) {
		if strings.Contains(name, treeSuffix) || strings.HasPrefix(name, p.Spec.Artifact.SHA256) {
			t.Errorf("%s is left", name)
		}
	}
}

func TestARefusedArchiveIsNotFetchedAgainByTheSameAgent(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	want := c.put([]byte("no archive"))
	want.Command = "bin/web"
	cache := c.cache(dir)
	for range 3 {
		if p, err := cache.get(t.Context(), kbroker.DefaultTenant, want); !errors.Is(err, kbroker.Invalid) || err.Error() != "this is no archive" {
			t.Errorf("get: %+v, %v", p, err)
		}
	}
	if names := left(t, dir); c.pieces != 1 || len(names) > 0 {
		t.Errorf("%d pieces were asked for, want 1; %q is left", c.pieces, names)
	}
	want.Command = "" // as a program it is what it is
	if _, err := cache.get(t.Context(), kbroker.DefaultTenant, want); err != nil {
		t.Error(err)
	}
}

// What is in the tree at the moment of a start is what the archive says, whoever
// unpacked it, and whatever was done to it since.
func TestAChangedTreeIsUnpackedAgain(t *testing.T) {
	c, dir := newCore(t), t.TempDir()
	files := map[string]string{"bin/web": reader, "share/text": "text", "share/deep/er/text": "more"}
	want := c.putArchive(files)
	first := c.cache(dir)
	p, err := first.get(t.Context(), kbroker.DefaultTenant, want)
	if err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(p.tree, "share", "text")
	settle(t, text)
	for name, change := range map[string]func() error{
		"nothing": func() error { return nil },
		"a file": func() error {
			return errors.Join(os.Chmod(text, 0o644), os.WriteFile(text, []byte("evil"), 0o644), os.Chmod(text, 0o444))
		},
		"its mode":           func() error { return os.Chmod(text, 0o4555) },
		"a directory's mode": func() error { return os.Chmod(filepath.Dir(text), 0o777) },
		"a file more":        func() error { return os.WriteFile(filepath.Join(p.tree, "share", "evil"), nil, 0o644) },
		"a directory more":   func() error { return os.Mkdir(filepath.Join(p.tree, "evil"), 0o755) },
		"a file less":        func() error { return os.Remove(text) },
		"a link for a file":  func() error { return errors.Join(os.Remove(text), os.Symlink("/etc/passwd", text)) },
		"a link for a directory": func() error {
			share := filepath.Join(p.tree, "share")
			return errors.Join(os.Rename(share, filepath.Join(t.TempDir(), "share")), os.Symlink("/etc", share))
		},
		"the tree itself": func() error { return os.RemoveAll(p.tree) },
		"a file for it":   func() error { return errors.Join(os.RemoveAll(p.tree), os.WriteFile(p.tree, nil, 0o755)) },
		"the archive and the tree": func() error {
			return errors.Join(os.WriteFile(filepath.Join(dir, artifactsDir, want.SHA256), []byte("evil"), 0o755), os.Remove(text))
		},
		"what a crash left": func() error { return os.MkdirAll(filepath.Join(p.tree+partSuffix, "bin"), 0o755) },
	} {
		for agent, cache := range map[string]*cache{"this agent": first, "a later one": c.cache(dir)} {
			if _, err := cache.get(t.Context(), kbroker.DefaultTenant, want); err != nil {
				t.Fatal(err)
			}
			if err := change(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := cache.get(t.Context(), kbroker.DefaultTenant, want)
			if err != nil || got != p {
				t.Fatalf("%s, %s: %+v, %v; want %+v", name, agent, got, err, p)
			}
			found := map[string]string{}
			err = filepath.WalkDir(p.tree, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				b, err := os.ReadFile(path)
				found[strings.TrimPrefix(path, p.tree+"/")] = string(b)
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
	want := c.putArchive(map[string]string{"bin/web": reader, "share/text": "text"})
	cache := c.cache(dir)
	p, err := cache.get(t.Context(), kbroker.DefaultTenant, want)
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
			if _, err := os.Stat(filepath.Join(p.tree, "share", "text")); err != nil {
				missing <- err
				return
			}
		}
	}()
	for range 50 {
		if err := os.WriteFile(filepath.Join(p.tree, "evil"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := cache.get(t.Context(), kbroker.DefaultTenant, want); err != nil {
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
	idle, err := cache.get(t.Context(), kbroker.DefaultTenant, c.putArchive(map[string]string{"bin/web": reader, "a": "idle"}))
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour)
	for _, file := range []string{"", usedSuffix} {
		if err := os.Chtimes(strings.TrimSuffix(idle.tree, treeSuffix)+file, past, past); err != nil {
			t.Fatal(err)
		}
	}
	named, err := cache.get(t.Context(), kbroker.DefaultTenant, c.putArchive(map[string]string{"bin/web": reader, "a": "named"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(named.tree+partSuffix, 0o755); err != nil { // a crash in the midst of it
		t.Fatal(err)
	}
	for i := range maxIdleArtifacts {
		if _, err := cache.get(t.Context(), kbroker.DefaultTenant, c.put([]byte{byte(i)})); err != nil {
			t.Fatal(err)
		}
	}
	digest := strings.TrimSuffix(filepath.Base(named.tree), treeSuffix)
	if err := cache.prune(map[string]bool{digest: true}); err != nil {
		t.Fatal(err)
	}
	names := left(t, dir)
	for _, name := range names {
		if strings.HasPrefix(name, strings.TrimSuffix(filepath.Base(idle.tree), treeSuffix)) || strings.HasSuffix(name, partSuffix) {
			t.Errorf("%s is left", name)
		}
	}
	for _, kind := range []string{"", treeSuffix, usedSuffix} {
		if !slices.Contains(names, digest+kind) {
			t.Errorf("%s%s of a named artifact is gone", digest, kind)
		}
	}
	if _, err := cache.get(t.Context(), kbroker.DefaultTenant, c.putArchive(map[string]string{"bin/web": reader, "a": "idle"})); err != nil {
		t.Errorf("what was pruned comes back: %v", err)
	}
}

func TestWhatCannotRunIsExplained(t *testing.T) {
	t.Parallel()
	elf := make([]byte, 64)
	copy(elf, "\x7fELF\x02\x01\x01")
	elf[16], elf[18], elf[20], elf[52] = 2, 22, 1, 64 // a machine that Go has and no test machine is: s390
	if runtime.GOARCH == "s390x" {
		elf[18] = 62
	}
	for name, tc := range map[string]struct{ program, want string }{
		"another architecture": {string(elf), "start: the program is built for s390x, this host is " + runtime.GOARCH + " (build it for"},
		"no interpreter":       {"#!/no/such/shell\n", "start: the program needs /no/such/shell, which this host does not have (install it"},
		"text":                 {"hello\n", "start: the program cannot be run: it is neither an ELF file nor a script (hosts run ELF files"},
		"line ends of Windows": {"#!/no/such/shell\r\n", "start: the program cannot be run: a script with the line ends of Windows"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCore(t)
			p := placement("shop-web-1", "")
			p.Spec.Artifact, p.Backoff = c.put([]byte(tc.program)), 5
			c.want(p)
			c.startAgent(t.TempDir())
			if s := c.awaitState(p.Instance, kbroker.StateBackoff); s.PID != 0 || !strings.HasPrefix(s.Message, tc.want) {
				t.Errorf("message %q of pid %d, want one with %q", s.Message, s.PID, tc.want)
			}
		})
	}
	if err := unstartable(os.Args[0], unix.EACCES); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("not executable: %v", err)
	}
	if err := unstartable("/no/such/file", unix.ENOENT); err != unix.ENOENT {
		t.Errorf("nothing to look at: %v", err)
	}
}

// The program of a running instance is replaced on disk: its next start is of the
// right one.
func TestACrashedInstanceIsNotStartedFromAChangedProgram(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	p := placement("shop-web-1", "")
	p.Spec.Artifact = c.put([]byte(script))
	c.want(p)
	a := c.startAgent(dir)
	s := c.awaitState(p.Instance, kbroker.StateReady)
	path := filepath.Join(dir, artifactsDir, p.Spec.Artifact.SHA256)
	settle(t, path)
	if err := os.Rename(path, path+".old"); err != nil { // who runs it has it open
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho evil\nexec sleep 60\n"), artifactMode); err != nil {
		t.Fatal(err)
	}
	kill(t, s.PID, unix.SIGKILL)
	wait.Until(t, 10*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(a.home(p.Instance), outputFile))
		if err == nil && string(b) != "script\nscript\n" {
			err = errors.New("output: " + string(b))
		}
		return err
	})
}

// What a start costs before the fork, for an archive of 10,000 files of 2 kB.
func BenchmarkCheckOfATree(b *testing.B) {
	files := map[string]string{}
	for i := range 10_000 {
		files[fmt.Sprintf("node_modules/m%d/f%d", i/20, i)] = strings.Repeat("x", 2000)
	}
	archive, dir := packed(b, files), filepath.Join(b.TempDir(), "tree")
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
