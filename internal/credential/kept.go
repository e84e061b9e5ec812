package credential

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
)

// Held is a credential as one process has it, and since when.
//
// How long it holds counts from when it was received, by this machine alone: the clock of
// who signed it may be another one. What was found in a file counts from when the file was
// written. Of the machine's two clocks the one that says more counts, as one stands still
// while the machine sleeps: a wall clock that is set costs a renewal that comes early.
type Held struct {
	Credential
	since time.Time
	life  time.Duration // 0: for ever, or nothing was signed
}

// hold is what was received so long ago.
func hold(c Credential, age time.Duration) Held {
	h := Held{Credential: c, since: time.Now().Add(-max(0, age))}
	if from, until := c.Holds(); !until.IsZero() {
		h.life = max(time.Second, until.Sub(from))
	}
	return h
}

// Life is how long it holds in all; 0: for ever, or nothing was signed.
func (h Held) Life() time.Duration { return h.life }

// Left is how long it takes until a part of its life, 0 to 1, has passed, 0 and less: it
// has. Not for those without a Life.
func (h Held) Left(part float64) time.Duration { return h.left(part, time.Now()) }

func (h Held) left(part float64, now time.Time) time.Duration {
	age := max(now.Sub(h.since), now.Round(0).Sub(h.since.Round(0)))
	return time.Duration(part*float64(h.life)) - age
}

// Kept is a credential that is in a file: a core signs for its key later, and again, and
// more than one process asks for that, an agent and what it has started. What this process
// has received it uses from memory, whether or not the file takes it. Safe for concurrent
// use.
type Kept struct {
	path string

	mu     sync.Mutex
	held   Held
	stored string      // what is signed in the file, as far as is known
	seen   os.FileInfo // the file that was read last; nil: none, or another one since
}

// Keep reads a .creds file.
func Keep(path string) (*Kept, error) {
	c, age, err := load(path)
	if err != nil {
		return nil, err
	}
	return &Kept{path: path, held: hold(c, age), stored: c.jwt}, nil
}

// Look takes what is in the file, if that holds for longer, and returns what holds longest.
// It reads a file once, and then asks whether it is another one: an agent has hundreds.
func (k *Kept) Look() Held {
	info, statErr := os.Stat(k.path)
	if held, ok := k.read(info); ok {
		return held
	}
	c, age, err := load(k.path)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.seen = nil; err == nil && statErr == nil {
		k.seen = info // of before: what has replaced it since is read next time
	}
	if err == nil && c.public == k.held.public {
		k.stored = c.jwt
		if c.outlasts(k.held.Credential) {
			k.held = hold(c, age)
		}
	}
	return k.held
}

// read reports whether a file is the one that was read last, and what is held then. A file
// is replaced, never written over.
func (k *Kept) read(info os.FileInfo) (Held, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	same := info != nil && k.seen != nil && os.SameFile(info, k.seen) && info.ModTime().Equal(k.seen.ModTime()) && info.Size() == k.seen.Size()
	return k.held, same
}

// Now is what holds longest, as far as this process knows.
func (k *Kept) Now() Held {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held
}

// Take takes what a core has just signed for the key. What ends before that which is there,
// as another core's clock is another one, shows that this holds for as long.
func (k *Kept) Take(signed string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.held.Signed(signed)
	if claims, err := jwt.DecodeUserClaims(signed); err != nil {
		return fmt.Errorf("what was signed cannot be read: %w", err)
	} else if claims.Subject != c.public {
		return errors.New("it was signed for another key")
	}
	n := hold(c, 0)
	switch {
	case c.outlasts(k.held.Credential):
		k.held = n
	case k.held.life > 0:
		k.held.since, k.held.life = n.since, n.life
	}
	return nil
}

// Save has the file hold what Take took, as long as the file is there and has nothing that
// holds for longer. After an error it is to be called again.
func (k *Kept) Save() error {
	_, err := k.save(durable.Replace)
	return err
}

// Write is Save that a power-off may take back, until the caller syncs the file system;
// written: there was something to write.
func (k *Kept) Write() (written bool, err error) { return k.save(durable.Swap) }

