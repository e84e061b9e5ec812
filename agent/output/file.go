package output

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
)

const (
	// LedgerSuffix follows the path of a file: its ledger.
	LedgerSuffix = ".json"
	// maxReadTries bounds how often a read begins again because what it read
	// was cut away meanwhile.
	maxReadTries = 100
)

// span is where an output file is in all that was ever written to it: its first
// byte is number base, the first that is kept number first, and it ends at end.
// All that was written is first + kept: nothing is counted that could be
// miscounted.
type span struct{ base, first, end int64 }

// ledger is beside an output file that does not begin with the first byte that
// was written. It changes only when the file is moved:
//
//	punch  the front becomes a hole; base stays, and the hole says what is gone
//	fold   the hole is taken out; base grows by as much
//	empty  everything is taken out, where the file system has no holes
//
// A punch needs no ledger, and so no fsync, which a flood would make slow.
type ledger struct {
	// Base is the number of the file's first byte.
	Base int64 `json:"base"`
	// Folding is the hole that is being taken out; Base counts it already. If
	// the file still begins with that hole, it was not.
	Folding int64 `json:"folding,omitempty"`
	// Emptying says that the file is being emptied; Base counts it already.
	// Whether it was emptied nobody can see later: settleOutput does it again.
	Emptying bool `json:"emptying,omitempty"`
}

func loadLedger(path string, f *os.File) (ledger, error) {
	var l ledger
	b, err := os.ReadFile(path + LedgerSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("output ledger: %w", err)
	}
	if err := json.Unmarshal(b, &l); err != nil {
		// Numbers begin again with what is there; no output is lost.
		return ledger{}, nil
	}
	if l.Folding > 0 {
		size, err := sizeOf(f)
		if err != nil {
			return l, err
		}
		if hole, err := holeOf(f, size); err != nil {
			return l, err
		} else if hole >= l.Folding {
			l.Base -= l.Folding
		}
		l.Folding = 0
	}
	return l, nil
}

func saveLedger(path string, l ledger) error {
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("output ledger: %w", err)
	}
	return durable.Replace(path+LedgerSuffix, b, 0o600)
}

// settleOutput finishes what a crash has cut off. Before it the file must not be
// punched: then nobody could see whether it was folded.
func settleOutput(path string, f *os.File) error {
	l, err := loadLedger(path, f)
	if err != nil {
		return err
	}
	if l.Emptying {
		return empty(path, f)
	}
	if b, err := json.Marshal(l); err != nil {
		return fmt.Errorf("output ledger: %w", err)
	} else if on, err := os.ReadFile(path + LedgerSuffix); errors.Is(err, os.ErrNotExist) || err == nil && string(on) == string(b) {
		return nil
	}
	return saveLedger(path, l)
}

// fold takes the hole out that the file begins with, in units of align: what is
// written meanwhile is neither lost nor counted twice. Who has the file open for
// appending waits for as long as that takes.
func fold(path string, f *os.File, align int64) error {
	size, err := sizeOf(f)
	if err != nil {
		return err
	}
	hole, err := holeOf(f, size)
	if err != nil {
		return err
	}
	if hole = hole / align * align; hole == 0 {
		return nil
	}
	l, err := loadLedger(path, f)
	if err != nil {
		return err
	}
	l.Base, l.Folding = l.Base+hole, hole
	if err := saveLedger(path, l); err != nil {
		return err
	}
	if err := collapse(f, hole); err != nil {
		l.Base, l.Folding = l.Base-hole, 0
		return errors.Join(err, saveLedger(path, l))
	}
	l.Folding = 0
	return saveLedger(path, l)
}

// empty takes everything out of a file whose file system has no holes. What is
// written between its last look and the emptying, in microseconds, is lost
// without being counted. After a crash in between more is counted as dropped
// than was: a number is never given twice.
func empty(path string, f *os.File) error {
	l, err := loadLedger(path, f)
	if err != nil {
		return err
	}
	size, err := sizeOf(f)
	if err != nil {
		return err
	}
	l.Base, l.Emptying = l.Base+size, true
	if err := saveLedger(path, l); err != nil {
		return err
	}
	late, err := sizeOf(f)
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("empty output: %w", err)
	}
	l.Base, l.Emptying = l.Base+max(0, late-size), false
	return saveLedger(path, l)
}

// measure says where a file is.
func measure(path string, f *os.File) (span, error) {
	l, err := loadLedger(path, f)
	if err != nil {
		return span{}, err
	}
	size, err := sizeOf(f)
	if err != nil {
		return span{}, err
	}
	hole, err := holeOf(f, size)
	return span{base: l.Base, first: l.Base + hole, end: l.Base + size}, err
}

func sizeOf(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("output: %w", err)
	}
	return info.Size(), nil
}

// readOutput reads at most limit bytes of what was ever written to path, from
// offset on; see kbroker.LogRequest. os.ErrNotExist when there is no such file.
// The file may be punched meanwhile, but not moved.
func readOutput(path string, offset int64, limit int) (kbroker.LogReply, error) {
	f, err := os.Open(path)
	if err != nil {
		return kbroker.LogReply{}, err
	}
	defer f.Close()
	for range maxReadTries {
		s, err := measure(path, f)
		if err != nil {
			return kbroker.LogReply{}, err
		}
		asked := offset
		if asked < 0 {
			asked = max(0, s.end+asked)
		}
		asked = min(asked, s.end)
		from := max(asked, s.first)
		data := make([]byte, min(int64(limit), s.end-from))
		n, err := f.ReadAt(data, from-s.base)
		if err != nil && !errors.Is(err, io.EOF) {
			return kbroker.LogReply{}, fmt.Errorf("read output: %w", err)
		}
		data = data[:n]
		if s.first, err = holeOf(f, s.end-s.base); err != nil {
			return kbroker.LogReply{}, err
		}
		s.first += s.base
		if gone := s.first - from; gone > 0 { // cut while it was read
			if gone >= int64(n) {
				continue
			}
			from, data = s.first, data[gone:]
		}
		return kbroker.LogReply{
			Offset: from, Next: from + int64(len(data)), Data: data,
			DroppedBytes: from - asked, Oldest: s.first,
		}, nil
	}
	return kbroker.LogReply{}, kbroker.Errorf(kbroker.Unavailable, "output is written faster than it can be read")
}
