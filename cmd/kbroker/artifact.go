package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/program"
	"github.com/kbroker/kbroker/internal/unpack"
	"github.com/kbroker/kbroker/spec"
)

const (
	// maxBuildOutput bounds what is shown of a build that failed: its end.
	maxBuildOutput = 16 << 10
	// buildGrace is how long a build may take to leave when it is interrupted.
	buildGrace = 5 * time.Second
)

// brought is a program that a deploy brings: that of a service, or of the app's own policy.
type brought struct {
	of         kbroker.ServiceName // the allocator has that of the policy
	build, run string
	artifact   *kbroker.Artifact // of the app
}

// programs are those of an app. What is filled in of their artifacts is in the app.
func programs(app *kbroker.App) []brought {
	var all []brought
	for i := range app.Services {
		s := &app.Services[i]
		all = append(all, brought{s.Name, s.Build, s.Run, &s.Artifact})
	}
	if own := app.Own; own != nil {
		all = append(all, brought{kbroker.AllocatorService, own.Build, own.Run, &own.Artifact})
	}
	return all
}

// at is the place in the spec of what is said of the program.
func (p brought) at() string {
	if p.of == kbroker.AllocatorService {
		return "allocator"
	}
	return "services." + string(p.of)
}

// String is the program in a text.
func (p brought) String() string {
	if p.of == kbroker.AllocatorService {
		return "the allocator's policy"
	}
	return "service " + string(p.of)
}

// runBuild runs the program's build line in the folder of its spec.
func runBuild(ctx context.Context, folder string, p brought) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", p.build)
	cmd.Dir = folder
	// What the build starts must end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = buildGrace
	out := lastBytes{limit: maxBuildOutput}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctxError(ctx, "the build of "+p.String())
		}
		return kbroker.Errorf(kbroker.Failed, "build of %s: %v\n%s", p, err, bytes.TrimRight(out.kept, "\n")).
			WithHint("it was: %s (in %s)", p.build, folder)
	}
	return nil
}

// ctxError says that what was under way did not end in time.
func ctxError(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return kbroker.Errorf(kbroker.DeadlineExceeded, "the deadline passed during %s", what)
	}
	return ctx.Err()
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	limit int
	kept  []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.kept = append(l.kept, p...)
	if extra := len(l.kept) - l.limit; extra > 0 {
		l.kept = append(l.kept[:0], l.kept[extra:]...)
	}
	return len(p), nil
}

// measure fills in what a program's artifact is: digest, size, architecture. What
// hosts would refuse is refused here: an archive is unpacked as they do it.
// The error is a finding at the line of the spec that names the file.
func measure(ctx context.Context, doc *spec.Document, folder string, p brought) error {
	at := p.at() + ".run"
	if p.run == "" {
		at = p.at() + ".artifact"
	}
	path := p.artifact.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(folder, path)
	}
	f, err := os.Open(path)
	if err != nil {
		e := doc.At(at, "cannot read the program of %s: %s: %v", p, path, reason(err))
		switch {
		case !errors.Is(err, fs.ErrNotExist):
			return e
		case p.build == "":
			return e.WithHint("build it first, or add a `build` line; paths are relative to the folder of the spec")
		}
		return e.WithHint("`build` has run and did not make it; paths are relative to the folder of the spec")
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return inputError(path, err)
	case !info.Mode().IsRegular():
		return doc.At(at, "%s is not a file", path).WithHint("`run` names a program, `artifact` an archive or a program; pack a folder with tar -czf FILE.tar.gz -C FOLDER .")
	case info.Size() == 0:
		return doc.At(at, "%s is empty", path)
	case info.Size() > kbroker.MaxArtifactBytes:
		return doc.At(at, "%s has %s, at most %s are taken", path, bytesText(info.Size()), bytesText(kbroker.MaxArtifactBytes))
	}
	if p.artifact.Command != "" {
		var key string
		if p.artifact.Arch, key, err = archived(ctx, f, info.Size(), p.artifact.Command); err != nil {
			at, err = at+"."+key, fmt.Errorf("%s: %w", path, err)
		}
	} else {
		p.artifact.Arch, err = architecture(path, f)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return ctxError(ctx, "the unpacking of "+path)
	case !errors.Is(err, kbroker.Invalid):
		return err
	default:
		return doc.At(at, "%v", err).WithHint("%s", kbroker.AsError(err).Hint)
	}
	h := sha256.New()
	size, err := io.Copy(h, io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return inputError(path, err)
	}
	digest := hex.EncodeToString(h.Sum(nil))
	if want := p.artifact.SHA256; want != "" && want != digest {
		return doc.At(p.at()+".artifact.sha256", "%s has another digest", path).
			WithHint("its sha256 is %s", digest)
	}
	p.artifact.SHA256, p.artifact.SizeBytes = digest, size
	return nil
}

// architecture is the GOARCH that a program needs; empty for a script. Invalid.
func architecture(name string, f io.ReaderAt) (string, error) {
	needs, err := program.Inspect(f)
	switch {
	case err == nil:
		return needs.Arch, nil
	case unpack.IsArchive(f):
		return "", kbroker.Errorf(kbroker.Invalid, "%s is an archive, not a program", name).
			WithHint("say what to run in it: artifact: {path: FILE, command: PATH IN IT}")
	}
	return "", kbroker.Errorf(kbroker.Invalid, "%s is not a program: %v", name, err).
		WithHint("hosts run ELF files for Linux, and scripts that begin with #!; cross-compile Go with GOOS=linux")
}

// archived is architecture for the command of an archive. key is the one in the spec
// that an error is about.
func archived(ctx context.Context, archive io.ReaderAt, size int64, command string) (arch, key string, err error) {
	dir, err := os.MkdirTemp("", "kbroker-unpack-")
	if err != nil {
		return "", "path", fmt.Errorf("unpack: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tree, err := unpack.Unpack(ctx, archive, size, filepath.Join(dir, "tree"))
	if err != nil {
		return "", "path", err
	}
	path, err := tree.Command(command)
	if err != nil {
		return "", "command", err
	}
	f, err := os.Open(filepath.Join(dir, "tree", filepath.FromSlash(path)))
	if err != nil {
		return "", "path", fmt.Errorf("unpack: %w", err)
	}
	defer f.Close()
	arch, err = architecture(command, f)
	return arch, "command", err
}
