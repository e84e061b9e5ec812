package agent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kbroker/kbroker"
)

// written is an output file of the test, and all that was ever written to it.
type written struct {
	t    *testing.T
	path string
	file *os.File
	all  []byte
}

func newWritten(t *testing.T) *written {
	path := filepath.Join(t.TempDir(), outputFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &written{t: t, path: path, file: f}
}

func (w *written) write(n int) {
	w.t.Helper()
	for range n {
		line := fmt.Appendf(nil, "%09d\n", len(w.all))
		if _, err := w.file.Write(line); err != nil {
			w.t.Fatal(err)
		}
		w.all = append(w.all, line...)
	}
}

// check reads everything from offset on in small pieces.
func (w *written) check(offset, oldest int64) {
	w.t.Helper()
	var got []byte
	from := max(offset, oldest)
	for next := offset; ; {
		r, err := readOutput(w.path, next, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(r.Data) == 0 {
			if r.Next != int64(len(w.all)) {
				w.t.Errorf("ends at %d, %d bytes were written", r.Next, len(w.all))
			}
			break
		}
		if want := max(next, oldest); r.Offset != want {
			w.t.Fatalf("read at %d gives offset %d, want %d", next, r.Offset, want)
		}
		got, next = append(got, r.Data...), r.Next
	}
	if !bytes.Equal(got, w.all[from:]) {
		w.t.Errorf("from %d: %d bytes that begin with %.20q, want %d that begin with %.20q", offset, len(got), got, len(w.all[from:]), w.all[from:])
	}
}

func TestOffsetsSurviveRotation(t *testing.T) {
	w := newWritten(t)
	const keep = 500
	w.write(30)
	w.check(0, 0)
	if err := rotate(w.path, keep); err != nil {
		t.Fatal(err)
	}
	w.check(0, 0)
	w.write(60) // more than is kept
	w.check(0, 0)
	if err := rotate(w.path, keep); err != nil {
		t.Fatal(err)
	}
	w.check(0, 900-keep)
	w.write(7)
	for _, offset := range []int64{0, 399, 400, 405, 899, 900, 901, 969, 970} {
		w.check(offset, 900-keep)
	}
	if r, err := readOutput(w.path, -20, 64); err != nil || r.Offset != 950 || string(r.Data) != string(w.all[950:]) {
		t.Errorf("the last 20 bytes: %+v %v", r, err)
	}
	if r, err := readOutput(w.path, 1<<40, 64); err != nil || r.Offset != 970 || len(r.Data) != 0 {
		t.Errorf("beyond the end: %+v %v", r, err)
	}
	if info, err := os.Stat(w.path); err != nil || info.Size() != 70 {
		t.Errorf("the file: %v %v", info.Size(), err)
	}
	if got := tail(w.path, 900); got != string(bytes.TrimSpace(w.all[900:])) {
		t.Errorf("tail %q", got)
	}
}

func TestARotationThatWasCutOffLosesNothing(t *testing.T) {
	w := newWritten(t)
	w.write(30)
	// The agent died after it wrote the ledger, before it emptied the file.
	if err := saveLedger(w.path, ledger{Base: 300, Older: 300, Emptying: 300}); err != nil {
		t.Fatal(err)
	}
	w.write(3)
	w.check(0, 0)
	// After it emptied the file, before it said so.
	older := w.path + olderSuffix
	if err := os.WriteFile(older, w.all, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := saveLedger(w.path, ledger{Base: 330, Older: 330, Emptying: 330}); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(w.path, 0); err != nil {
		t.Fatal(err)
	}
	w.write(2)
	w.check(0, 0)
}

func TestLargeOutputIsBound(t *testing.T) {
	dir := &Dir{Path: t.TempDir()}
	k := kbroker.StatusKey{Tenant: kbroker.DefaultTenant, Instance: "shop-web-1"}
	if err := os.MkdirAll(dir.home(k), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir.home(k), outputFile)
	o := &outputs{dir: dir, bound: 1000}
	for _, size := range []int64{1000, 5000} {
		if err := os.WriteFile(path, bytes.Repeat([]byte{'x'}, int(size)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := o.bind(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	older, err2 := os.Stat(path + olderSuffix)
	if err != nil || err2 != nil || info.Size() != 0 || older.Size() != 1000 {
		t.Errorf("sizes %v and %v after 5000 bytes: %v %v", info, older, err, err2)
	}
}
