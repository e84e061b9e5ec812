package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

var discard = slog.New(slog.DiscardHandler)

// filesIn are the output files of these instances, in a directory.
func filesIn(dir string, keys ...kbroker.StatusKey) *Files {
	return New(Config{
		Instances: func() ([]kbroker.StatusKey, error) { return keys, nil },
		Path: func(k kbroker.StatusKey) string {
			return filepath.Join(dir, string(k.Tenant), string(k.Instance), "output.log")
		},
	})
}

// homeIn is the directory of an instance's output.
func homeIn(t testing.TB, dir string, k kbroker.StatusKey) string {
	t.Helper()
	home := filepath.Join(dir, string(k.Tenant), string(k.Instance))
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	return home
}

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
	w := &written{t: t, path: filepath.Join(dir, "output.log")}
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
	o := filesIn(t.TempDir())
	o.files[kbroker.StatusKey{Instance: "a-1"}] = &output{path: w.path}
	if got := o.Tail(kbroker.StatusKey{Instance: "a-1"}, end); len(got) != MaxTailBytes-1 {
		t.Errorf("a tail of %d bytes, want %d", len(got), MaxTailBytes-1)
	}
	end = int64(len(w.all))
	w.write(2)
	if got := o.Tail(kbroker.StatusKey{Instance: "a-1"}, end); got != string(bytes.TrimSpace(w.all[end:])) {
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
	w.must(os.WriteFile(w.path+LedgerSuffix, []byte("\x00\x00"), 0o600))
	w.must(settleOutput(w.path, w.mine))
	w.check(0, 64)
}

// TestAFileThatItsProcessTruncatesGivesNoNumberTwice, as `echo > /dev/stdout` does.
func TestAFileThatItsProcessTruncatesGivesNoNumberTwice(t *testing.T) {
	k := kbroker.StatusKey{Tenant: kbroker.DefaultTenant, Instance: "shop-web-1"}
	dir := t.TempDir()
	o := filesIn(dir, k)
	w := newWritten(t, homeIn(t, dir, k))
	defer w.close()
	w.write(30)
	o.survey(func(*output) {}, noon)
	w.must(w.file.Truncate(0))
	w.write(7)
	o.survey(func(*output) {}, noon.Add(time.Second))
	if oldest := w.check(0, 64); oldest != 300 {
		t.Errorf("%d bytes are dropped, want 300", oldest)
	}
	if got := o.Totals()[k]; got != (Total{WrittenBytes: 370, DroppedBytes: 300}) {
		t.Errorf("measured %+v, want 370 written and 300 dropped", got)
	}
	if at, err := offsetAt(w.path, noon.Add(time.Hour)); err != nil || at != 370 {
		t.Errorf("the last time is of offset %d %v, want 370", at, err)
	}
}

func TestJudge(t *testing.T) {
	l := limitsOf(MaxBytes)
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

// TestAFileIsKeptInBoundsWhileItIsWritten, and all of it is read or said to be dropped.
func TestAFileIsKeptInBoundsWhileItIsWritten(t *testing.T) {
	k := kbroker.StatusKey{Tenant: kbroker.DefaultTenant, Instance: "shop-web-1"}
	dir := t.TempDir()
	o := filesIn(dir, k)
	o.bound = testBound
	if _, err := o.Read(k, kbroker.LogRequest{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("read of no output: %v, want os.ErrNotExist", err)
	}
	w := newWritten(t, homeIn(t, dir, k))
	defer w.close()
	w.write(10)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- o.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	<-o.Settled()
	start := o.Began(k)
	if start != 100 {
		t.Errorf("output of 100 bytes ends at %d", start)
	}
	for range 100 {
		w.write(1000)
	}
	wait.Until(t, 10*time.Second, func() error {
		got := o.Totals()[k]
		if kept := got.WrittenBytes - got.DroppedBytes; got.WrittenBytes != int64(len(w.all)) || kept > limitsOf(testBound).cutAbove+limitsOf(testBound).align {
			return fmt.Errorf("totals %+v, want %d written and about %d kept", got, len(w.all), testBound)
		}
		return nil
	})
	var next, accounted int64
	for next < int64(len(w.all)) {
		r, err := o.Read(k, kbroker.LogRequest{Offset: next})
		if err != nil || len(r.Data) == 0 || !bytes.Equal(r.Data, w.all[r.Offset:r.Next]) {
			t.Fatalf("read at %d: %d bytes at %d, %v", next, len(r.Data), r.Offset, err)
		}
		next, accounted = r.Next, accounted+int64(len(r.Data))+r.DroppedBytes
	}
	if accounted != int64(len(w.all)) {
		t.Errorf("%d bytes are read or dropped, %d were written", accounted, len(w.all))
	}
	if got := o.Tail(k, start); len(got) != MaxTailBytes-1 || !bytes.HasSuffix(bytes.TrimSpace(w.all), []byte(got)) {
		t.Errorf("a tail of %d bytes that ends with %.20q", len(got), got[max(0, len(got)-20):])
	}
}

// BenchmarkAQuietSecond is what the outputs of 500 instances cost each second when
// nobody writes.
func BenchmarkAQuietSecond(b *testing.B) {
	dir := b.TempDir()
	var keys []kbroker.StatusKey
	for i := range 500 {
		k := kbroker.StatusKey{Tenant: kbroker.DefaultTenant, Instance: kbroker.InstanceID(fmt.Sprintf("shop-web-%d", i))}
		if err := os.WriteFile(filepath.Join(homeIn(b, dir, k), "output.log"), []byte("hello\n"), 0o600); err != nil {
			b.Fatal(err)
		}
		keys = append(keys, k)
	}
	o := filesIn(dir, keys...)
	o.survey(func(*output) {}, time.Now())
	if len(o.files) != 500 {
		b.Fatalf("%d files are known", len(o.files))
	}
	for b.Loop() {
		o.survey(func(*output) {}, time.Now())
	}
}