func (k *Kept) save(replace func(string, []byte, os.FileMode) error) (written bool, err error) {
	k.mu.Lock()
	held, stored := k.held.Credential, k.stored
	k.mu.Unlock()
	if held.jwt == stored {
		return false, nil
	}
	now, err := held.saveOver(k.path, replace)
	if err != nil {
		return false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stored = now
	return true, nil
}

// saveOver replaces a file of the same key whose credential does not hold for as long, and
// returns what is signed in it then. Of several processes that do, the one with the latest
// end wins. A file that was removed is not made again: who removed it knows that it is over.
func (c Credential) saveOver(path string, replace func(string, []byte, os.FileMode) error) (signed string, err error) {
	unlock, err := lock(filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	defer unlock()
	there, err := Load(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c.jwt, nil
	case err == nil && (there.public != c.public || !c.outlasts(there)):
		return c.jwt, nil
	}
	b, err := c.Encode()
	if err != nil {
		return "", err
	}
	return c.jwt, replace(path, b, 0o600)
}

// outlasts reports whether what was signed of c ends after that of another one.
func (c Credential) outlasts(other Credential) bool {
	if c.jwt == other.jwt {
		return false
	}
	own, err := jwt.DecodeUserClaims(c.jwt)
	if err != nil {
		return false
	}
	than, err := jwt.DecodeUserClaims(other.jwt)
	if err != nil {
		return true
	}
	return than.Expires != 0 && (own.Expires == 0 || own.Expires > than.Expires)
}

// signedWait is how long an attempt to connect waits for what is being signed, and
// signedLook how often it looks.
const (
	signedWait = 500 * time.Millisecond
	signedLook = 5 * time.Millisecond
)

// Options are those of a connection that shows, with each attempt to connect, what holds
// longest then: the key is there from the beginning, what a core signs for it may come
// later, and again. shown, which may be nil, is told what.
func (k *Kept) Options(shown func(Held)) []nats.Option {
	own := k.Now() // whose key stays
	// Not by nats.UserJWT, which asks at once for what may be signed later: a connection
	// that is made in the background fails with it.
	show := func(o *nats.Options) error {
		o.SignatureCB = own.key.Sign
		o.UserJWT = func() (string, error) {
			h, err := k.signed()
			if err == nil && shown != nil {
				shown(h)
			}
			return h.jwt, err
		}
		return nil
	}
	return []nats.Option{show, nats.CustomInboxPrefix(own.Inbox())}
}

// signed waits for what a core signs.
func (k *Kept) signed() (Held, error) {
	patience := time.After(signedWait)
	for {
		if h := k.Look(); h.IsSigned() {
			return h, nil
		}
		select {
		case <-patience:
			return Held{}, errors.New("no core has signed the credential of this process yet")
		case <-time.After(signedLook):
		}
	}
}

// maxBytes is more than any credential has.
const maxBytes = 64 << 10

// load reads a .creds file, and how long ago it was written.
func load(path string) (c Credential, age time.Duration, err error) {
	// An agent reads it in a directory of its instance: nothing that is put there may
	// have it wait, or read what is somebody else's.
	flags, owner, theirs := os.O_RDONLY|syscall.O_NONBLOCK, uint32(0), false
	if owner, theirs = strangersDir(filepath.Dir(path)); theirs {
		flags |= syscall.O_NOFOLLOW
	}
	f, err := os.OpenFile(path, flags, 0)
	if theirs && errors.Is(err, syscall.ELOOP) {
		err = kbroker.Errorf(kbroker.Invalid, "%s is a link", path)
	}
	if err != nil {
		return c, 0, fmt.Errorf("read a credential: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = kbroker.Errorf(kbroker.Invalid, "%s is not a file", path)
	case theirs && ownerOf(info) != owner: // a hard link
		err = kbroker.Errorf(kbroker.Invalid, "%s is not of the user whose directory it is in", path)
	}
	if err != nil {
		return c, 0, fmt.Errorf("read a credential: %w", err)
	}
	c, err = read(io.LimitReader(f, maxBytes), path)
	return c, time.Since(info.ModTime()), err
}

// strangersDir reports whether a directory is that of another user, whom this process, as
// root, could read more for than they may read themselves.
func strangersDir(dir string) (owner uint32, theirs bool) {
	info, err := os.Stat(dir)
	if err != nil || os.Geteuid() != 0 {
		return 0, false
	}
	owner = ownerOf(info)
	return owner, owner != 0
}

func ownerOf(info fs.FileInfo) uint32 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Uid
	}
	return 0
}
