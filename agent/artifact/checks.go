package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kbroker/kbroker/internal/stamp"
	"github.com/kbroker/kbroker/internal/unpack"
)

// errDamaged: a file is there and is not what was written.
var errDamaged = errors.New("damaged")

// errUnknown: this agent does not know what a tree has to be.
var errUnknown = errors.New("the archive has not been read")

// checks are what is known of one digest, since this agent has started: what was
// read in full and had the right content has a stamp, of before it was read. Before
// each start all is looked at; what has another stamp, or none, is read again.
type checks struct {
	whole    stamp.Stamp            // of the file as it was uploaded
	refused  error                  // why the archive is not unpacked: it will never be another one
	unpacked unpack.Tree            // what the archive says; nil: not known
	stamps   map[string]stamp.Stamp // of the files of the tree
}

// file checks the file as it was uploaded. errDamaged; os.ErrNotExist.
func (k *checks) file(ctx context.Context, path, digest string) error {
	now := time.Now()
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	s := stamp.Of(info)
	if k.whole != (stamp.Stamp{}) && k.whole == s {
		return nil
	}
	k.whole = stamp.Stamp{}
	if info.Mode() != fileMode {
		return fmt.Errorf("%w: its mode is %v", errDamaged, info.Mode())
	}
	sum, err := sumFile(ctx, path)
	switch {
	case err != nil:
		return fmt.Errorf("read artifact: %w", err)
	case hex.EncodeToString(sum[:]) != digest:
		return fmt.Errorf("%w: its digest is %x", errDamaged, sum)
	case s.Settled(now):
		k.whole = s
	}
	return nil
}

// tree checks that a directory is what the archive unpacks to: nothing else, nothing
// more, nothing less. errDamaged; errUnknown.
func (k *checks) tree(ctx context.Context, dir string) error {
	if k.unpacked == nil {
		return errUnknown
	}
	now, found := time.Now(), 0
	stamps := make(map[string]stamp.Stamp, len(k.stamps))
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		name, item := strings.TrimPrefix(path, dir+"/"), unpack.Item{Kind: unpack.Dir}
		if path != dir {
			found++
			var ok bool
			if item, ok = k.unpacked[name]; !ok {
				return fmt.Errorf("%w: %q was added", errDamaged, name)
			}
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		s, err := k.item(ctx, path, name, item, info)
		if err == nil && item.Kind == unpack.File && s.Settled(now) {
			stamps[name] = s
		}
		return err
	})
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = fmt.Errorf("%w: %w", errDamaged, err)
	case err == nil && found != len(k.unpacked):
		err = fmt.Errorf("%w: %d of its %d files and directories are missing", errDamaged, len(k.unpacked)-found, len(k.unpacked))
	case err != nil && !errors.Is(err, errDamaged) && ctx.Err() == nil:
		err = fmt.Errorf("look at the unpacked artifact: %w", err)
	}
	if err != nil {
		stamps = nil
	}
	k.stamps = stamps
	return err
}

// item checks one thing of a tree. The stamp of a file is of before it was read.
func (k *checks) item(ctx context.Context, path, name string, want unpack.Item, info fs.FileInfo) (stamp.Stamp, error) {
	changed := fmt.Errorf("%w: %q was changed", errDamaged, name)
	switch want.Kind {
	case unpack.Dir:
		if info.Mode() != fs.ModeDir|want.Mode() {
			return stamp.Stamp{}, changed
		}
	case unpack.Link:
		if target, err := os.Readlink(path); err != nil || target != want.Target {
			return stamp.Stamp{}, changed
		}
	case unpack.File:
		s := stamp.Of(info)
		if k.stamps[name] == s {
			return s, nil
		}
		if info.Mode() != want.Mode() || info.Size() != want.SizeBytes {
			return stamp.Stamp{}, changed
		}
		sum, err := sumFile(ctx, path)
		if err == nil && sum != want.SHA256 {
			err = changed
		}
		return s, err
	}
	return stamp.Stamp{}, nil
}

// sumFile reads a file; it ends with ctx.
func sumFile(ctx context.Context, path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	for err == nil {
		if err = ctx.Err(); err == nil {
			_, err = io.CopyN(h, f, 8<<20)
		}
	}
	copy(sum[:], h.Sum(nil))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return sum, err
}
