package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// token makes a join token, as a file in a directory. It waits until the cluster has a
// leader.
func (c *cluster) token(dir string, role kbroker.Role, args ...string) (file string) {
	c.t.Helper()
	file = filepath.Join(dir, "join.token")
	wait.Until(c.t, 20*time.Second, func() error {
		cmd := c.client(c.t.Context(), kbrokerBin, append([]string{"token", "create", "--role", string(role), "--timeout", "5s"}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		text, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("token create: %w: %s", err, stderr.String())
		}
		return os.WriteFile(file, text, 0o600)
	})
	return file
}

// TestHostsJoinWithTokens: one each, and nothing but the token's file has its secret,
// not a command line, an environment, a log, or the cluster's data.
func TestHostsJoinWithTokens(t *testing.T) {
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "cluster")}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.down)
	c.agent("h1", "--found")
	c.context("h1")
	files := t.TempDir()
	file := c.token(files, kbroker.RoleWorker)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	secret := raw[20:50] // after the name
	join := func(host string) []string {
		return []string{"agent", "--dir", c.host(host), "--name", host, "--role", "worker", "--join", c.address("h1"), "--token-file", file}
	}
	c.agent("h2", join("h2")[5:]...)
	c.hosts = 2
	wait.Until(t, 20*time.Second, func() error { return allReady(c) })
	if out, code := c.try(join("h3")...); code != 4 || !strings.Contains(out, "was used by host h2") || !strings.Contains(out, "hint: ") {
		t.Errorf("a second host with the token: exit code %d, want 4: %s", code, out)
	}
	if out := c.must("token", "ls"); !strings.Contains(out, "used") || !strings.Contains(out, "h2") || bytes.Contains([]byte(out), secret) {
		t.Errorf("the list is %s", out)
	}
	for pid := range c.processes("") {
		for _, what := range []string{"cmdline", "environ"} {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, what)); err == nil && bytes.Contains(b, secret) {
				t.Errorf("the %s of process %d has the secret", what, pid)
			}
		}
	}
	logged := false
	err = filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it went meanwhile
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, secret) {
			t.Errorf("%s has the secret", path)
		}
		logged = logged || bytes.Contains(b, []byte("join refused")) && bytes.Contains(b, []byte(`h3`))
		return nil
	})
	if err != nil || !logged {
		t.Errorf("the leader has logged that h3 was refused: %t, %v", logged, err)
	}
	// It never needs it again.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	c.kill("h2", false)
	wait.Until(t, 10*time.Second, func() error { return c.withoutAgent("h2") })
	wait.Until(t, 30*time.Second, func() error { // or what is ready below is the one that was killed
		if allReady(c) == nil {
			return errors.New("h2 is taken to be ready, and is dead")
		}
		return nil
	})
	c.agent("h2", join("h2")[5:]...)
	wait.Until(t, 20*time.Second, func() error { return allReady(c) })
}
