package spawn

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Reachable reports whether everybody may enter the directories that lead to path,
// and if not, the first that not everybody may.
func Reachable(path string) (closed string, ok bool) { return reachable(path, os.Stat) }

func reachable(path string, stat func(string) (fs.FileInfo, error)) (closed string, ok bool) {
	dir := "/"
	for _, part := range strings.Split(strings.Trim(filepath.Dir(path), "/"), "/") {
		if info, err := stat(dir); err != nil || info.Mode().Perm()&0o001 == 0 {
			return dir, false
		}
		dir = filepath.Join(dir, part)
	}
	if info, err := stat(dir); err != nil || info.Mode().Perm()&0o001 == 0 {
		return dir, false
	}
	return "", true
}

// covered is a directory that is replaced, and the paths below it that are there
// all the same.
type covered struct {
	dir   string
	paths []shown
}

type shown struct {
	path  string
	write bool
}

// covers says which directories a view replaces, sorted. Paths that everybody can
// reach need nothing.
func (v *View) covers(closed func(path string) (string, bool)) []covered {
	var all []covered
	add := func(path string, write bool) {
		dir, ok := closed(path)
		if ok {
			return
		}
		i := slices.IndexFunc(all, func(c covered) bool { return c.dir == dir })
		if i < 0 {
			i = len(all)
			all = append(all, covered{dir: dir})
		}
		if !slices.ContainsFunc(all[i].paths, func(s shown) bool { return s.path == path }) {
			all[i].paths = append(all[i].paths, shown{path, write})
		}
	}
	for _, p := range v.Write {
		add(p, true)
	}
	for _, p := range v.Read {
		add(p, false)
	}
	slices.SortFunc(all, func(a, b covered) int { return strings.Compare(a.dir, b.dir) })
	for i := range all { // a path before what is in it
		slices.SortFunc(all[i].paths, func(a, b shown) int { return strings.Compare(a.path, b.path) })
	}
	return all
}
