package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// testBound is the least that limitsOf takes on file systems with blocks of 4 KiB.
const testBound = 64 << 10

// failer is a test, or a round of a property.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// written is an output file of the test, and all that was ever written to it.
type written struct {
	t    failer
	path string
	file *os.File // as the process has it
	mine *os.File // as the agent has it
	all  []byte
}

func newWritten(t failer, dir string) *written {
	w := &written{t: t, path: filepath.Join(dir, outputFile)}
	var err error
	w.file, err = os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	w.must(err)
	w.mine, err = os.OpenFile(w.path, os.O_RDWR, 0)
	w.must(err)
	return w
}

func (w *written) close() {
	w.must(errors.Join(w.file.Close(), w.mine.Close()))
}

func (w *written) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", w.path, err)
	}
}

// write writes n lines of ten bytes.
func (w *written) write(n int) {
	w.t.Helper()
	var lines []byte
	for i := range n {
		lines = fmt.Appendf(lines, "%09d\n", len(w.all)+10*i)
	}
	_, err := w.file.Write(lines)
	w.must(err)
	w.all = append(w.all, lines...)
}

// looker looks at the file as an agent does; growth is that since its last look.
func (w *written) look(growth int64) {
	w.t.Helper()
	k := newLooker(limitsOf(testBound), nil, discard)
	f := &looked{output: &output{path: w.path}, file: w.mine, size: w.size() - growth, hole: -1}
	_, err := k.tend(f)
	w.must(err)
}

func (w *written) size() int64 {
	w.t.Helper()
	size, err := sizeOf(w.mine)
	w.must(err)
	return size
}

// check reads everything from offset on in pieces: what is read and what is said
// to be dropped is what was written.
func (w *written) check(offset int64, limit int) (oldest int64) {
	w.t.Helper()
	for next := offset; ; {
		r, err := readOutput(w.path, next, limit)
		w.must(err)
		oldest = r.Oldest
		if want := min(max(next, r.Oldest), int64(len(w.all))); r.Offset != want || r.DroppedBytes != want-next {
			w.t.Fatalf("read at %d gives offset %d (%d dropped), want %d; the oldest is %d", next, r.Offset, r.DroppedBytes, want, r.Oldest)
		}
		if r.Next != r.Offset+int64(len(r.Data)) || !bytes.Equal(r.Data, w.all[r.Offset:r.Next]) {
			w.t.Fatalf("read at %d gives %d bytes to %d that begin with %.20q, want %.20q", next, len(r.Data), r.Next, r.Data, w.all[r.Offset:])
		}
		if len(r.Data) == 0 {
			if r.Next != int64(len(w.all)) {
				w.t.Fatalf("ends at %d, %d bytes were written", r.Next, len(w.all))
			}
			return oldest
		}
		next = r.Next
	}
}

func TestOffsetsSurviveCutsAndFolds(t *testing.T) {
	w := newWritten(t, t.TempDir())
	defer w.close()
	l := limitsOf(testBound)
	w.write(3000)
	w.look(0)
	if oldest := w.check(0, 1000); oldest != 0 {
		t.Errorf("%d bytes are dropped before there are too many", oldest)
	}
	w.write(6000)
	w.look(0)
	oldest := w.check(0, 1000)
	if kept := int64(len(w.all)) - oldest; kept < l.keep || kept > l.keep+l.align {
		t.Errorf("%d bytes are kept, want %d", kept, l.keep)
	}
	switch err := fold(w.path, w.mine, l.align); {
	case unable(err):
		t.Logf("this file system does not fold: %v", err)
	case err != nil:
		t.Fatal(err)
	case w.size() != int64(len(w.all))-oldest:
		t.Errorf("the folded file has %d bytes, want %d", w.size(), int64(len(w.all))-oldest)
	}
	w.write(7)
	end := int64(len(w.all))
	for _, offset := range []int64{0, oldest - 1, oldest, oldest + 5, end - 70, end - 1, end} {
		w.check(offset, 64)
	}
	if r, err := readOutput(w.path, -20, 64); err != nil || r.Offset != end-20 || string(r.Data) != string(w.all[end-20:]) {
		t.Errorf("the last 20 bytes: %+v %v", r, err)
	}
	if r, err := readOutput(w.path, 1<<40, 64); err != nil || r.Offset != end || len(r.Data) != 0 {
		t.Errorf("beyond the end: %+v %v", r, err)
	}
	w.write(20_000)
	w.look(int64(20_000 * 10)) // a flood
	if kept := int64(len(w.all)) - w.check(0, 1000); kept > l.floodKeep+l.align {
		t.Errorf("%d bytes are kept in a flood, want %d", kept, l.floodKeep)
	}
	o := &outputs{dir: &Dir{Path: t.TempDir()}, files: map[kbroker.StatusKey]*output{{Instance: "a-1"}: {path: w.path}}}
	if got := o.tail(kbroker.StatusKey{Instance: "a-1"}, end); len(got) != maxTailBytes-1 {
		t.Errorf("a tail of %d bytes, want %d", len(got), maxTailBytes-1)
	}
	end = int64(len(w.all))
	w.write(2)
	if got := o.tail(kbroker.StatusKey{Instance: "a-1"}, end); got != string(bytes.TrimSpace(w.all[end:])) {
		t.Errorf("tail %q", got)
	}
}

