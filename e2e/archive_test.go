package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
)

// tarball is a .tar.gz of files, all of them executable.
func tarball(t *testing.T, files ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f[0], Mode: 0o755, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestArchives: a program of an archive runs with its files beside it. One that is an
// attack is refused by deploy; when it comes to the hosts all the same, by them, with
// the reason in ps, why and events.
func TestArchives(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	dir := t.TempDir()
	const program = "#!/bin/sh\ncat \"$KBROKER_ARTIFACT_DIR/share/greeting.txt\"\nexec sleep 1000\n"
	writeFile(t, filepath.Join(dir, "web.tar.gz"), string(tarball(t, [2]string{"web/bin/web", program}, [2]string{"share/greeting.txt", "hello from the archive\n"})), 0o600)
	writeFile(t, filepath.Join(dir, "app.yaml"), "name: shop\nservices:\n  web:\n    artifact: {path: web.tar.gz, command: web/bin/web}\n    count: 2\n    health: {ready: alive}\n", 0o600)
	c.must("deploy", filepath.Join(dir, "app.yaml"))
	c.waitReady(5*time.Second, "shop", "web", 2, nil)
	if logs := c.must("logs", "shop"); strings.Count(logs, "hello from the archive") != 2 {
		t.Errorf("logs have no greeting of each instance:\n%s", logs)
	}

	attack := tarball(t, [2]string{"bin/web", program}, [2]string{"../../evil", program})
	writeFile(t, filepath.Join(dir, "web.tar.gz"), string(attack), 0o600)
	if out, code := c.try("deploy", filepath.Join(dir, "app.yaml")); code != 2 || !strings.Contains(out, `leads out of it, "../../evil": refused`) {
		t.Errorf("deploy of an attack: exit code %d, want 2 and the reason in:\n%s", code, out)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	api, err := client.Open(ctx, c.target(), "attacker")
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	sum := sha256.Sum256(attack)
	digest := hex.EncodeToString(sum[:])
	if err := api.PutArtifact(ctx, digest, int64(len(attack)), bytes.NewReader(attack), nil); err != nil {
		t.Fatal(err)
	}
	evil := kbroker.Service{
		Name: "web", Artifact: kbroker.Artifact{SHA256: digest, SizeBytes: int64(len(attack)), Command: "bin/web"},
		Count: kbroker.Count{Min: 1, Max: 1}, Resources: kbroker.Resources{CPU: 0.1, MemoryBytes: 64 << 20},
		Health: kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthAlive, Interval: time.Second}},
		Update: kbroker.Update{Parallel: 1, Deadline: time.Minute}, Stop: kbroker.Stop{Signal: "SIGTERM", Grace: time.Second}, Spread: "none",
	}
	if _, err := api.Deploy(ctx, kbroker.App{Name: "evil", Services: []kbroker.Service{evil}}); err != nil {
		t.Fatal(err)
	}
	const reason = `artifact: the archive has a file that leads out of it, "../../evil": refused`
	for _, ask := range [][]string{{"ps", "evil"}, {"why", "evil"}, {"events"}} {
		wait.Until(t, 20*time.Second, func() error {
			out, code := c.try(ask...)
			if code == 0 && strings.Contains(out, reason) {
				return nil
			}
			return fmt.Errorf("kbroker %s: exit code %d, no %q in:\n%s", strings.Join(ask, " "), code, reason, out)
		})
	}
	err = filepath.WalkDir(c.dir, func(path string, _ os.DirEntry, err error) error {
		if base := filepath.Base(path); base == "evil" || strings.HasPrefix(base, digest+".tree") {
			t.Errorf("%s is left", path)
		}
		if errors.Is(err, os.ErrNotExist) { // a file of the running broker
			return nil
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
