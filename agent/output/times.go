package output

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	timesSuffix = ".times"
	partSuffix  = ".part" // what is not whole
	// markBytes is a mark on disk: milliseconds since 1970, and an offset.
	markBytes = 16
	// maxMarks bounds the marks of an output: nine hours of uninterrupted
	// writing to the second. With more the older half loses every other one.
	maxMarks = 32 << 10
	// maxReplyMarks bounds those of one answer.
	maxReplyMarks = 1024
)

// The times of an output are beside it: once a second, while it grows, where it
// ended at that time. Both grow from mark to mark: where the clock was set back,
// the time stands until the clock has caught up. What was written while no agent
// ran has the time of the agent's return: of when in between, nobody knows.

// addMark notes that at now an output was as s says.
func addMark(path string, now time.Time, s span) error {
	if s.end == 0 {
		return nil // many programs never write anything
	}
	f, err := os.OpenFile(path+timesSuffix, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("times of output: %w", err)
	}
	defer f.Close()
	n, err := countMarks(f)
	if err != nil {
		return err
	}
	m := kbroker.LogMark{At: now, Offset: s.end}
	if n > 0 {
		last, err := readMark(f, n-1)
		if err != nil {
			return err
		}
		if m.Offset <= last.Offset {
			return nil
		}
		if m.At.Before(last.At) {
			m.At = last.At
		}
	}
	if n >= maxMarks {
		all, err := readMarks(f, 0, n)
		if err != nil {
			return err
		}
		return writeMarks(path, append(thin(all, s.first, maxMarks*3/4), m))
	}
	if _, err := f.WriteAt(appendMark(nil, m), int64(n)*markBytes); err != nil {
		return fmt.Errorf("times of output: %w", err)
	}
	return nil
}

// thin leaves at most limit marks (at least two): those of output that is kept,
// of the older ones fewer. Pure.
func thin(marks []kbroker.LogMark, first int64, limit int) []kbroker.LogMark {
	old := sort.Search(len(marks), func(i int) bool { return marks[i].Offset > first })
	marks = marks[max(0, old-1):] // one of before: it dates the first byte
	for len(marks) > limit {
		half := (len(marks) + 1) / 2
		kept := make([]kbroker.LogMark, 0, len(marks))
		for i := 0; i < half; i += 2 {
			kept = append(kept, marks[i])
		}
		marks = append(kept, marks[half:]...)
	}
	return marks
}

// settleMarks drops what a crash has left that cannot be: marks beyond the end,
// and those that do not grow.
func settleMarks(path string, end int64) error {
	f, err := os.Open(path + timesSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("times of output: %w", err)
	}
	defer f.Close()
	n, err := countMarks(f)
	if err != nil {
		return err
	}
	all, err := readMarks(f, 0, n)
	if err != nil {
		return err
	}
	sound := 0
	for sound < len(all) && all[sound].Offset <= end && all[sound].At.Unix() > 0 &&
		(sound == 0 || all[sound].Offset > all[sound-1].Offset && !all[sound].At.Before(all[sound-1].At)) {
		sound++
	}
	if sound == len(all) {
		return nil
	}
	return writeMarks(path, all[:sound])
}

// marksOf returns the marks that date the bytes between two offsets, at most
// limit: those after from, until the first that is not before to.
func marksOf(path string, from, to int64, limit int) ([]kbroker.LogMark, error) {
	if from >= to {
		return nil, nil
	}
	f, err := os.Open(path + timesSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("times of output: %w", err)
	}
	defer f.Close()
	n, err := countMarks(f)
	if err != nil {
		return nil, err
	}
	at, err := searchMarks(f, n, func(m kbroker.LogMark) bool { return m.Offset > from })
	if err != nil {
		return nil, err
	}
	marks, err := readMarks(f, at, min(n, at+limit))
	if err != nil {
		return nil, err
	}
	if end := slices.IndexFunc(marks, func(m kbroker.LogMark) bool { return m.Offset >= to }); end >= 0 {
		marks = marks[:end+1]
	}
	return marks, nil
}

// offsetAt is where an output ended at the last mark that is not after t; 0 when
// there is none.
func offsetAt(path string, t time.Time) (int64, error) {
	f, err := os.Open(path + timesSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("times of output: %w", err)
	}
	defer f.Close()
	n, err := countMarks(f)
	if err != nil {
		return 0, err
	}
	at, err := searchMarks(f, n, func(m kbroker.LogMark) bool { return m.At.After(t) })
	if err != nil || at == 0 {
		return 0, err
	}
	m, err := readMark(f, at-1)
	return m.Offset, err
}

// countMarks is how many whole ones there are.
func countMarks(f *os.File) (int, error) {
	size, err := sizeOf(f)
	return int(size / markBytes), err
}

// searchMarks is the first of n marks for which is holds, as it does for all after.
func searchMarks(f *os.File, n int, is func(kbroker.LogMark) bool) (int, error) {
	var failed error
	at := sort.Search(n, func(i int) bool {
		m, err := readMark(f, i)
		failed = errors.Join(failed, err)
		return err == nil && is(m)
	})
	return at, failed
}

func readMark(f *os.File, i int) (kbroker.LogMark, error) {
	marks, err := readMarks(f, i, i+1)
	if err != nil {
		return kbroker.LogMark{}, err
	}
	return marks[0], nil
}

func readMarks(f *os.File, from, to int) ([]kbroker.LogMark, error) {
	raw := make([]byte, max(0, to-from)*markBytes)
	if _, err := f.ReadAt(raw, int64(from)*markBytes); err != nil && !(errors.Is(err, io.EOF) && len(raw) == 0) {
		return nil, fmt.Errorf("times of output: %w", err)
	}
	marks := make([]kbroker.LogMark, 0, len(raw)/markBytes)
	for ; len(raw) > 0; raw = raw[markBytes:] {
		marks = append(marks, kbroker.LogMark{
			At:     time.UnixMilli(int64(binary.BigEndian.Uint64(raw))).UTC(),
			Offset: int64(binary.BigEndian.Uint64(raw[8:])),
		})
	}
	return marks, nil
}

func appendMark(b []byte, m kbroker.LogMark) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(m.At.UnixMilli()))
	return binary.BigEndian.AppendUint64(b, uint64(m.Offset))
}

// writeMarks replaces the marks of an output. They are not worth an fsync: what
// a power-off damages is dropped by settleMarks.
func writeMarks(path string, marks []kbroker.LogMark) error {
	raw := make([]byte, 0, len(marks)*markBytes)
	for _, m := range marks {
		raw = appendMark(raw, m)
	}
	part := path + timesSuffix + partSuffix
	if err := os.WriteFile(part, raw, 0o600); err != nil {
		return fmt.Errorf("times of output: %w", err)
	}
	if err := os.Rename(part, path+timesSuffix); err != nil {
		return fmt.Errorf("times of output: %w", err)
	}
	return nil
}
