package output

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

// noon is some time.
var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func TestTimesSayWhereOutputWas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "output.log")
	at := func(second int) time.Time { return noon.Add(time.Duration(second) * time.Second) }
	for _, m := range []struct {
		second int
		end    int64
	}{{0, 100}, {1, 200}, {2, 200}, {60, 300}, {30, 400}, {61, 500}} { // the clock is set back once
		if err := addMark(path, at(m.second), span{end: m.end}); err != nil {
			t.Fatal(err)
		}
	}
	for second, want := range map[int]int64{-1: 0, 0: 100, 1: 200, 59: 200, 60: 400, 61: 500, 1000: 500} {
		if got, err := offsetAt(path, at(second)); err != nil || got != want {
			t.Errorf("since second %d: offset %d %v, want %d", second, got, err, want)
		}
	}
	marks, err := marksOf(path, 150, 350, 10)
	if err != nil || len(marks) != 3 || marks[0] != (kbroker.LogMark{At: at(1), Offset: 200}) || marks[2] != (kbroker.LogMark{At: at(60), Offset: 400}) {
		t.Errorf("marks of 150 to 350: %v %v", marks, err)
	}
	if marks, err = marksOf(path, 0, 500, 2); err != nil || len(marks) != 2 {
		t.Errorf("at most two: %v %v", marks, err)
	}
}

func TestWhatAPowerOffLeavesOfTimesIsMended(t *testing.T) {
	path := filepath.Join(t.TempDir(), "output.log")
	for i := range 5 {
		if err := addMark(path, noon.Add(time.Duration(i)*time.Second), span{end: int64(i+1) * 100}); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(path+timesSuffix, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, tc := range map[string]struct {
		damage []byte
		at     int64
		end    int64
		want   int
	}{
		"half a mark is not counted":      {damage: []byte{1, 2, 3}, at: 5 * markBytes, end: 500, want: 5},
		"zeros are no mark":               {damage: make([]byte, markBytes), at: 4 * markBytes, end: 500, want: 4},
		"output that was lost has no end": {end: 250, want: 2},
	} {
		if _, err := f.WriteAt(tc.damage, tc.at); err != nil {
			t.Fatal(err)
		}
		if err := settleMarks(path, tc.end); err != nil {
			t.Fatal(err)
		}
		marks, err := marksOf(path, 0, 1<<40, 10)
		if err != nil || len(marks) != tc.want {
			t.Errorf("%s: %v %v, want %d marks", name, marks, err, tc.want)
		}
		for i := len(marks); i < 5; i++ {
			if err := addMark(path, noon.Add(time.Duration(i)*time.Second), span{end: int64(i+1) * 100}); err != nil {
				t.Fatal(err)
			}
		}
		if f, err = os.OpenFile(path+timesSuffix, os.O_WRONLY, 0); err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
}

func TestTimesAreBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		marks := make([]kbroker.LogMark, rapid.IntRange(2, 300).Draw(t, "marks"))
		for i := range marks {
			marks[i] = kbroker.LogMark{At: noon.Add(time.Duration(i) * time.Second), Offset: int64(i+1) * 10}
		}
		first, limit := rapid.Int64Range(0, 3000).Draw(t, "first"), rapid.IntRange(2, 100).Draw(t, "limit")
		kept := thin(marks, first, limit)
		if len(kept) > limit || len(kept) == 0 || kept[len(kept)-1] != marks[len(marks)-1] {
			t.Fatalf("%d of %d marks are kept, want at most %d and the last", len(kept), len(marks), limit)
		}
		if len(kept) > 1 && kept[1].Offset <= first {
			t.Fatalf("marks %v are of output before %d", kept[:2], first)
		}
		for i := 1; i < len(kept); i++ {
			if kept[i].Offset <= kept[i-1].Offset {
				t.Fatalf("marks %v do not grow", kept)
			}
		}
		if recent := min(limit, len(kept)) / 4; len(kept) > recent && kept[len(kept)-1-recent] != marks[len(marks)-1-recent] {
			t.Fatalf("the newest %d are not all kept", recent)
		}
	})
}
