package node

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/kbroker/kbroker/internal/durable"
)

// revokedFile is in the data directory of a core, whatever the cluster it is of: who was
// kept out of one that was lost is kept out of the one that is made of it.
const revokedFile = "revoked.log"

const (
	// revokedKept is how much longer than its end a revocation is kept here: clocks
	// differ.
	revokedKept = 10 * time.Minute
	// compactFrom this many lines the file is written anew when it has doubled.
	compactFrom = 256
)

// revocations are the users whose credentials were taken back, each with a time after
// all that was signed for it, in memory and in a file of lines:
//
//	<CRC-32 of the rest, in hex> <until, in Unix seconds> <public key>
//
// Lines are only ever added, and the latest end of a user counts. A line that is torn
// or damaged says nothing; the file is written anew then, and when it has doubled,
// without what has ended. Safe for concurrent use.
type revocations struct {
	path string
	now  func() time.Time // the wall clock

	saving sync.Mutex // held while the file is written, before mu

	mu    sync.Mutex
	until map[string]time.Time

	// The fields below belong to who holds saving.
	lines   int  // in the file
	whole   int  // lines that it would have, written anew, when it last was or was read
	damaged bool // the file is to be written anew
}

// openRevocations reads what is there; nothing is no error.
func openRevocations(path string, now func() time.Time) (*revocations, error) {
	r := &revocations{path: path, now: now, until: map[string]time.Time{}}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // others know, and tell
		if _, err := durable.SetAside(path); err != nil {
			return nil, fmt.Errorf("read which credentials were taken back: %w", err)
		}
		r.damaged = true
	}
	for len(b) > 0 {
		line, rest, ended := bytes.Cut(b, []byte{'\n'})
		b = rest
		user, until, ok := parseRevocation(line)
		if !ok || !ended {
			r.damaged = true
			continue
		}
		r.lines++
		if until.After(r.until[user]) && now().Before(until.Add(revokedKept)) {
			r.until[user] = until
		}
	}
	r.whole = len(r.until)
	return r, nil
}

// all are the users that are out; nobody writes to it.
func (r *revocations) all() map[string]time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.until
}

// add keeps more, without what has ended, and reports whether there was anything. It
// never takes one back, nor makes its end earlier, on the word of a store that is
// behind. They are known with an error, too: the file is then behind until the next call.
func (r *revocations) add(more map[string]time.Time) (news bool, err error) {
	r.saving.Lock()
	defer r.saving.Unlock()
	now := r.now()
	known := r.all()
	next := make(map[string]time.Time, len(known)+len(more))
	for user, until := range known {
		if now.Before(until.Add(revokedKept)) {
			next[user] = until
		}
	}
	var lines []byte
	added := 0
	for user, until := range more {
		until = until.UTC().Truncate(time.Second)
		if !now.Before(until.Add(revokedKept)) || !until.After(next[user]) {
			continue
		}
		next[user] = until
		lines = appendRevocation(lines, user, until)
		added++
	}
	if added == 0 && len(next) == len(known) && !r.damaged {
		return false, nil
	}
	r.mu.Lock()
	r.until = next
	r.mu.Unlock()
	return added > 0, r.save(next, lines, added)
}

// save brings the file to what is known, by lines or as a whole.
func (r *revocations) save(all map[string]time.Time, lines []byte, n int) error {
	if !r.damaged && (r.lines+n < compactFrom || r.lines+n < 2*r.whole) {
		if n == 0 {
			return nil
		}
		err := appendFile(r.path, lines)
		if err == nil {
			r.lines += n
			return nil
		}
		r.damaged = true // part of a line may be there
		return err
	}
	var b []byte
	for user, until := range all {
		b = appendRevocation(b, user, until)
	}
	r.damaged = true
	if err := durable.Replace(r.path, b, 0o600); err != nil {
		return err
	}
	r.damaged, r.lines, r.whole = false, len(all), len(all)
	return nil
}

// appendFile adds to a file, and makes it durable, its name too when it is new.
func appendFile(path string, b []byte) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return durable.Replace(path, b, 0o600)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func appendRevocation(b []byte, user string, until time.Time) []byte {
	rest := strconv.FormatInt(until.Unix(), 10) + " " + user
	return fmt.Appendf(b, "%08x %s\n", crc32.ChecksumIEEE([]byte(rest)), rest)
}

// parseRevocation reads a line, without its end.
func parseRevocation(line []byte) (user string, until time.Time, ok bool) {
	sum, rest, _ := bytes.Cut(line, []byte{' '})
	at, key, _ := bytes.Cut(rest, []byte{' '})
	if string(sum) != fmt.Sprintf("%08x", crc32.ChecksumIEEE(rest)) || len(key) == 0 {
		return "", time.Time{}, false
	}
	seconds, err := strconv.ParseInt(string(at), 10, 64)
	return string(key), time.Unix(seconds, 0).UTC(), err == nil
}
