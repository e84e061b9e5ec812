package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/archivetest"
	"github.com/kbroker/kbroker/internal/stamp"
	"github.com/kbroker/kbroker/internal/wait"
)

const reader = `#!/bin/sh
cat "$KBROKER_ARTIFACT_DIR/share/text"
pwd
echo "$PYTHONPYCACHEPREFIX"
exec sleep 60
`

func (c *core) putArchive(files map[string]string) kbroker.Artifact {
	a := c.put(archivetest.Tar(c.t, files))
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
		if strings.Contains(name, ".tree") || strings.HasPrefix(name, p.Spec.Artifact.SHA256) {
			t.Errorf("%s is left", name)
		}
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
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho evil\nexec sleep 60\n"), 0o755); err != nil {
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
