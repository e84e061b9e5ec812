//go:build linux

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/output"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestAFloodIsBound: a process writes as fast as it can; its agent bounds what is
// on disk, and all that was written is read or said to be dropped.
func TestAFloodIsBound(t *testing.T) {
	c := newCore(t)
	p := placement("shop-web-1", "flood")
	c.want(p)
	a := c.startAgent(t.TempDir())
	c.awaitState(p.Instance, kbroker.StateReady)
	path := filepath.Join(a.home(p.Instance), outputFile)
	var largest int64
	wait.Until(t, 30*time.Second, func() error {
		var s unix.Stat_t
		if err := unix.Stat(path, &s); err != nil {
			return err
		}
		largest = max(largest, s.Blocks*512)
		_, err := os.Stat(filepath.Join(a.home(p.Instance), workDir, "note"))
		return err
	})
	t.Logf("%s at most %d MiB on disk", a.noted(p.Instance), largest>>20)
	if largest > 128<<20 { // a fifth of it; 64 MiB are for 1 GB/s: see e2e
		t.Errorf("%d bytes were on disk, want at most 128 MiB", largest)
	}
	var wrote int64
	if _, err := fmt.Sscan(a.noted(p.Instance), &wrote); err != nil {
		t.Fatal(err)
	}
	var read, next, oldest int64
	for {
		var r kbroker.LogReply
		if err := request(t.Context(), c.conn, subjects.Host(testHost, subjects.VerbLogs, p.Tenant), kbroker.LogRequest{Instance: p.Instance, Offset: next}, &r); err != nil {
			t.Fatal(err)
		}
		if len(r.Data) == 0 {
			break
		}
		read += int64(len(r.Data)) + r.DroppedBytes
		next, oldest = r.Next, r.Oldest
	}
	if read != wrote {
		t.Errorf("%d bytes were read or dropped, %d were written", read, wrote)
	}
	wait.Until(t, 5*time.Second, func() error {
		m := metricsOf(t, a.Agent)
		got, dropped := m["kbroker_agent_instance_output_bytes_total shop-web-1"], m["kbroker_agent_instance_output_dropped_bytes_total shop-web-1"]
		if got != float64(wrote) || dropped != float64(oldest) {
			return fmt.Errorf("metrics say %v written, %v dropped, want %d and %d", got, dropped, wrote, oldest)
		}
		return nil
	})
	wait.Until(t, 5*time.Second, func() error { // the hole is taken out, where it can be
		size, err := os.Stat(path)
		if err != nil {
			return err
		}
		if size.Size() > 16*output.MaxBytes && !cannotFold(t) {
			return fmt.Errorf("the file still has %d bytes", size.Size())
		}
		return nil
	})
}

// cannotFold: this file system takes nothing out of a file.
func cannotFold(t *testing.T) bool {
	t.Helper()
	const bytes = 1 << 20
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 2*bytes)); err != nil {
		t.Fatal(err)
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, bytes) != nil
}
