// Package durable replaces files so that whoever reads them, and whoever reads
// them after a crash or a power-off, finds all of the old content or all of the
// new one; when it has returned, the new one.
//
//	write a file beside it -> fsync -> rename -> fsync the directory
//
// A crash may leave the file beside it, .NAME.*; nobody reads that. Clear removes it,
// where what is in it is a secret.
//
// What a disk, or a person, makes of a file is another matter: a bad copy is put aside as
// NAME.damaged-N (SetAside), and what nothing else makes good has a NAME.copy (ReplaceTwice,
// ReadEither).
package durable

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Replace gives the file path this content and exactly this mode, whatever the
// umask; what root writes belongs to the owner of the directory. That must exist.
// After an error that the caller sees the old content is there, unless only the last
// fsync failed: then it may be either. Of concurrent calls one wins.
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

// Create makes a file for what nobody reads yet, in place of one that is there; a crash
// may leave a part of it. Links are not followed.
func Create(path string, data []byte, mode os.FileMode) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), giveAway(f), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
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

// copySuffix follows the name of a file whose loss nothing else makes good.
const copySuffix = ".copy"

// ReplaceTwice is Replace of a file whose loss nothing else makes good, and then of a
// copy beside it, for ReadEither.
func ReplaceTwice(path string, data []byte, mode os.FileMode) error {
	if err := Replace(path, data, mode); err != nil {
		return err
	}
	if info, err := os.Lstat(path + copySuffix); err == nil && !info.Mode().IsRegular() {
		if _, err := SetAside(path + copySuffix); err != nil {
			return err
		}
	}
	return Replace(path+copySuffix, data, mode)
}

// ReadEither reads what ReplaceTwice wrote: the file, or where that is damaged, which
// check tells, its copy, which then is the file again; the bad one is put aside. A file
// that is not there was taken away, and the copy does not count.
func ReadEither(path string, check func([]byte) error) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		if err = check(b); err == nil {
			return b, nil
		}
	}
	spare, spareErr := os.ReadFile(path + copySuffix)
	info, statErr := os.Stat(path + copySuffix)
	if spareErr != nil || statErr != nil || check(spare) != nil {
		return nil, err
	}
	// Who may only read has what it needs; the next one makes it good.
	if _, err := SetAside(path); err == nil {
		_ = Replace(path, spare, info.Mode().Perm())
	}
	return spare, nil
}

// sumMark begins the line that WithSum puts before the content of a file.
const sumMark = "# sha256:"

// WithSum is data with its digest in a line before it, which readers of PEM skip.
func WithSum(data []byte) []byte {
	return append(fmt.Appendf(nil, sumMark+"%x\n", sha256.Sum256(data)), data...)
}

// CheckSum tells what is wrong with what WithSum made; of what has no such line, nothing.
func CheckSum(b []byte) error {
	line, data, _ := bytes.Cut(b, []byte{'\n'})
	if sum, ok := bytes.CutPrefix(line, []byte(sumMark)); ok && string(sum) != fmt.Sprintf("%x", sha256.Sum256(data)) {
		return errors.New("the digest does not match")
	}
	return nil
}

// maxAside is how many bad copies of a file are kept, the newest ones.
const maxAside = 8

// asideSuffix follows the name of a file that was put aside, and a number.
const asideSuffix = ".damaged-"

// SetAside gives a file, or what is in its place, another name: a bad copy that
// somebody may want to look at. The names are numbered, and only the maxAside
// newest are kept. Nothing there is no error, and has no name.
func SetAside(path string) (kept string, err error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	before := Aside(path)
	number := 1
	if n := len(before); n > 0 {
		number = numberOf(before[n-1]) + 1
	}
	kept = path + asideSuffix + strconv.Itoa(number)
	if err := Rename(path, kept); err != nil {
		return "", fmt.Errorf("put %s aside: %w", path, err)
	}
	for _, old := range before[:max(0, len(before)+1-maxAside)] {
		err = errors.Join(err, RemoveTree(context.Background(), old))
	}
	return kept, err
}

// Aside are the bad copies of a file that are kept, the oldest first.
func Aside(path string) []string {
	entries, _ := os.ReadDir(filepath.Dir(path)) // one that is not there has none
	var kept []string
	for _, e := range entries {
		if whole := filepath.Join(filepath.Dir(path), e.Name()); strings.HasPrefix(whole, path+asideSuffix) && numberOf(whole) > 0 {
			kept = append(kept, whole)
		}
	}
	slices.SortFunc(kept, func(a, b string) int { return cmp.Compare(numberOf(a), numberOf(b)) })
	return kept
}

// numberOf is that of a bad copy, 0 if it is none.
func numberOf(path string) int {
	n, err := strconv.Atoi(path[strings.LastIndex(path, "-")+1:])
	if err != nil {
		return 0
	}
	return n
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
