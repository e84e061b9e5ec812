package unpack

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
)

// maxHops bounds the links on a way to a file. Linux follows 40; those of libraries
// and of node_modules are one to three.
const maxHops = 10

// links checks all symbolic links, when it is known what is where, and makes them. A
// link that leads nowhere inside is as harmless as one to a file.
func (w *walker) links() error {
	for _, name := range slices.Sorted(maps.Keys(w.tree)) {
		item := w.tree[name]
		if item.Kind != Link {
			continue
		}
		if _, err := w.tree.Resolve(name); err != nil && !errors.Is(err, kbroker.NotFound) {
			return err
		}
		if w.root == nil {
			continue
		}
		if err := w.root.Symlink(item.Target, name); err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
	}
	return nil
}

// Resolve follows the links on the way to a path, as the kernel does, and returns
// the path without links; "" is the tree's own directory. Errors: NotFound; Invalid -
// it leads out of the tree, or in circles.
func (t Tree) Resolve(name string) (string, error) {
	var at []string
	rest, hops := strings.Split(name, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(at) == 0 {
				return "", refuse("%.80q leads out of the archive: refused", name)
			}
			at = at[:len(at)-1]
			continue
		}
		next := strings.Join(append(slices.Clone(at), part), "/")
		item, ok := t[next]
		switch {
		case !ok, item.Kind == File && len(rest) > 0:
			return "", kbroker.Errorf(kbroker.NotFound, "%q is not in the archive", name)
		case item.Kind == Link:
			if hops++; hops > maxHops {
				return "", refuse("%.80q leads over more than %d links: refused", name, maxHops)
			}
			if path.IsAbs(item.Target) {
				return "", refuse("%.80q leads out of the archive: refused", name)
			}
			rest = append(strings.Split(item.Target, "/"), rest...)
		default:
			at = append(at, part)
		}
	}
	return strings.Join(at, "/"), nil
}

// Command finds the program that an archive is to be started with. Invalid, with a
// hint.
func (t Tree) Command(name string) (string, error) {
	found, err := t.Resolve(name)
	if errors.Is(err, kbroker.NotFound) {
		e := refuse("the archive has no file %q", name)
		if similar := t.endsIn(name); similar != "" {
			return "", e.WithHint("it has %q", similar)
		}
		return "", e.WithHint("the command is a path in the archive; list them with tar -tf or unzip -l")
	}
	if err != nil {
		return "", err
	}
	switch item := t[found]; {
	case item.Kind != File:
		return "", refuse("%q is a directory of the archive, not a program", name)
	case !item.Executable:
		return "", refuse("%q is not executable in the archive", name).WithHint("chmod +x it before it is packed; a zip file made on Windows has no such bit, a tar has")
	}
	return found, nil
}

// endsIn is the first file whose path ends in name, or in its last part.
func (t Tree) endsIn(name string) string {
	for _, end := range []string{path.Clean(name), path.Base(name)} {
		for _, p := range slices.Sorted(maps.Keys(t)) {
			if t[p].Kind == File && (p == end || strings.HasSuffix(p, "/"+end)) {
				return p
			}
		}
	}
	return ""
}