// TestWhatIsReadAndWhatIsDroppedIsWhatWasWritten, whatever is written, cut, folded,
// and wherever the agent is killed meanwhile.
func TestWhatIsReadAndWhatIsDroppedIsWhatWasWritten(t *testing.T) {
	l := limitsOf(testBound)
	root := t.TempDir()
	folds := 0
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatalf("%v", err)
		}
		w := newWritten(t, dir)
		defer w.close()
		oldest := int64(0)
		// killed is a fold that ends after so many of its steps, and the next agent,
		// which may be late.
		killed := func(steps int) {
			hole, err := holeOf(w.mine, w.size())
			w.must(err)
			before, err := loadLedger(w.path, w.mine)
			w.must(err)
			if hole = hole / l.align * l.align; hole == 0 {
				return
			}
			w.must(saveLedger(w.path, ledger{Base: before.Base + hole, Folding: hole}))
			if steps > 1 {
				if err := collapse(w.mine, hole); !unable(err) {
					w.must(err)
					folds++
				}
			}
			w.check(0, 10_000)
			w.write(rapid.IntRange(0, 20_000).Draw(t, "lines without an agent"))
			w.check(0, 10_000)
			w.must(settleOutput(w.path, w.mine))
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) { w.write(rapid.IntRange(1, 10_000).Draw(t, "lines")) },
			"look":  func(*rapid.T) { w.look(0) },
			"flood": func(*rapid.T) { w.look(l.floodBytes) },
			"fold": func(*rapid.T) {
				if err := fold(w.path, w.mine, l.align); !unable(err) {
					w.must(err)
				}
			},
			"die before the fold": func(*rapid.T) { killed(1) },
			"die after the fold":  func(*rapid.T) { killed(2) },
			"settle":              func(*rapid.T) { w.must(settleOutput(w.path, w.mine)) },
			"": func(t *rapid.T) {
				now := w.check(0, 10_000)
				if now < oldest {
					t.Fatalf("the oldest byte was %d, now it is %d", oldest, now)
				}
				if kept := int64(len(w.all)) - now; now > oldest && kept < l.floodKeep {
					t.Fatalf("only %d bytes are kept", kept)
				}
				oldest = now
				w.check(rapid.Int64Range(0, int64(len(w.all))).Draw(t, "offset"), rapid.IntRange(1, 3000).Draw(t, "limit")+len(w.all)/20)
			},
		})
	})
	t.Logf("%d folds were cut off", folds)
}

// TestAnOutputThatIsEmptiedGivesNoNumberTwice: for file systems without holes.
func TestAnOutputThatIsEmptiedGivesNoNumberTwice(t *testing.T) {
	w := newWritten(t, t.TempDir())
	defer w.close()
	w.write(30)
	w.must(empty(w.path, w.mine))
	if oldest := w.check(0, 64); oldest != 300 {
		t.Errorf("%d bytes are dropped, want 300", oldest)
	}
	for name, emptied := range map[string]bool{"killed before it was emptied": false, "killed after it was emptied": true} {
		w.write(30)
		before, err := readOutput(w.path, -1, 1)
		w.must(err)
		l, err := loadLedger(w.path, w.mine)
		w.must(err)
		w.must(saveLedger(w.path, ledger{Base: l.Base + w.size(), Emptying: true}))
		if emptied {
			w.must(w.mine.Truncate(0))
		}
		w.write(5) // while no agent runs
		w.must(settleOutput(w.path, w.mine))
		w.write(1)
		r, err := readOutput(w.path, 0, 64)
		w.must(err)
		if r.Offset < before.Next || r.DroppedBytes != r.Offset || string(r.Data) != string(w.all[len(w.all)-10:]) {
			t.Errorf("%s: reads %q at %d, %d were written before", name, r.Data, r.Offset, before.Next)
		}
	}
}

func TestADamagedLedgerLosesNoOutput(t *testing.T) {
	w := newWritten(t, t.TempDir())
	defer w.close()
	w.write(30)
	w.must(os.WriteFile(w.path+ledgerSuffix, []byte("\x00\x00"), 0o600))
	w.must(settleOutput(w.path, w.mine))
	w.check(0, 64)
}

