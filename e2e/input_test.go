package e2e

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBadInput: what cannot work is refused with the place and a hint, exit
// code 2, and changes nothing.
func TestBadInput(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	c.must("deploy", "../examples/hello/app.yaml")
	before := c.must("apps", "-o", "json")

	dir := t.TempDir()
	script := filepath.Join(dir, "ok.sh")
	writeFile(t, script, "#!/bin/sh\nexec sleep 1000\n", 0o755)
	arm := filepath.Join(dir, "arm")
	writeFile(t, arm, string(elfHeader(183)), 0o755) // EM_AARCH64
	for name, tc := range map[string]struct{ spec, want string }{
		"unknown key":            {"name: bad\nservices:\n  web:\n    run: ok.sh\n    cuont: 3\n", ":5:"},
		"wrong type":             {"name: bad\nservices:\n  web:\n    run: ok.sh\n    count: many\n", ":5:"},
		"impossible constraint":  {"name: bad\nservices:\n  web:\n    run: ok.sh\n    require: [\"disk == tape\"]\n", "disk == tape"},
		"missing binary":         {"name: bad\nservices:\n  web:\n    run: absent\n", ":4:"},
		"another architecture":   {"name: bad\nservices:\n  web:\n    run: arm\n", "arm64"},
		"wrong digest":           {"name: bad\nservices:\n  web:\n    artifact: {path: ok.sh, sha256: " + strings.Repeat("0", 64) + "}\n", "sha256"},
		"name with a dot":        {"name: bad.app\nservices:\n  web:\n    run: ok.sh\n", ":1:"},
		"negative count":         {"name: bad\nservices:\n  web:\n    run: ok.sh\n    count: -1\n", ":5:"},
		"not YAML":               {"\x00\x01\x02 {{{", "YAML"},
		"spec of 100 MB":         {"name: bad\n# " + strings.Repeat("x", 100<<20) + "\n", "1 MiB"},
		"key not supported here": {"name: bad\nservices:\n  web:\n    run: ok.sh\n    on_disconnect: stop\n", "on_disconnect"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "app.yaml")
			writeFile(t, path, tc.spec, 0o600)
			out, code := c.try("deploy", path)
			if code != 2 || !strings.Contains(out, tc.want) {
				t.Errorf("exit code %d, want 2 and %q in:\n%.2000s", code, tc.want, out)
			}
			if after := c.must("apps", "-o", "json"); after != before {
				t.Errorf("the cluster changed:\n%s\n%s", before, after)
			}
		})
	}
}

// TestTooLittleCapacity is not bad input: what fits runs, the rest is pending,
// the rollout fails at its deadline.
func TestTooLittleCapacity(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	path := c.example("hello", func(s string) string {
		return strings.Replace(s, "    run:", "    resources: {cpu: 0.75}\n    update: {deadline: 10s}\n    run:", 1)
	})
	out, code := c.try("deploy", path)
	if code != 1 || !strings.Contains(out, "cpu") {
		t.Errorf("exit code %d, want 1 and the reason in:\n%s", code, out)
	}
	c.waitReady(5*time.Second, "hello", "hello", 2, nil)
	if ps := c.must("ps"); !strings.Contains(ps, "pending") {
		t.Errorf("ps does not show what is pending:\n%s", ps)
	}
}

// TestLargeArtifact deploys a program of 100 MB that does not compress.
func TestLargeArtifact(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	dir := t.TempDir()
	junk := make([]byte, 100<<20)
	if _, err := rand.Read(junk); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "big.sh"), "#!/bin/sh\nexec sleep 1000\n"+string(bytes.ReplaceAll(junk, []byte{'\n'}, []byte{' '})), 0o755)
	writeFile(t, filepath.Join(dir, "app.yaml"), "name: big\nservices:\n  web:\n    run: big.sh\n    count: 3\n    health: {ready: alive}\n", 0o600)
	began := time.Now()
	c.must("deploy", filepath.Join(dir, "app.yaml"))
	t.Logf("a program of 100 MB, uploaded and run on three hosts: %v", time.Since(began).Round(10*time.Millisecond))
	c.waitReady(5*time.Second, "big", "web", 3, nil)
}

func writeFile(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// elfHeader is the start of a 64-bit little-endian executable for a machine.
func elfHeader(machine byte) []byte {
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	h[16], h[18], h[20] = 2, machine, 1
	h[52] = 64 // size of this header
	return h
}
