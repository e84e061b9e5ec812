// Package durable replaces files so that whoever reads them, and whoever reads
// them after a crash or a power-off, finds all of the old content or all of the
// new one; when it has returned, the new one.
//
//	write a file beside it -> fsync -> rename -> fsync the directory
//
// A crash may leave the file beside it, .NAME.*; nobody reads that. Clear removes it,
// where what is in it is a secret.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
)

// Replace gives the file path this content and exactly this mode, whatever the
// umask; what root writes belongs to the owner of the directory. It must exist. After an error that the caller sees the old
// content is there, unless only the last fsync failed: then it may be either. Of
// concurrent calls one wins.
func Replace(path string, data []byte, mode os.FileMode) error {
	return replace(path, mode, true, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Swap is Replace for what only matters until the machine goes down: whoever reads the
// file finds all of the old content or all of the new one, whichever processes are
// killed; after a power-off it may have any content, or be gone.
func Swap(path string, data []byte, mode os.FileMode) error {
	return replace(path, mode, false, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// giveAway gives a file that root makes to the owner of its directory: who may write
// there is to read it.
func giveAway(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || s.Uid == 0 {
		return nil
	}
	return f.Chown(int(s.Uid), int(s.Gid))
}

func replace(path string, mode os.FileMode, lasts bool, fill func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = errors.Join(fill(f), f.Chmod(mode), giveAway(f))
	if err == nil && lasts {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
	}
	if !lasts {
		return nil
	}
	return Sync(filepath.Dir(path))
}

// Clear removes what calls of Replace have left in a directory that a crash cut off; of
// the named files alone, if there are names. Nobody else may be replacing them. A
// directory that is not there has nothing of the kind.
func Clear(dir string, names ...string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clear %s: %w", dir, err)
	}
	for _, e := range entries {
		left := leftover.FindStringSubmatch(e.Name())
		if left == nil || !e.Type().IsRegular() || len(names) > 0 && !slices.Contains(names, left[1]) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clear %s: %w", dir, err)
		}
	}
	return nil
}

// leftover is the name of a file that os.CreateTemp made for replace.
var leftover = regexp.MustCompile(`^\.(.+)\.[0-9]+$`)

// Rename gives a file or a directory another name, which a power-off does not
// take back. What is in it must be synced before. Both names must be on one
// file system; a file that has the new name is replaced.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if a, b := filepath.Dir(from), filepath.Dir(to); a != b {
		return errors.Join(Sync(a), Sync(b))
	}
	return Sync(filepath.Dir(to))
}

// Sync makes a file's content, or a directory's list of names, durable.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// MakeDir makes a directory that a power-off does not take back, and those above it
// that are missing, for the owner alone.
func MakeDir(path string) error {
	above := filepath.Dir(path)
	if _, err := os.Stat(above); errors.Is(err, fs.ErrNotExist) && above != path {
		if err := MakeDir(above); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		if info, statErr := os.Stat(path); statErr != nil || !info.IsDir() {
			return err
		}
	}
	return Sync(above)
}
