package durable

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// removeBatch is how many entries of a directory are looked at together.
const removeBatch = 1024

// RemoveTree removes a file or a directory, with whatever somebody who is not trusted made
// in it: with a handful of files open, however deep that is (os.RemoveAll has one
// for each level), and without following a link. What is a directory in a directory
// is moved up first, so that no path gets long. It ends with ctx, and may be called again;
// what is not there is no error.
func RemoveTree(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil: // no directory
		return os.Remove(dir)
	}
	t := tree{root: root}
	err = t.empty(ctx, ".")
	return errors.Join(err, root.Close(), removeIf(err == nil, dir))
}

func removeIf(is bool, dir string) error {
	if !is {
		return nil
	}
	return os.Remove(dir)
}

// tree is one that is being removed.
type tree struct {
	root  *os.Root
	moved int
}

// empty removes what is in a directory: the top, or one that is directly in it.
func (t *tree) empty(ctx context.Context, name string) error {
	if name != "." {
		_ = t.root.Chmod(name, 0o700) // who made it may have closed it, also to its user
	}
	for {
		entries, err := t.some(name)
		if err != nil || len(entries) == 0 {
			return err
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := t.remove(ctx, name, e); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
}

func (t *tree) some(name string) ([]fs.DirEntry, error) {
	f, err := t.root.Open(name)
	if err != nil {
		return nil, err
	}
	entries, err := f.ReadDir(removeBatch)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return entries, errors.Join(err, f.Close())
}

func (t *tree) remove(ctx context.Context, in string, e fs.DirEntry) error {
	at := path.Join(in, e.Name())
	switch {
	case !e.IsDir():
		return t.root.Remove(at)
	case in != ".": // its own turn comes at the top
		return t.hoist(at)
	}
	if err := t.empty(ctx, at); err != nil {
		return err
	}
	return t.root.Remove(at)
}

// hoist moves a directory to the top, under a name that is free.
func (t *tree) hoist(at string) error {
	_ = t.root.Chmod(at, 0o700)
	for {
		t.moved++
		to := fmt.Sprintf(".removed-%d", t.moved)
		if _, err := t.root.Lstat(to); errors.Is(err, fs.ErrNotExist) {
			return t.root.Rename(at, to)
		} else if err != nil {
			return err
		}
	}
}
