// Package cgroup keeps the processes of each instance in control groups of their
// own: what is in a group is limited together, counted together and killed
// together, whatever it has forked.
//
// It works on hosts with the unified hierarchy (version 2), with those of version
// 1, and with both (hybrid: version 2 tracks and kills, version 1 limits). A group
// has the same name in every hierarchy that is used:
//
//	version 2   /kbroker-<id>/<name>          tracking, killing; limits where its controllers are
//	version 1   <own>/kbroker-<id>/<name>     cpu, memory, pids; freezer where there is no version 2
//
// own is the group of the agent that came first, so that what holds for it holds
// for its instances. Where the groups are is on disk: a later agent, and whoever
// cleans up after one, finds them from any group of its own.
package cgroup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker/internal/durable"
)

// placeFile, in a data directory, says where its groups are.
const placeFile = "cgroups.json"

// place is where the groups of a data directory are.
type place struct {
	Unified string            `json:"unified,omitempty"` // version 2
	V1      map[string]string `json:"v1,omitempty"`      // by controller
	// Controllers are those that version 2 has for groups here.
	Controllers []string `json:"controllers,omitempty"`
	// Boot is the boot for which it was found: groups do not outlive it.
	Boot string `json:"boot"`
}

// Root has the groups of one data directory. Safe for concurrent use.
type Root struct{ place place }

// Features is what a host can do for its instances.
type Features struct {
	Group             bool // nothing outlives the group that is killed
	CPU, Memory, PIDs bool // limits
}

// Open finds or makes the place of a data directory's groups; boot names this boot
// of the machine. It is no error when the host has none, or gives none to this
// user: then Features are all false.
func Open(dataDir, boot string) (*Root, error) {
	path := filepath.Join(dataDir, placeFile)
	if held, ok := load(path, boot); ok {
		return &Root{held}, nil
	}
	// What is there and is not of another boot is damaged: what it said is found anew.
	if b, err := os.ReadFile(path); !errors.Is(err, fs.ErrNotExist) && (err != nil || !json.Valid(b)) {
		if _, err := durable.SetAside(path); err != nil {
			return nil, err
		}
	}
	all, err := mounted()
	if err != nil {
		return nil, err
	}
	name, err := nameOf(dataDir)
	if err != nil {
		return nil, err
	}
	r := &Root{find(all, name)}
	r.place.Boot = boot
	b, err := json.Marshal(r.place)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", path, err)
	}
	return r, durable.Replace(path, b, 0o600)
}

// nameOf is the name of the directory of groups of a data directory: of it, not of its
// path alone, which may be that of a directory in another container that sees the
// same tree.
func nameOf(dataDir string) (string, error) {
	var s unix.Stat_t
	if err := unix.Stat(dataDir, &s); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	sum := sha256.Sum256(fmt.Append(nil, dataDir, "\x00", s.Dev, " ", s.Ino))
	return "kbroker-" + hex.EncodeToString(sum[:6]), nil
}

// Find is Open for who only looks after what an agent has left: nothing is made.
func Find(dataDir, boot string) *Root {
	held, _ := load(filepath.Join(dataDir, placeFile), boot)
	return &Root{held}
}

// load reads the place of this boot; false if there is none, or it is not there
// any more.
func load(path, boot string) (place, bool) {
	var p place
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &p) != nil || p.Boot != boot {
		return place{}, false
	}
	for _, dir := range p.dirs() {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() || !strings.HasPrefix(filepath.Base(dir), "kbroker-") {
			return place{}, false
		}
	}
	return p, true
}

// dirs are all directories of the place, that of version 2 first.
func (p place) dirs() []string {
	var all []string
	if p.Unified != "" {
		all = append(all, p.Unified)
	}
	for _, c := range []string{memory, cpu, cpuacct, pids, freezer} {
		if dir := p.V1[c]; dir != "" && !slices.Contains(all, dir) {
			all = append(all, dir)
		}
	}
	return all
}

// find makes the directory of that name in every hierarchy that is of use.
func find(all []hierarchy, name string) place {
	p := place{V1: map[string]string{}}
	for _, h := range all {
		if h.v2 {
			p.Unified, p.Controllers = unified(h, name)
		}
	}
	for _, h := range all {
		for _, c := range h.controllers {
			switch {
			case slices.Contains(p.Controllers, c):
			case c == memory, c == cpu, c == pids, p.Unified == "" && (c == freezer || c == cpuacct):
				if dir := filepath.Join(h.dir, h.own, name); usable(dir) == nil {
					p.V1[c] = dir
				}
			}
		}
	}
	return p
}

// unified makes the directory of version 2; empty if that is not possible. It is
// at the root, beside what the system's own manager makes: below a unit of systemd
// it would keep the unit from being started again, as processes may be in leaves
// only. Who may not make it there has it below its own group, without controllers.
func unified(h hierarchy, name string) (dir string, controllers []string) {
	dir = filepath.Join(h.dir, name)
	if usable(dir) != nil {
		if dir = filepath.Join(h.dir, h.own, name); usable(dir) != nil {
			return "", nil
		}
		return dir, nil
	}
	for _, c := range []string{cpu, memory, pids} {
		if enable(h.dir, c) == nil && enable(dir, c) == nil {
			controllers = append(controllers, c)
		}
	}
	return dir, controllers
}

// usable makes a directory and tries whether groups can be made in it.
func usable(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	probe := filepath.Join(dir, "probe")
	if err := os.Mkdir(probe, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Remove(probe)
}

// enable has the groups below dir controlled.
func enable(dir, controller string) error {
	return write(dir, "cgroup.subtree_control", "+"+controller)
}

// Features are what groups made here can do.
func (r *Root) Features() Features {
	has := func(c string) bool { return slices.Contains(r.place.Controllers, c) || r.place.V1[c] != "" }
	return Features{
		Group:  r.place.Unified != "" || r.place.V1[freezer] != "",
		CPU:    has(cpu),
		Memory: has(memory),
		PIDs:   has(pids),
	}
}

// Names are those of the groups that are there, sorted.
func (r *Root) Names() []string {
	var all []string
	for _, dir := range r.place.dirs() {
		entries, _ := os.ReadDir(dir) // one that has gone has none
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(all, e.Name()) {
				all = append(all, e.Name())
			}
		}
	}
	slices.Sort(all)
	return all
}

// Remove removes the place, if no group is in it.
func (r *Root) Remove() error {
	var errs []error
	for _, dir := range r.place.dirs() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// write writes to a file of a group. It must be there.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