// TestAFileThatItsProcessTruncatesGivesNoNumberTwice, as `echo > /dev/stdout` does.
func TestAFileThatItsProcessTruncatesGivesNoNumberTwice(t *testing.T) {
	k := kbroker.StatusKey{Tenant: kbroker.DefaultTenant, Instance: "shop-web-1"}
	o := &outputs{dir: &Dir{Path: t.TempDir()}, bound: maxOutputBytes, log: discard, files: map[kbroker.StatusKey]*output{}}
	if err := os.MkdirAll(o.dir.home(k), 0o700); err != nil {
		t.Fatal(err)
	}
	w := newWritten(t, o.dir.home(k))
	defer w.close()
	w.write(30)
	o.survey(func(*output) {}, noon)
	w.must(w.file.Truncate(0))
	w.write(7)
	o.survey(func(*output) {}, noon.Add(time.Second))
	if oldest := w.check(0, 64); oldest != 300 {
		t.Errorf("%d bytes are dropped, want 300", oldest)
	}
	if s := o.written()[k]; s.first != 300 || s.end != 370 {
		t.Errorf("measured %+v, want 370 written and 300 dropped", s)
	}
	if at, err := offsetAt(w.path, noon.Add(time.Hour)); err != nil || at != 370 {
		t.Errorf("the last time is of offset %d %v, want 370", at, err)
	}
}

func TestJudge(t *testing.T) {
	l := limitsOf(maxOutputBytes)
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		kept, growth, stay int64
		next               time.Duration
	}{
		"quiet files are left alone":              {kept: 16 * mib, stay: 16 * mib},
		"a file that grows is looked at soon":     {kept: 16 * mib, growth: mib, stay: 16 * mib, next: lookAfter},
		"one with a quarter too much is cut":      {kept: 20*mib + 1, growth: 1, stay: 16 * mib},
		"one that grows fast is looked at sooner": {kept: 8 * mib, growth: 2 * mib, stay: 8 * mib, next: floodLook},
		"and cut deeper, to have room":            {kept: 8*mib + 1, growth: 2 * mib, stay: 4 * mib, next: floodLook},
	} {
		if stay, next := l.judge(tc.kept, tc.growth); stay != tc.stay || next != tc.next {
			t.Errorf("%s: %d stay and the next look is after %v, want %d after %v", name, stay, next, tc.stay, tc.next)
		}
	}
}

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
	if largest > 128<<20 { // 64 MiB are for 1 GB/s: see e2e
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
		if size.Size() > limitsOf(maxOutputBytes).foldAbove && !cannotFold(t) {
			return fmt.Errorf("the file still has %d bytes", size.Size())
		}
		return nil
	})
}

func cannotFold(t *testing.T) bool {
	w := newWritten(t, t.TempDir())
	defer w.close()
	w.write(10_000)
	w.look(testBound)
	return unable(fold(w.path, w.mine, limitsOf(testBound).align))
}

// TestAFileThatNobodyWritesToIsNotLookedAt until somebody does.
func TestAFileThatNobodyWritesToIsNotLookedAt(t *testing.T) {
	w := newWritten(t, t.TempDir())
	defer w.close()
	w.write(10)
	alerts, err := newAlerts()
	if err != nil {
		t.Fatal(err)
	}
	defer alerts.close()
	k := newLooker(limitsOf(testBound), alerts, discard)
	f := &looked{output: &output{path: w.path}, size: -1}
	k.files[f.output] = f
	k.wake(f, time.Now())
	if next := time.Until(k.round(time.Now())); next < surveyEvery/2 || f.file != nil || len(k.armed) != 1 {
		t.Fatalf("looked at: the next round is in %v, %d files are armed", next, len(k.armed))
	}
	if got := alerts.wait(0); len(got) != 0 {
		t.Errorf("alerts %v before anything is written", got)
	}
	w.write(1)
	if got := alerts.wait(5 * time.Second); len(got) == 0 || k.armed[got[0]] != f {
		t.Errorf("a write gives alerts %v, want that of the file", got)
	}
}

// BenchmarkAQuietSecond is what the outputs of 500 instances cost each second when
// nobody writes.
func BenchmarkAQuietSecond(b *testing.B) {
	o := &outputs{dir: &Dir{Path: b.TempDir()}, bound: maxOutputBytes, log: discard, files: map[kbroker.StatusKey]*output{}}
	for i := range 500 {
		k := kbroker.StatusKey{Tenant: kbroker.DefaultTenant, Instance: kbroker.InstanceID(fmt.Sprintf("shop-web-%d", i))}
		if err := os.MkdirAll(o.dir.home(k), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(o.path(k), []byte("hello\n"), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	o.survey(func(*output) {}, time.Now())
	if len(o.files) != 500 {
		b.Fatalf("%d files are known", len(o.files))
	}
	for b.Loop() {
		o.survey(func(*output) {}, time.Now())
	}
}
