//go:build linux

package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A lab is named kbnetlab-PID-START-N by the process that made it (its start in
// clock ticks after boot) and a number. All that it makes has that name: the
// namespaces NAME-h1, the directory with images and mounts. So it can be removed
// by anybody who knows the name, and belongs to nobody when that process is dead.
const namePrefix = "kbnetlab-"

const (
	netnsDir = "/run/netns"
	// endTime bounds how long killed processes, mounts and loop devices may take
	// to go.
	endTime = 20 * time.Second
)

// ownName is the name of this process's n-th lab.
func ownName(n int) string {
	pid := os.Getpid()
	return fmt.Sprintf("%s%d-%d-%d", namePrefix, pid, startOf(pid), n)
}

// dirOf is the directory of a lab.
func dirOf(name string) string { return filepath.Join(os.TempDir(), name) }

// orphaned reports whether a name is that of a lab whose process is dead. lab is
// the lab's name, without what follows it in the name of a namespace.
func orphaned(name string) (lab string, dead bool) {
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok {
		return "", false
	}
	f := strings.SplitN(rest, "-", 4)
	if len(f) < 3 {
		return "", false
	}
	pid, err := strconv.Atoi(f[0])
	start, sErr := strconv.ParseUint(f[1], 10, 64)
	if err != nil || sErr != nil || pid < 1 {
		return "", false
	}
	return namePrefix + strings.Join(f[:3], "-"), startOf(pid) != start
}

// startOf is when a process started, in clock ticks after boot; 0 when there is
// none that is alive.
func startOf(pid int) uint64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The fields after the name, which may hold anything but is in brackets:
	// state is the first, start the twentieth.
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 20 || f[0][0] == 'Z' {
		return 0
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return 0
	}
	return start
}

// sweep removes the labs of test runs that were killed.
func sweep(t testing.TB) {
	t.Helper()
	left := map[string]bool{}
	for _, dir := range []string{netnsDir, os.TempDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("netlab: look for what earlier runs left: %v", err)
		}
		for _, e := range entries {
			if lab, dead := orphaned(e.Name()); dead {
				left[lab] = true
			}
		}
	}
	for lab := range left {
		// Another run may be removing it at the same moment: not our failure.
		t.Logf("netlab: a killed test run left %s; removed: %v", lab, remove(lab) == nil)
	}
}

// remove ends and removes everything of a lab, as far as it goes.
func remove(name string) error {
	var all error
	note := func(err error) { all = errors.Join(all, err) }
	var namespaces []string
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		note(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+"-") {
			namespaces = append(namespaces, e.Name())
		}
	}
	for _, ns := range namespaces {
		note(endAll(ns))
	}
	dir := dirOf(name)
	note(unmountBelow(dir))
	for _, ns := range namespaces {
		note(run("", "ip", "netns", "del", ns))
	}
	note(within(endTime, func() error { return loopsOf(dir) }))
	if all != nil {
		return all // the directory may still hold a mount
	}
	return os.RemoveAll(dir)
}

// share makes dir a mount whose further mounts and unmounts reach every copy of it: an
// instance has a view of the file system of its own, and its copy of a disk would keep
// that from being unmounted where the root is not shared, as in a container.
func share(dir string) error {
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	return nil
}

// unmountBelow unmounts what is mounted below dir, and dir.
func unmountBelow(dir string) error {
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var mounts []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && (f[1] == dir || strings.HasPrefix(f[1], dir+"/")) {
			mounts = append(mounts, f[1])
		}
	}
	var all error
	for _, mount := range slices.Backward(mounts) { // the last one is on top
		all = errors.Join(all, unmount(mount))
	}
	return all
}

// unmount unmounts; the last process on it may still be on its way out.
func unmount(dir string) error {
	return within(endTime, func() error {
		if err := syscall.Unmount(dir, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		return nil
	})
}

// loopsOf is an error while a loop device has an image below dir.
func loopsOf(dir string) error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, file := range files {
		// A device that goes in this moment has no such file.
		if image, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(image), dir+"/") {
			return fmt.Errorf("%s with %s: %w", file, bytes.TrimSpace(image), errStill)
		}
	}
	return nil
}
