package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestWhatIsSentIsOnTheDiskBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	for c := range 20 {
		callers.Go(func() {
			for range 10 {
				want := move{from: c, to: outside, cents: int64(c + 1), outcome: unknown}
				id, err := j.begin(want)
				if err != nil {
					t.Error(err)
					return
				}
				if moves, err := readJournal(path); err != nil || len(moves) < id || moves[id-1] != want {
					t.Errorf("the journal has %d movements (%v), want %+v as number %d", len(moves), err, want, id)
				}
				j.end(id, ok)
			}
		})
	}
	callers.Wait()
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	moves, err := readJournal(path)
	if err != nil || len(moves) != 200 || slices.ContainsFunc(moves, func(m move) bool { return m.outcome != ok }) {
		t.Errorf("%d movements (%v), want 200, all of them ok", len(moves), err)
	}
	if _, err := openJournal(path); err == nil {
		t.Error("a journal is written over another one")
	}
}

func TestReadJournal(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []move // nil: not readable
	}{
		{"what has no outcome is unknown", `{"id":1,"to":0,"cents":5}`, []move{{outside, 0, 5, unknown}}},
		{"outcomes in any order", `{"id":1,"to":0,"cents":5}
{"id":2,"from":0,"to":1,"cents":3}
{"id":2,"outcome":"none"}
{"id":1,"outcome":"ok"}`, []move{{outside, 0, 5, ok}, {0, 1, 3, none}}},
		{"the last line is cut off", `{"id":1,"to":0,"cents":5}
{"id":1,"outc`, []move{{outside, 0, 5, unknown}}},
		{"another one is", `{"id":1,"to":0,"ce
{"id":1,"outcome":"ok"}`, nil},
		{"an outcome of what was not sent", `{"id":1,"outcome":"ok"}`, nil},
		{"one is missing", `{"id":2,"to":0,"cents":5}`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal")
			if err := os.WriteFile(path, []byte(strings.TrimSpace(c.text)), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readJournal(path)
			if (err != nil) != (c.want == nil) || !slices.Equal(got, c.want) {
				t.Errorf("read %v, %v, want %v", got, err, c.want)
			}
		})
	}
}

func TestAJournalThatCannotBeWritten(t *testing.T) {
	j, err := openJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	j.file.Close()
	for range 2 {
		if _, err := j.begin(move{outside, 0, 5, unknown}); err == nil {
			t.Error("what could not be written may be sent")
		}
	}
	if err := j.close(); err == nil {
		t.Error("a journal that could not be written is closed without an error")
	}
}
