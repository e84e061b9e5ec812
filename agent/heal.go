package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kbroker/kbroker/agent/output"
	"github.com/kbroker/kbroker/internal/durable"
)

// What is damaged on disk never keeps an agent from its work: it is put aside, as a
// numbered copy, and made anew from what runs, from the view, or from the cluster.
// Here is what is damaged in its kind alone: a directory in the place of a file, a
// file in that of a directory.

// healHome makes way for the files and directories of an instance. What is put aside
// under a process that runs is of no use to that process either.
func (a *Agent) healHome(home string) {
	for _, name := range []string{workDir, tempDir, runDir} {
		a.heal(filepath.Join(home, name), fs.ModeDir)
	}
	for _, name := range []string{filepath.Join(runDir, instanceFile), outputFile, outputFile + output.LedgerSuffix, endedFile} {
		a.heal(filepath.Join(home, name), 0)
	}
	for _, path := range credsIn(home) {
		a.heal(path, 0)
	}
}

// heal puts aside what is there and of another kind than it should be.
func (a *Agent) heal(path string, kind fs.FileMode) {
	kept, err := asideUnless(path, kind)
	if kept != "" {
		a.log.Warn("something else was in the place of a file or a directory; it is put aside", "path", kept)
	}
	if err != nil {
		a.log.Error("what is in the place of a file or a directory stays", "path", path, "err", err)
	}
}

// asideUnless puts aside what is there and is not of a kind: a directory, or (0) a file.
func asideUnless(path string, kind fs.FileMode) (kept string, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Type() == kind {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return durable.SetAside(path)
}
