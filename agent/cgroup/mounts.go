package cgroup

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Controllers, as the kernel names them. Freezer is of version 1 alone: version 2
// kills and freezes without one.
const (
	cpu     = "cpu"
	cpuacct = "cpuacct"
	memory  = "memory"
	pids    = "pids"
	freezer = "freezer"
)

// hierarchy is a mounted tree of groups.
type hierarchy struct {
	dir         string   // where it is mounted
	v2          bool     // the unified one
	controllers []string // of version 1; version 2 says so itself
	own         string   // the group of this process in it: a path that begins with /
}

// hierarchies are those that are mounted here, by the texts of /proc/self/mountinfo
// and /proc/self/cgroup (cgroups(7)). Only the mount of a whole tree counts, the
// first of each.
func hierarchies(mountinfo, own string) []hierarchy {
	groups := ownGroups(own)
	var all []hierarchy
	seen := map[string]bool{}
	for line := range strings.Lines(mountinfo) {
		// ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS ... - TYPE SOURCE SUPEROPTIONS
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 || slices.Contains(strings.Split(l[5], ","), "ro") {
			continue
		}
		h := hierarchy{dir: unescape(l[4]), v2: r[0] == "cgroup2"}
		switch {
		case h.v2:
			h.own = groups[""]
		case r[0] == "cgroup":
			for _, c := range strings.Split(r[2], ",") {
				if group, ok := groups[c]; ok {
					h.controllers, h.own = append(h.controllers, c), group
				}
			}
		}
		key := fmt.Sprint(h.v2, h.controllers)
		if h.own == "" || seen[key] {
			continue
		}
		seen[key] = true
		// In a container the mount shows a part of the tree: what is outside of it
		// is not reached by its path.
		if root := unescape(l[3]); root != "/" {
			rest, inside := strings.CutPrefix(h.own, root)
			if !inside {
				rest = "/"
			}
			h.own = "/" + strings.TrimPrefix(rest, "/")
		}
		all = append(all, h)
	}
	return all
}

// ownGroups are the groups of /proc/self/cgroup by controller; that of version 2
// has none.
func ownGroups(text string) map[string]string {
	groups := map[string]string{}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			groups[c] = f[2]
		}
	}
	return groups
}

// unescape reads a path as mountinfo writes it: blanks and the like in octal.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// mounted are the hierarchies of this process.
func mounted() ([]hierarchy, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for cgroups: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("look for cgroups: %w", err)
	}
	return hierarchies(string(mountinfo), string(own)), nil
}
